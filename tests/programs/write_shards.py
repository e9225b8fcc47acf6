"""Writes token shards, and may kill itself: write_shards.py CORPUS TOKENIZER FOLDER SHARDS_AT_ONCE KILLED_AFTER.

KILLED_AFTER is the number of the shard after which the process kills itself; -1 for none.
"""

import os
import signal
import sys
from pathlib import Path
from unittest import mock

from codekiln.files import JsonObject
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train import prepare

corpus, tokenizer_path, folder = map(Path, sys.argv[1:4])
shards_at_once, killed_after = map(int, sys.argv[4:])
original = prepare._write_shard


def write_and_die(
    corpus: Path, split: str, k: int, tokenizer: Tokenizer, record_path: Path, origin: JsonObject
) -> None:
    original(corpus, split, k, tokenizer, record_path, origin)
    if k == killed_after:
        os.kill(os.getpid(), signal.SIGKILL)


with (
    mock.patch.object(prepare, "N_SHARDS_AT_ONCE", shards_at_once),
    mock.patch.object(prepare, "_write_shard", write_and_die),
):
    prepare.prepare_shards(corpus, tokenizer_path, folder)
