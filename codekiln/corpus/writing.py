"""Writes the documents of a corpus: the Parquet parts of both splits, and dropped documents on request."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import DOCUMENT_COLUMNS, DROPPED, PART_BYTES, SCHEMA, SPLITS, write_part
from codekiln.corpus.scratch import ORDER_BITS, Scratch
from codekiln.corpus.split import HeldOut, cut_text
from codekiln.corpus.steps.step import Step
from codekiln.files import JsonObject, atomic_write, read_json, write_json

DROPPED_SCHEMA = pa.schema([*SCHEMA, ("step", pa.string()), ("reason", pa.string()), ("measured", pa.float64())])


@dataclass(frozen=True)
class _Part:
    """A part of a split: its documents from order `first` to `last`."""

    split: str
    number: int
    first: int
    last: int


def write_splits(config: CorpusConfig, scratch: Scratch, folder: Path, held_out: HeldOut) -> JsonObject:
    """Writes the parts of all splits in the order of the documents. Returns their records."""
    parts = [part for split in SPLITS for part in _plan_parts(scratch, held_out, split)]
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
    scratch.run("Corpus: write", "parts", partial(_write_part, config, scratch, folder, held_out, parts), len(parts))
    splits: JsonObject = {}
    for split in SPLITS:
        found = [read_json(scratch.path("parts", k)) for k, part in enumerate(parts) if part.split == split]
        sums = {key: sum(record[key] for record in found) for key in ("documents", "text_bytes")}
        splits[split] = sums | {"parts": found}
    return splits


def _plan_parts(scratch: Scratch, held_out: HeldOut, split: str) -> list[_Part]:
    """A part ends at the first document that takes its text over `PART_BYTES`."""
    parts: list[_Part] = []
    first, n_bytes, last = None, 0, -1
    for unit in range(scratch.n_units):
        for batch in scratch.batches(unit, ["order", "repository", "text_bytes"]):
            rows = batch.filter(pa.array(_is_in(batch, held_out, split)))
            for order, size in zip(
                rows.column("order").to_pylist(), rows.column("text_bytes").to_pylist(), strict=True
            ):
                first = order if first is None else first
                n_bytes, last = n_bytes + size, order
                if n_bytes >= PART_BYTES:
                    parts.append(_Part(split, len(parts), first, order))
                    first, n_bytes = None, 0
    if first is not None:
        parts.append(_Part(split, len(parts), first, last))
    return parts


def _is_in(batch: pa.RecordBatch, held_out: HeldOut, split: str) -> Any:
    """Which rows are in a split. A document that is cut is in both."""
    mask = held_out.mask(batch)
    if split == "validation":
        return mask
    return np.ones(len(mask), bool) if held_out.is_cut else ~mask


def _write_part(
    config: CorpusConfig, scratch: Scratch, folder: Path, held_out: HeldOut, parts: list[_Part], k: int
) -> None:
    """Task: one part, and then its record."""
    part = parts[k]
    path = folder / part.split / f"part-{part.number:05}.parquet"
    if held_out.is_cut or any(type(step).finish_document is not Step.finish_document for step in config.steps):
        batches = _finished(config, scratch, held_out, part)
    else:  # texts are written as they are: no Python object is made of each
        batches = (batch.select(SCHEMA.names) for batch in _rows(scratch, held_out, part))
    write_json(scratch.path("parts", k), write_part(path, batches))


def _rows(scratch: Scratch, held_out: HeldOut, part: _Part) -> Iterator[pa.RecordBatch]:
    """The documents of a part. Those without text are left out."""
    for unit in range(part.first >> ORDER_BITS, (part.last >> ORDER_BITS) + 1):
        for batch in scratch.batches(unit, ["order", *DOCUMENT_COLUMNS], between=(part.first, part.last)):
            orders = batch.column("order").to_numpy()
            is_wanted = (orders >= part.first) & (orders <= part.last) & _is_in(batch, held_out, part.split)
            has_text = pc.greater(pc.binary_length(batch.column("text")), 0)
            yield batch.filter(pc.and_(pa.array(is_wanted), has_text))


def _finished(config: CorpusConfig, scratch: Scratch, held_out: HeldOut, part: _Part) -> Iterator[pa.RecordBatch]:
    """The documents of a part after the last phase of the steps. A side of the cut without text is left out."""
    for batch in _rows(scratch, held_out, part):
        finished = []
        for row in batch.to_pylist():
            text = row["text"]
            if held_out.is_cut and row["order"] in held_out.orders:
                text = cut_text(text, held_out.cut_bytes)[part.split == "validation"]
            if text:
                for step in config.steps:
                    text = step.finish_document(row, text, scratch)
                finished.append({name: row[name] for name in SCHEMA.names} | {"text": text})
        yield pa.RecordBatch.from_pylist(finished, SCHEMA)


def write_dropped(scratch: Scratch, folder: Path) -> None:
    """Writes `dropped/part-*.parquet`: the documents that were dropped, with step, reason and measured value.

    Those that were dropped before they were read have no text.
    """
    (folder / DROPPED).mkdir(exist_ok=True)
    scratch.run("Corpus: write dropped", "dropped", partial(_write_dropped_unit, scratch, folder))


def _write_dropped_unit(scratch: Scratch, folder: Path, unit: int) -> None:
    """Task: the dropped documents of a work unit."""
    path = folder / DROPPED / f"part-{unit:05}.parquet"
    with atomic_write(path) as temp_path, pq.ParquetWriter(temp_path, DROPPED_SCHEMA, compression="zstd") as writer:
        for batch in scratch.batches(unit, DROPPED_SCHEMA.names, dropped=True):
            writer.write_batch(batch.filter(pc.is_valid(batch.column("reason"))).cast(DROPPED_SCHEMA))
    write_json(scratch.path("dropped", unit), {"file": path.name})
