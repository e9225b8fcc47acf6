"""What is held out for validation: whole repositories, or else single files, or else the end of the largest file."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import daft
import pyarrow as pa
from daft import col, lit

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import SCHEMA, document_name

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

    @property
    def selector(self) -> tuple[str, tuple[str, ...] | tuple[int, ...]]:
        """The column that decides whether a document is held out, and its values that do."""
        return ("repository", self.names) if self.unit == "repository" else ("order", self.orders)


def choose_held_out(kept: daft.DataFrame, config: CorpusConfig) -> HeldOut:
    """The first of repositories, files, and the end of a file that comes near the wanted fraction: half to twice of it.

    Small corpora have few or large repositories. At least one document, or a part of it, is always left for training.
    """
    by_repository = kept.groupby("repository").agg(col("text_bytes").sum()).to_pydict()
    sizes = dict(zip(by_repository["repository"], by_repository["text_bytes"], strict=True))
    wanted = config.validation_fraction * sum(sizes.values())
    if wanted == 0:
        return HeldOut("repository", ())
    order = sorted(sizes, key=lambda name: hash_order(config.seed, name))
    repositories = _take([(name, sizes[name]) for name in order], wanted)
    if repositories is not None:
        return HeldOut("repository", tuple(sorted(repositories)))
    columns = kept.select("order", "draw", "repository", "revision", "path", "text_bytes").sort(["draw", "order"])
    rows = columns.to_pylist()
    files = _take([(row["order"], row["text_bytes"]) for row in rows], wanted)
    if files is not None:
        names = sorted({row["repository"] for row in rows if row["order"] in files})
        return HeldOut("file", tuple(names), tuple(sorted(files)))
    largest = max(rows, key=lambda row: (row["text_bytes"], -row["order"]))
    name = document_name(largest["repository"], largest["revision"], largest["path"])
    return HeldOut("end of a file", (name,), (largest["order"],), round(wanted))


def split_rows(rows: daft.DataFrame, held_out: HeldOut, split: str) -> Iterator[pa.RecordBatch]:
    """The rows of a split in their order, as batches of `SCHEMA`."""
    column, values = held_out.selector
    is_held_out = col(column).is_in(list(values)) if values else lit(False)
    if not held_out.is_cut:
        rows = rows.where(is_held_out if split == "validation" else ~is_held_out)
    elif split == "validation":
        rows = rows.where(is_held_out)
    for batch in _small_batches(rows.sort("order").select("order", *SCHEMA.names)):
        yield _cut(batch, held_out, split) if held_out.is_cut else batch.select(SCHEMA.names).cast(SCHEMA)


def hash_order(seed: int, name: str) -> str:
    """A uniform random order of names: 16 hexadecimal digits that depend on the seed and the name only."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16]


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


def _small_batches(rows: daft.DataFrame) -> Iterator[pa.RecordBatch]:
    """The rows in small batches, so that parts have nearly equal sizes whatever batches the engine returns."""
    for batch in rows.to_arrow_iter():
        for start in range(0, batch.num_rows, 256):
            yield batch.slice(start, 256)


def _cut(batch: pa.RecordBatch, held_out: HeldOut, split: str) -> pa.RecordBatch:
    """The batch with the part of the cut document that belongs to the split. A part without text is left out."""
    found = []
    for row in batch.to_pylist():
        if row["order"] in held_out.orders:
            row["text"] = cut_text(row["text"], held_out.cut_bytes)[split == "validation"]
        if row["text"]:
            found.append({name: row[name] for name in SCHEMA.names})
    return pa.RecordBatch.from_pylist(found, SCHEMA)
