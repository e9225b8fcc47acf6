"""Trains until writes fail, and writes the message of the error to a file.

From the checkpoint of step 6 on, the process may write no file over 100,000 bytes, which fails as a full disk does.
"""

import resource
import signal
from pathlib import Path
from unittest import mock

from torch import Tensor

from codekiln.files import JsonObject
from codekiln.train.checkpoint import Checkpointer
from tests.small import train_tiny

original = Checkpointer.save


def save(self: Checkpointer, step: int, tensors: dict[str, Tensor], training_state: JsonObject) -> None:
    self.wait()
    if step == 6:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    original(self, step, tensors, training_state)


def main(source: Path, run: Path, message: Path) -> None:
    with mock.patch.object(Checkpointer, "save", save):
        try:
            train_tiny(source, run, save_every=2)
        except OSError as error:
            message.write_text(error.strerror or "", encoding="utf-8")
