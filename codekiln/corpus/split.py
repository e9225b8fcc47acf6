"""What is held out for validation: whole repositories, or else single files, or else the end of the largest file."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import document_name, hash_order
from codekiln.corpus.scratch import Scratch

# Losses are precise enough with 30 million tokens, and all held-out texts are compared with all others.
MAX_HELD_OUT_BYTES = 100_000_000
_DRAWS = 1 << 64
_SAMPLE = 8  # times the wanted fraction of a large corpus, of which files are taken

HeldOutUnit = Literal["repository", "file", "end of a file"]
Key = TypeVar("Key", str, int)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class HeldOut:
    """What is held out: the repositories `names`, or files by their `orders`, or the last `cut_bytes` of one file.

    For files, `names` are their repositories, and for the end of a file its name.
    """

    unit: HeldOutUnit
    names: tuple[str, ...]
    orders: tuple[int, ...] = ()
    cut_bytes: int = 0

    @property
    def is_cut(self) -> bool:
        return self.unit == "end of a file"

    def mask(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows are held out, by their columns `repository` and `order`. A file that is cut is."""
        column, values = ("repository", self.names) if self.unit == "repository" else ("order", self.orders)
        kind = batch.schema.field(column).type
        found: npt.NDArray[np.bool_] = pc.is_in(batch.column(column), pa.array(values, kind)).to_numpy(
            zero_copy_only=False
        )
        return found


def choose_held_out(scratch: Scratch, config: CorpusConfig) -> HeldOut:
    """The first of repositories, files, and the end of a file that comes near the wanted fraction: half to twice of it.

    Small corpora have few or large repositories. At least one document, or a part of it, is always left for training. At most
    about `MAX_HELD_OUT_BYTES` are held out.
    """
    sizes: Counter[str] = Counter()
    for batch in _rows(scratch, ["repository", "text_bytes"]):
        sums = pa.Table.from_batches([batch]).group_by("repository").aggregate([("text_bytes", "sum")])
        for name, n_bytes in zip(
            sums.column("repository").to_pylist(), sums.column("text_bytes_sum").to_pylist(), strict=True
        ):
            sizes[name] += n_bytes
    total = sum(sizes.values())
    wanted = min(config.validation_fraction * total, MAX_HELD_OUT_BYTES)
    if wanted == 0:
        return HeldOut("repository", ())
    order = sorted(sizes, key=lambda name: hash_order(config.seed, name))
    repositories = _take([(name, sizes[name]) for name in order], wanted)
    if repositories is not None:
        return HeldOut("repository", tuple(sorted(repositories)))
    # Of a large corpus, only the files that come first in the random order are listed.
    last_draw = int(_DRAWS * min(1.0, _SAMPLE * wanted / total)) if total > 10 * MAX_HELD_OUT_BYTES else _DRAWS
    rows = [row for row in _documents(scratch) if int(row["draw"], 16) < last_draw]
    rows = rows or list(_documents(scratch))
    rows.sort(key=lambda row: (row["draw"], row["order"]))
    files = _take([(row["order"], row["text_bytes"]) for row in rows], wanted)
    if files is not None:
        names = sorted({row["repository"] for row in rows if row["order"] in files})
        return HeldOut("file", tuple(names), tuple(sorted(files)))
    largest = max(rows, key=lambda row: (row["text_bytes"], -row["order"]))
    name = document_name(largest["repository"], largest["revision"], largest["path"])
    return HeldOut("end of a file", (name,), (largest["order"],), round(wanted))


def cut_text(text: str, n_bytes: int) -> tuple[str, str]:
    """The text before and in its last lines: as few as have `n_bytes`, and at most half of the lines."""
    lines = _LINE.findall(text)
    at = len(lines)
    held_bytes = 0
    while at > (len(lines) + 1) // 2 and held_bytes < n_bytes:
        at -= 1
        held_bytes += len(lines[at].encode())
    return "".join(lines[:at]), "".join(lines[at:])


def _take(sizes: list[tuple[Key, int]], wanted: float) -> set[Key] | None:
    """Keys in the order of the list, each that fits, until their sizes reach `wanted`.

    None if the total is less than half of `wanted` or more than twice as much, or if all would be taken.
    """
    taken: set[Key] = set()
    total = 0
    for key, size in sizes:
        if total + size <= 1.2 * wanted:
            taken.add(key)
            total += size
        if total >= wanted:
            break
    if not taken and sizes:
        smallest, total = min(sizes, key=lambda pair: (pair[1], pair[0]))
        taken = {smallest}
    is_near = wanted / 2 <= total <= 2 * wanted
    return taken if is_near and len(taken) < len(sizes) else None


def _rows(scratch: Scratch, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for unit in range(scratch.n_units):
        yield from scratch.batches(unit, columns)


def _documents(scratch: Scratch) -> Iterator[dict[str, Any]]:
    columns = ["order", "draw", "repository", "revision", "path", "text_bytes"]
    return (row for batch in _rows(scratch, columns) for row in batch.to_pylist())
