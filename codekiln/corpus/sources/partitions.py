"""Rows that are sorted into partitions on the disk: one compressed file per partition, written once and read as a whole.

A file is a sequence of frames: the lengths of the rows and of their compressed form and its CRC-32, as little-endian numbers
of 64, 64 and 32 bits; then JSON lines compressed by Zstandard.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from codekiln.errors import CorruptFileError
from codekiln.files import JsonObject, read_json, write_json
from codekiln.folders import atomic_folder, require_made

RECORD = "partitions.json"
MAX_PARTITIONS = 4096
_HEADER = struct.Struct("<QQI")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
PENDING_BYTES = 32 * 2**20  # of rows in memory, over all partitions


def make_partitions(folder: Path, inputs: JsonObject, make: Callable[[Path], JsonObject]) -> JsonObject:
    """The record of a folder with partitions of `inputs`: `make` writes them and returns it, unless they exist."""
    if (folder / RECORD).is_file():
        require_made(folder, "partitions")
        record = read_json(folder / RECORD)
        if record.get("inputs") == inputs:
            return record
    with atomic_folder(folder, "partitions") as temporary:
        record = {"inputs": inputs} | make(temporary)
        write_json(temporary / RECORD, record)
    return record


class PartitionWriter:
    """Appends rows to the partitions of a new folder. A row is a list of JSON values."""

    def __init__(self, folder: Path, n_partitions: int) -> None:
        folder.mkdir()
        self._folder = folder
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
                with partition_path(self._folder, partition).open("ab") as file:
                    file.write(_HEADER.pack(len(data), len(compressed), zlib.crc32(compressed)) + compressed)
                lines.clear()
        self._n_pending_bytes = 0


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
                raise CorruptFileError(f"{path} is damaged: remove its folder, then run again")
            data = pa.decompress(compressed, decompressed_size=size, codec="zstd", asbytes=True)
            yield from json.loads(b"[" + data.replace(b"\n", b",") + b"]")
