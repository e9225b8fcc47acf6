"""Converts a checkpoint in shards of 20 MB, and prints the memory that this took: convert_memory.py SOURCE TARGET."""
# ruff: noqa: T201 - prints its result

import sys
from pathlib import Path
from typing import Any
from unittest import mock

from codekiln.model import huggingface, tensors
from tests.small import resident_bytes

original = tensors.save_safetensors
peak = before = resident_bytes()


def save_safetensors(*arguments: Any, **options: Any) -> None:
    global peak  # noqa: PLW0603 - the simplest way to watch a function
    peak = max(peak, resident_bytes())
    original(*arguments, **options)
    peak = max(peak, resident_bytes())


with (
    mock.patch.object(huggingface, "SHARD_BYTES", 20_000_000),
    mock.patch.object(huggingface, "save_safetensors", save_safetensors),
):
    huggingface.convert(Path(sys.argv[1]), Path(sys.argv[2]), {}, {}, {})
print(peak - before)
