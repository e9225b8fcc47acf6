"""The scratch folder of a corpus that is being built: what each task has finished, until the corpus is complete.

Each work unit of a source leaves its documents in `read/`, in files of about `FLUSH_BYTES` of text or less. The order of a
document is its place: the number of its work unit, and the place in it. Texts are never moved between machines: what steps
exchange are orders and hashes, in partitions by hash. What a step drops is a list of orders in `drops/`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.arrays import Array, load_arrays, save_arrays
from codekiln.corpus.engine import Engine
from codekiln.files import JsonObject, atomic_write, read_json, write_json

SCRATCH_FORMAT = 3  # of what tasks leave: another version begins again
READ_BATCH_ROWS = 256
FLUSH_BYTES, MIN_FLUSH_BYTES, FLUSH_ROWS = 64 * 2**20, 8 * 2**20, 20_000
FLUSH_COPIES = 15  # a worker has memory for this many times the text that it collects, because writing it needs copies
ORDER_BITS = 32  # of the place in a work unit
PARTITION_FRACTION = 0.25  # of the memory of a worker: sorting a partition needs copies

Indices = npt.NDArray[np.int64]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Drops:
    """Documents that a step drops, by their orders, which are sorted, and what was measured of each."""

    reason: str
    orders: Indices
    measured: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Scratch:
    """`folder` is removed when the corpus is complete. Steps write files that belong to the corpus to `outputs`.

    `drops` are the names of the steps that have compared documents.
    """

    folder: Path
    outputs: Path
    engine: Engine
    n_units: int
    drops: tuple[str, ...] = ()

    # Work units

    def read_path(self, unit: int, part: int) -> Path:
        """A file with documents of a work unit."""
        return self.folder / "read" / f"{unit:06}-{part:05}.parquet"

    def unit_record(self, unit: int) -> Path:
        """The record of a work unit that was read, written last."""
        return self.folder / "read" / f"{unit:06}.json"

    def unit_bytes(self) -> list[int]:
        """Bytes of text of each work unit, and at least 1: for progress."""
        return [max(1, _unit_record(self.unit_record(unit))["text_bytes"]) for unit in range(self.n_units)]

    def batches(
        self, unit: int, columns: list[str], *, dropped: bool = False, between: tuple[int, int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The documents of a work unit that are kept so far, in order; one batch in memory at a time.

        With `dropped`, all documents, and `step`, `reason` and `measured` say why they are dropped. `between` are the first and
        the last order that is wanted: blocks of documents outside are not read, others are read as a whole.
        """
        n_parts = _unit_record(self.unit_record(unit))["parts"]
        needed = list(dict.fromkeys(["order", "step", "reason", "measured", *columns]))
        for path in (self.read_path(unit, part) for part in range(n_parts)):
            with pq.ParquetFile(path, pre_buffer=False) as file:
                groups = [k for k in range(file.num_row_groups) if between is None or _overlaps(file, k, between)]
                # Without threads: tasks use all cores.
                for batch in file.iter_batches(READ_BATCH_ROWS, groups, needed, use_threads=False):
                    decided = self._decide(batch)
                    if not dropped and decided.column("reason").null_count < decided.num_rows:
                        decided = decided.filter(pc.is_null(decided.column("reason")))
                    if decided.num_rows:
                        yield decided.select(columns)

    def rows(self, unit: int, columns: list[str]) -> dict[str, list[Any]]:
        """Columns of the documents of a work unit that are kept so far, as lists."""
        found: dict[str, list[Any]] = {name: [] for name in columns}
        for batch in self.batches(unit, columns):
            for name in columns:
                found[name] += batch.column(name).to_pylist()
        return found

    def texts(self, unit: int, orders: Indices) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Order and text in UTF-8 of those documents of a work unit whose orders are in `orders`, which is sorted."""
        first, last = np.searchsorted(orders, [unit << ORDER_BITS, (unit + 1) << ORDER_BITS])
        wanted = orders[first:last]
        if not len(wanted):
            return
        between = (int(wanted[0]), int(wanted[-1]))
        for batch in self.batches(unit, ["order", "text"], dropped=True, between=between):
            is_wanted = np.isin(batch.column("order").to_numpy(), wanted, assume_unique=True)
            rows = zip(batch.column("order").to_pylist(), column_bytes(batch.column("text")), strict=True)
            yield from itertools.compress(rows, is_wanted)

    def _decide(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch, with step, reason and measured value of the documents that steps have dropped since."""
        orders = batch.column("order").to_numpy()
        columns = {name: batch.column(name) for name in ("step", "reason", "measured")}
        for k, step in enumerate(self.drops):
            dropped = _load_drops(self.drops_path(k))
            if not len(dropped.orders):
                continue
            at = np.searchsorted(dropped.orders, orders)
            inside = np.minimum(at, len(dropped.orders) - 1)
            is_dropped = dropped.orders[inside] == orders
            if not is_dropped.any():
                continue
            mask = pa.array(is_dropped)
            columns["step"] = pc.if_else(mask, step, columns["step"])
            columns["reason"] = pc.if_else(mask, dropped.reason, columns["reason"])
            if dropped.measured is not None:
                columns["measured"] = pc.if_else(mask, pa.array(dropped.measured[inside]), columns["measured"])
        for name, column in columns.items():
            batch = batch.set_column(batch.schema.get_field_index(name), name, column)
        return batch

    # What steps drop

    def drops_path(self, k: int) -> Path:
        return self.folder / "drops" / f"{k:02}"

    def after(self, step: str, find: Callable[["Scratch"], Drops | None]) -> "Scratch":
        """The scratch folder after a step, which `find` runs unless it had finished before."""
        path = self.drops_path(len(self.drops))
        if not path.is_file():
            found = find(self) or Drops("", np.empty(0, np.int64))
            measured = np.empty(0) if found.measured is None else found.measured
            reason = np.frombuffer(found.reason.encode(), np.uint8)
            save_arrays(path, {"reason": reason, "orders": found.orders, "measured": measured})
        return dataclasses.replace(self, drops=(*self.drops, step))

    # Tasks

    def path(self, stage: str, k: int) -> Path:
        """The result of task k of a stage of the step that comes next."""
        return self._stage(stage) / f"{k:06}"

    def _stage(self, name: str) -> Path:
        return self.folder / f"{len(self.drops):02}-{name}"

    def run(self, title: str, stage: str, task: Callable[[int], None], n: int | None = None) -> None:
        """Runs task(k) for each k below n, by default for each work unit, unless its result `path(stage, k)` exists."""
        self._stage(stage).mkdir(exist_ok=True)
        sizes = self.unit_bytes() if n is None else [1] * n
        self.engine.run(title, task, partial(self.path, stage), sizes)

    def n_partitions(self, stage: str, n_bytes: int) -> int:
        """How many partitions rows of `n_bytes` need so that each worker has one in its share of the memory.

        It is recorded: tasks of the stage that have finished keep their partitions.
        """
        path = self._stage(stage).with_suffix(".json")
        if not path.is_file():
            share = PARTITION_FRACTION * self.engine.worker_memory_bytes
            write_json(path, {"partitions": max(self.engine.n_workers, -int(-n_bytes // share))})
        return int(read_json(path)["partitions"])

    def n_documents(self) -> int:
        """How many documents were read, dropped ones included."""
        return sum(_unit_record(self.unit_record(unit))["documents"] for unit in range(self.n_units))


def column_bytes(column: pa.LargeStringArray) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of each text of a column, which share its memory, (bytes,)."""
    _, offsets, data = column.buffers()
    stops = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1].tolist()
    content = np.frombuffer(data or b"", np.uint8)
    return (content[start:stop] for start, stop in itertools.pairwise(stops))


def _overlaps(file: pq.ParquetFile, group: int, between: tuple[int, int]) -> bool:
    """Whether a row group has orders in a range. The first column is the order."""
    found = file.metadata.row_group(group).column(0).statistics
    return bool(found.min <= between[1] and found.max >= between[0])


def cached_by_file(maxsize: int) -> Callable[[Callable[[Path], Value]], Callable[[Path], Value]]:
    """A decorator for functions that load a file: a result is used again as long as the file is the same one.

    The same folder may hold another corpus later, and workers outlive a corpus.
    """

    def decorate(load: Callable[[Path], Value]) -> Callable[[Path], Value]:
        @lru_cache(maxsize=maxsize)
        def load_version(path: Path, version: tuple[int, int, int]) -> Value:
            return load(path)

        def load_cached(path: Path) -> Value:
            status = path.stat()
            return load_version(path, (status.st_ino, status.st_size, status.st_mtime_ns))

        return load_cached

    return decorate


@cached_by_file(maxsize=100_000)
def _unit_record(path: Path) -> JsonObject:
    return read_json(path)


@cached_by_file(maxsize=64)
def _load_drops(path: Path) -> Drops:
    arrays = load_arrays(path)
    measured = arrays["measured"] if len(arrays["measured"]) else None
    return Drops(arrays["reason"].tobytes().decode(), arrays["orders"], measured)


def write_partitions(path: Path, hashes: npt.NDArray[np.uint64], columns: dict[str, Array], n: int) -> None:
    """Writes rows in `n` partitions by their hash: row group k of a Parquet file is partition k."""
    partition = (hashes % np.uint64(n)).astype(np.int64)
    by_partition = np.argsort(partition, kind="stable")
    stops = np.cumsum(np.bincount(partition, minlength=n))
    table = pa.table({"hash": hashes, **columns}).take(pa.array(by_partition))
    with atomic_write(path) as temp_path, pq.ParquetWriter(temp_path, table.schema, compression="none") as writer:
        start = 0
        for stop in stops.tolist():
            writer.write_table(table.slice(start, stop - start), row_group_size=max(1, stop - start))
            start = stop


def read_partition(paths: list[Path], k: int) -> dict[str, Array]:
    """Partition k of several files of `write_partitions`, in the order of the files."""
    tables = []
    for path in paths:
        with pq.ParquetFile(path) as file:
            tables.append(file.read_row_group(k))
    table = pa.concat_tables(tables)
    return {name: table.column(name).to_numpy() for name in table.column_names}
