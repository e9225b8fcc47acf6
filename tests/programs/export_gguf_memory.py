"""Exports a model directory to GGUF in float32, and prints the memory that this took: export_gguf_memory.py MODEL FILE."""
# ruff: noqa: T201 - prints its result

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import gguf

from codekiln.convert.models import export_model
from tests.small import resident_bytes

original = gguf.GGUFWriter.write_tensor_data
peak = before = resident_bytes()


def write_tensor_data(*arguments: Any, **options: Any) -> None:
    global peak  # noqa: PLW0603 - the simplest way to watch a method
    peak = max(peak, resident_bytes())
    original(*arguments, **options)


with mock.patch.object(gguf.GGUFWriter, "write_tensor_data", write_tensor_data):
    export_model(Path(sys.argv[1]), Path(sys.argv[2]), "gguf", dtype="f32")
print(peak - before)
