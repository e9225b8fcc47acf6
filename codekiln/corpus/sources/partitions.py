"""Rows that are sorted into partitions on the disk: one compressed file per partition, written once and read as a whole.

A file is a sequence of frames: the lengths of the rows and of their compressed form and its CRC-32, as little-endian numbers
of 64, 64 and 32 bits; then JSON lines compressed by Zstandard.

Sorting a dump takes hours. So its state is saved from time to time, with the sizes of all files: after an interruption, the
files are cut to these sizes, and sorting continues from there.
"""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from codekiln.errors import CorruptFileError
from codekiln.files import JsonObject, read_json, write_json
from codekiln.folders import claim_folder, replace_folder, require_made, require_replaceable

RECORD, CHECKPOINT = "partitions.json", "checkpoint.json"
CHECKPOINT_BYTES = 256 * 2**20  # of the input between two states that are saved
MAX_PARTITIONS = 4096
_HEADER = struct.Struct("<QQI")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
PENDING_BYTES = 32 * 2**20  # of rows in memory, over all partitions


def make_partitions(
    folder: Path, inputs: JsonObject, make: Callable[["Sorting"], JsonObject], *, not_kept: Sequence[str]
) -> JsonObject:
    """The record of a folder with partitions of `inputs`: `make` writes them and returns it, unless they exist.

    `make` continues with what it had saved when it was interrupted. `not_kept` are the folders of partitions that only `make`
    needs.
    """
    if (folder / RECORD).is_file():
        require_made(folder, "partitions")
        record = read_json(folder / RECORD)
        if record.get("inputs") == inputs:
            return record
    require_replaceable(folder, "partitions")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    record = read_json(unfinished / RECORD) if (unfinished / RECORD).is_file() else {}
    if record.get("inputs") != inputs:
        sorting = Sorting(unfinished, inputs)
        record = {"inputs": inputs} | make(sorting)
        write_json(unfinished / RECORD, record)
    # From here on, all steps are done again if they are interrupted.
    for path in (unfinished / name for name in not_kept):
        if path.exists():
            shutil.rmtree(path)
    (unfinished / CHECKPOINT).unlink(missing_ok=True)
    os.sync()
    replace_folder(unfinished, folder, "partitions")
    return record


class Sorting:
    """A folder in which partitions of `inputs` are made. `state` is what was saved before; None at the beginning."""

    def __init__(self, folder: Path, inputs: JsonObject) -> None:
        self.folder, self._inputs = folder, inputs
        self._writers: dict[str, PartitionWriter] = {}
        path = folder / CHECKPOINT
        saved = read_json(path) if path.is_file() else {}
        if saved.get("inputs") != inputs:
            saved = {}
            if folder.exists():
                require_made(folder, "partitions")
                shutil.rmtree(folder)
            claim_folder(folder, "partitions")
        self.state: JsonObject | None = saved.get("state")
        self._sizes: dict[str, list[int]] = saved.get("sizes", {})

    def writer(self, name: str, n_partitions: int) -> "PartitionWriter":
        """The writer of the partitions in the folder `name`, after the rows that were saved."""
        writer = PartitionWriter(self.folder / name, n_partitions, self._sizes.get(name))
        self._writers[name] = writer
        return writer

    def save(self, state: JsonObject) -> None:
        """Saves a state, and that all rows that were written belong to it."""
        for name, writer in self._writers.items():
            writer.flush()
            self._sizes[name] = writer.sizes
        self.state = state
        os.sync()  # what the state says is on the disk
        write_json(self.folder / CHECKPOINT, {"inputs": self._inputs, "state": state, "sizes": self._sizes})


class PartitionWriter:
    """Appends rows to the partitions of a folder. A row is a list of JSON values.

    The folder is new, or its files are cut to `sizes`. Raises CorruptFileError if one of them is shorter.
    """

    def __init__(self, folder: Path, n_partitions: int, sizes: Sequence[int] | None = None) -> None:
        if sizes is None and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.sizes = list(sizes or [0] * n_partitions)
        for partition in range(n_partitions):
            _cut(partition_path(folder, partition), self.sizes[partition])
        self._pending: list[list[bytes]] = [[] for _ in range(n_partitions)]
        self._n_pending_bytes = 0

    def write(self, partition: int, row: list[Any] | tuple[Any, ...]) -> None:
        line = _encode(row).encode()
        self._pending[partition].append(line)
        self._n_pending_bytes += len(line)
        if self._n_pending_bytes >= PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are in memory. Call it after the last row."""
        for partition, lines in enumerate(self._pending):
            if lines:
                data = b"\n".join(lines)
                compressed = pa.compress(data, codec="zstd", asbytes=True)
                frame = _HEADER.pack(len(data), len(compressed), zlib.crc32(compressed)) + compressed
                with partition_path(self._folder, partition).open("ab") as file:
                    file.write(frame)
                self.sizes[partition] += len(frame)
                lines.clear()
        self._n_pending_bytes = 0


def _cut(path: Path, n_bytes: int) -> None:
    """Cuts a file to `n_bytes`. Raises CorruptFileError if it is shorter."""
    found = path.stat().st_size if path.exists() else 0
    if found < n_bytes:
        raise CorruptFileError(f"{path} is damaged: remove {path.parent.parent}, then run again")
    if found > n_bytes:
        os.truncate(path, n_bytes)


def partition_path(folder: Path, partition: int) -> Path:
    """The file of a partition. It does not exist if the partition has no row."""
    return folder / f"{partition:05}.rows"


def read_partition(path: Path) -> Iterator[list[Any]]:
    """The rows in the order in which they were written. Raises CorruptFileError for a damaged file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            compressed = b""
            if is_whole := len(header) == _HEADER.size:
                size, compressed_size, checksum = _HEADER.unpack(header)
                compressed = file.read(min(compressed_size, path.stat().st_size))
                is_whole = len(compressed) == compressed_size and zlib.crc32(compressed) == checksum
            if not is_whole:
                raise CorruptFileError(f"{path} is damaged: remove {path.parent.parent}, then run again")
            data = pa.decompress(compressed, decompressed_size=size, codec="zstd", asbytes=True)
            yield from json.loads(b"[" + data.replace(b"\n", b",") + b"]")
