"""Records of tables in files: lines of JSON, and rows of Parquet. Only the columns that are needed are read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from codekiln.corpus.decoding import NOT_UTF8
from codekiln.corpus.sources.data_files import DataFile, RawFile
from codekiln.corpus.sources.streams import DAMAGED, read_lines
from codekiln.errors import CodekilnError, InvalidFileError

LINES_BYTES = 64 * 2**20  # of a work unit of lines that are not compressed
ROWS_BYTES = 16 * 2**20  # of a Parquet file in a work unit
BATCH_BYTES = 4 * 2**20  # of rows of Parquet in memory, by the average size of a row
_MAX_BATCH_ROWS = 64
_PAGE_BUFFER_BYTES = 2**20
NOT_JSON = "line that is not JSON"
NOT_OBJECT = "JSON that is not an object"
BAD_VALUE = "value that cannot be read"


class Record(NamedTuple):
    """A row, or the problem why it cannot be read.

    `number` is the row in a Parquet file, or the place of the line in bytes in the decompressed text.
    """

    number: int
    values: dict[str, Any]
    n_bytes: int
    problem: str | None = None


class RecordPart(Protocol):
    """A part of a file that is read as a whole. It can be pickled."""

    @property
    def file(self) -> DataFile: ...

    @property
    def n_bytes(self) -> int: ...

    def records(self, columns: Sequence[str], max_line_bytes: int) -> Iterator[Record]:
        """With at least `columns`, which are dotted names, except for those that the record lacks."""
        ...


@dataclass(frozen=True)
class Lines:
    """The lines that begin in a range of bytes; a whole stream if `stop` is None."""

    file: DataFile
    start: int = 0
    stop: int | None = None

    @property
    def n_bytes(self) -> int:
        return (self.stop or self.file.n_bytes) - self.start

    def records(self, columns: Sequence[str], max_line_bytes: int) -> Iterator[Record]:
        for line in read_lines(self.file, max_line_bytes, self.start, self.stop):
            if line.problem is not None:
                yield Record(line.offset, {}, line.n_bytes, line.problem)
            elif line.data and not line.data.isspace():
                yield _parse(line.offset, line.data)


@dataclass(frozen=True)
class Rows:
    """The row groups of a Parquet file from `first` up to, but not including, `stop`."""

    file: DataFile
    first: int
    stop: int
    n_bytes: int

    def records(self, columns: Sequence[str], max_line_bytes: int) -> Iterator[Record]:
        number = 0
        with _open_parquet(self.file) as (parquet, raw):
            for group in range(self.stop):
                n_rows = parquet.metadata.row_group(group).num_rows
                if group >= self.first:
                    yield from _read_group(parquet, raw, group, columns, number)
                number += n_rows


@dataclass(frozen=True)
class Unreadable:
    """A file that has a problem as a whole."""

    file: DataFile
    problem: str

    @property
    def n_bytes(self) -> int:
        return self.file.n_bytes

    def records(self, columns: Sequence[str], max_line_bytes: int) -> Iterator[Record]:
        yield Record(0, {}, self.file.n_bytes, self.problem)


def record_parts(files: Iterable[DataFile], columns: Sequence[str]) -> Iterator[RecordPart]:
    """The parts of files of lines and of Parquet files, in order.

    Raises InvalidFileError if the first Parquet file is damaged or lacks a column. In others this is a problem.
    """
    is_first = True
    for file in files:
        if file.format == "parquet":
            try:
                parts: list[RecordPart] = [*_row_parts(file, columns)]
            except MissingColumnError as error:
                if is_first:
                    raise
                parts = [Unreadable(file, f"no column {error.column}")]
            except InvalidFileError:
                if is_first:
                    raise
                parts = [Unreadable(file, DAMAGED)]
            yield from parts
            is_first = False
        elif file.compression is None and file.n_bytes:
            for start in range(0, file.n_bytes, LINES_BYTES):
                yield Lines(file, start, min(start + LINES_BYTES, file.n_bytes))
        else:
            yield Lines(file)


class MissingColumnError(InvalidFileError):
    """A table without a column that is needed."""

    def __init__(self, file: DataFile, column: str, known: Sequence[str]) -> None:
        super().__init__(
            f"{file.location} has no column {column}: it has {', '.join(known) or 'none'}. Name the columns of the data set"
        )
        self.column = column


def _row_parts(file: DataFile, columns: Sequence[str]) -> Iterator[Rows]:
    """Row groups, small ones together. Raises InvalidFileError for a damaged footer and for a column that is missing.

    The metadata of single column chunks is never read: pyarrow ends the process if it is damaged. So the bytes of a group are
    its part of the file.
    """
    with _open_parquet(file) as (parquet, raw), _damage(raw, file):
        metadata = parquet.metadata
        leaves = [metadata.schema.column(k).path for k in range(metadata.num_columns)]
        for column in columns:
            if not any(_is_part(leaf, column) for leaf in leaves):
                raise MissingColumnError(file, column, parquet.schema_arrow.names)
        sizes = [max(0, metadata.row_group(group).total_byte_size) for group in range(metadata.num_row_groups)]
    total = max(1, sum(sizes))
    first = n_bytes = 0
    for group, size in enumerate(sizes):
        n_bytes += file.n_bytes * size // total
        if n_bytes >= ROWS_BYTES or group == len(sizes) - 1:
            yield Rows(file, first, group + 1, n_bytes)
            first, n_bytes = group + 1, 0


def _is_part(leaf: str, column: str) -> bool:
    """Whether a leaf of a Parquet schema belongs to a column: `meta.name` and `names.list.element` to `meta` and `names`."""
    return leaf == column or leaf.startswith(f"{column}.")


def _read_group(parquet: Any, raw: RawFile, group: int, columns: Sequence[str], number: int) -> Iterator[Record]:
    """The rows of a group, then its damage, if it has any. `number` is that of its first row."""
    metadata = parquet.metadata.row_group(group)
    n_bytes = max(0, metadata.total_byte_size)
    n_rows = min(max(1, BATCH_BYTES * metadata.num_rows // max(1, n_bytes)), _MAX_BATCH_ROWS)
    batches = parquet.iter_batches(n_rows, [group], list(columns), use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            if raw.error is not None:
                raise raw.error from error
            yield Record(number, {}, n_bytes, DAMAGED)
            return
        if batch is None:
            return
        yield from _to_records(batch, number)
        number += batch.num_rows


def _to_records(batch: Any, number: int) -> Iterator[Record]:
    """The rows of a batch. Those with text that is not UTF-8, or a value that Python cannot hold, have a problem."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        for k in range(batch.num_rows):
            try:
                yield Record(number + k, batch.slice(k, 1).to_pylist()[0], 0)
            except UnicodeDecodeError:
                yield Record(number + k, {}, 0, NOT_UTF8)
            except (ValueError, OverflowError):
                yield Record(number + k, {}, 0, BAD_VALUE)
        return
    for k, row in enumerate(rows):
        yield Record(number + k, row, 0)


def value_at(values: dict[str, Any], name: str) -> Any:
    """The value of a dotted name: a key of this name, else one in nested objects; None if there is none."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _parse(offset: int, line: bytes) -> Record:
    failed = partial(Record, offset, {}, len(line))
    try:
        text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError:
        return failed(NOT_UTF8)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        return failed(NOT_JSON)
    return Record(offset, values, len(line)) if isinstance(values, dict) else failed(NOT_OBJECT)


@contextmanager
def _open_parquet(file: DataFile) -> Iterator[tuple[Any, RawFile]]:
    """Raises InvalidFileError for a damaged footer."""
    with file.open() as raw:
        with _damage(raw, file):
            parquet = pq.ParquetFile(raw, pre_buffer=False, buffer_size=_PAGE_BUFFER_BYTES)
        yield parquet, raw


@contextmanager
def _damage(raw: RawFile, file: DataFile) -> Iterator[None]:
    """Raises InvalidFileError instead of what the library raises, but errors of the disk or the network as they are."""
    try:
        yield
    except CodekilnError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: names that are not UTF-8
        if raw.error is not None:
            raise raw.error from error
        raise InvalidFileError(
            f"{file.location} is no Parquet file, or it is damaged ({error}): download it again"
        ) from None
