"""Trains until writes fail: train_on_full_disk.py SOURCE RUN. Prints the message of the error.

From the checkpoint of step 6 on, the process may write no file over 100,000 bytes, which fails as a full disk does.
"""
# ruff: noqa: T201 - prints its result

import resource
import signal
import sys
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


with mock.patch.object(Checkpointer, "save", save):
    try:
        train_tiny(Path(sys.argv[1]), Path(sys.argv[2]), save_every=2)
    except OSError as error:
        print(error.strerror)
