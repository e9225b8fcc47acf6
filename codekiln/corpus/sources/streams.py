"""A file of a data set as a stream of bytes, decompressed in blocks, and the lines of such a stream."""

import math
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pyarrow as pa

from codekiln.corpus.sources.data_files import DataFile

# What is decompressed before a truncated end is found is lost with its block, so blocks are small.
BLOCK_BYTES = 2**17
DAMAGED = "damaged or truncated file"
TOO_LONG = "expands too far"
BOMB = "compressed more than 200 times"
# Of decompressed to compressed bytes, after the first `FREE_BYTES`. Source code has a ratio of 3 to 20.
MAX_RATIO = 200
FREE_BYTES = 64 * 2**20


class StreamError(Exception):
    """A stream cannot be read further; the message is the problem."""


class Stream:
    """The decompressed bytes of a file from `start` on. Several frames or members in one file are one stream.

    `read` raises StreamError for damaged data, for a truncated end, for a window of more than 128 MB (Zstandard), and for more
    than `max_bytes` or `MAX_RATIO` times the compressed bytes. Errors of the disk or the network stay as they are.
    """

    def __init__(self, file: DataFile, start: int = 0, *, max_bytes: float = math.inf) -> None:
        self._max_bytes = max_bytes
        self._raw = file.open()
        self._stream = self._raw
        self.offset = start
        if start:
            self._raw.seek(start)
        if file.compression is not None:
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), file.compression)

    def read_block(self, n_bytes: int = BLOCK_BYTES) -> bytes:
        """At most `n_bytes`; empty at the end."""
        try:
            data = self._stream.read(n_bytes)
        except OSError as error:
            if self._raw.error is not None:
                raise self._raw.error from error
            raise StreamError(DAMAGED) from None
        self.offset += len(data)
        if self._stream is not self._raw and self.offset > max(FREE_BYTES, MAX_RATIO * self._raw.n_read):
            raise StreamError(BOMB)
        if self.offset > self._max_bytes:
            raise StreamError(TOO_LONG)
        return data

    def read(self, n_bytes: int) -> bytes:
        """Exactly `n_bytes`. Raises StreamError at the end."""
        parts, left = [], n_bytes
        while left:
            data = self.read_block(min(left, BLOCK_BYTES))
            if not data:
                raise StreamError(DAMAGED)
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def skip(self, n_bytes: int) -> None:
        """Reads `n_bytes` without keeping them. Raises StreamError at the end."""
        while n_bytes > 0:
            data = self.read_block(min(n_bytes, BLOCK_BYTES))
            if not data:
                raise StreamError(DAMAGED)
            n_bytes -= len(data)

    def close(self) -> None:
        self._stream.close()
        self._raw.close()


class Line(NamedTuple):
    """A line without its end, or the problem why there is none. `offset` is its place in the decompressed stream."""

    offset: int
    n_bytes: int
    data: bytes
    problem: str | None = None


def read_lines(file: DataFile, max_bytes: int, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    """The lines that begin from `start` up to, but not including, `stop`. They are complete, and may end after `stop`.

    A line of more than `max_bytes` is not held in memory: it is a problem, and so is a stream that cannot be read further.
    """
    with closing(Stream(file, max(0, start - 1))) as stream:
        offset, is_aligned = stream.offset, start == 0
        parts: list[bytes] = []  # of the present line
        n_bytes = 0
        try:
            while block := stream.read_block():
                pieces = block.split(b"\n")
                for piece in pieces[:-1]:
                    n_bytes += len(piece)
                    if is_aligned:
                        yield _line(offset, n_bytes, [*parts, piece], max_bytes)
                    is_aligned = True
                    offset += n_bytes + 1
                    parts, n_bytes = [], 0
                    if stop is not None and offset >= stop:
                        return
                n_bytes += len(pieces[-1])
                if is_aligned and n_bytes <= max_bytes:
                    parts.append(pieces[-1])
                else:
                    parts = []
                # The rest of a line that is too long, or that began before this range, belongs to no line of it.
                if stop is not None and stream.offset >= stop and (not is_aligned or n_bytes > max_bytes):
                    break
            if is_aligned and n_bytes:
                yield _line(offset, n_bytes, parts, max_bytes)
        except StreamError as error:
            yield Line(stream.offset, 0, b"", str(error))


def _line(offset: int, n_bytes: int, parts: list[bytes], max_bytes: int) -> Line:
    if n_bytes > max_bytes:
        return Line(offset, n_bytes, b"", f"line over {max_bytes:,} bytes")
    return Line(offset, n_bytes, b"".join(parts))
