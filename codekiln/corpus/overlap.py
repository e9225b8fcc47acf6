"""Runs of words that documents share with other texts: with the held-out documents, and with benchmarks.

Near-duplicates are whole documents. A document may also hold a part of another one, for example a copied function or a vendored
file that was rewritten. Such parts are found by the runs of words that both have.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codekiln.arrays import load_arrays, map_array, save_arrays, sorted_unique
from codekiln.corpus.scratch import Drops, Indices, Scratch, cached_by_file, column_bytes
from codekiln.corpus.shingles import Bytes, Hashes, find_in, make_filter, text_runs
from codekiln.corpus.split import HeldOut
from codekiln.files import JsonObject, atomic_write, read_json, write_json

HELD_OUT_OVERLAP = "overlaps the held-out split"
RUN_WORDS = 50
# A run that more training documents have is boilerplate, for example a license header, and not a copy of one of them.
MAX_COPIES = 20


@dataclass(frozen=True)
class RunIndex:
    """The runs of `n_words` words of some texts: sorted hashes, and a filter of those that are not among them."""

    n_words: int
    values: Hashes
    filter_bits: Bytes

    @classmethod
    def build(cls, texts: Iterable[str | Bytes], n_words: int) -> "RunIndex":
        values = sorted_unique(np.concatenate([np.empty(0, np.uint64), *(text_runs(text, n_words) for text in texts)]))
        return cls(n_words, values, make_filter(values))

    @classmethod
    def load(cls, path: Path, n_words: int) -> "RunIndex":
        """An index that `save` wrote. It is mapped, so that all tasks of a machine share it."""
        return cls(n_words, map_array(path / "values.bin", np.uint64), map_array(path / "filter.bin", np.uint8))

    def save(self, path: Path) -> None:
        """Writes a new folder."""
        with atomic_write(path) as temp_path:
            temp_path.mkdir()
            self.values.tofile(temp_path / "values.bin")
            self.filter_bits.tofile(temp_path / "filter.bin")

    def find(self, text: str | Bytes) -> Indices:
        """The place in the index of each run of a text, or -1, in order."""
        places: Indices = find_in(text_runs(text, self.n_words), self.values, self.filter_bits)
        return places


def drop_overlap(scratch: Scratch, held_out: HeldOut, max_overlap: float | None) -> Drops:
    """Compares all training documents with the held-out ones. `overlap_record` has the shares afterwards.

    A training document is dropped if at least `max_overlap` of its runs are in held-out documents and in no more than
    `MAX_COPIES` training documents; None drops nothing. Memory: three times the runs of the held-out texts, of 8 bytes each,
    whose number is limited (`split.py`).
    """
    if not _index_path(scratch).is_dir():
        RunIndex.build((text for _, text in _held_out_texts(scratch, held_out)), RUN_WORDS).save(_index_path(scratch))
    scratch.run("Corpus: held-out overlap", "overlap", partial(_find_shared, scratch, held_out))
    index = _load_index(_index_path(scratch))
    n_documents = np.zeros(len(index.values), np.int32)
    for _, _, places in _shared_runs(scratch):
        n_documents[places] += 1
    is_copied = n_documents <= MAX_COPIES
    is_left = np.zeros(len(index.values), bool)
    dropped: dict[int, float] = {}
    for order, n_runs, places in _shared_runs(scratch):
        fraction = np.count_nonzero(is_copied[places]) / n_runs
        if max_overlap is not None and fraction >= max_overlap:
            dropped[order] = fraction
        else:
            is_left[places] = True
    before, after = _covered_fractions(scratch, held_out, index, (n_documents > 0, is_left))
    write_json(_record_path(scratch), {"run_words": RUN_WORDS, "fraction_before": before, "fraction": after})
    return Drops(HELD_OUT_OVERLAP, np.array(list(dropped), np.int64), np.array(list(dropped.values()), np.float64))


def overlap_record(scratch: Scratch) -> JsonObject:
    """The fractions of held-out words in a run that a training document has too, before and after documents were dropped."""
    return read_json(_record_path(scratch))


def _find_shared(scratch: Scratch, held_out: HeldOut, unit: int) -> None:
    """Task: the runs that training documents of a work unit share with held-out ones."""
    index = _load_index(_index_path(scratch))
    orders: list[int] = []
    n_runs: list[int] = []
    found: list[Indices] = []
    for batch in scratch.batches(unit, ["order", "repository", "text"]):
        rows = batch.filter(pa.array(~held_out.mask(batch)))
        for order, text in zip(rows.column("order").to_pylist(), column_bytes(rows.column("text")), strict=True):
            places = index.find(text)
            shared = sorted_unique(places[places >= 0])
            if len(shared):
                orders.append(order)
                n_runs.append(len(places))
                found.append(shared)
    arrays = {
        "orders": np.array(orders, np.int64),
        "n_runs": np.array(n_runs, np.int64),
        "stops": np.cumsum([len(shared) for shared in found], dtype=np.int64),
        "places": np.concatenate([np.empty(0, np.int64), *found]),
    }
    save_arrays(scratch.path("overlap", unit), arrays)


def _shared_runs(scratch: Scratch) -> Iterator[tuple[int, int, Indices]]:
    """Order, number of runs, and places of the shared ones, of each training document that shares any; in order."""
    for unit in range(scratch.n_units):
        found = load_arrays(scratch.path("overlap", unit))
        shared = np.split(found["places"], found["stops"][:-1]) if len(found["stops"]) else []
        yield from zip(found["orders"].tolist(), found["n_runs"].tolist(), shared, strict=True)


def _held_out_texts(scratch: Scratch, held_out: HeldOut) -> Iterator[tuple[int, Bytes]]:
    for unit in range(scratch.n_units):
        found = [
            batch.column("order").to_numpy()[held_out.mask(batch)]
            for batch in scratch.batches(unit, ["order", "repository"])
        ]
        yield from scratch.texts(unit, np.concatenate([np.empty(0, np.int64), *found]))


def _covered_fractions(
    scratch: Scratch, held_out: HeldOut, index: RunIndex, shared: tuple[npt.NDArray[np.bool_], ...]
) -> list[float]:
    """For each choice of runs, the fraction of the words of held-out texts that are inside one of them."""
    n_covered, n_words = [0] * len(shared), 0
    for _, text in _held_out_texts(scratch, held_out):
        n_in_text = len(text_runs(text, 1))
        places = index.find(text)
        for k, is_shared in enumerate(shared):
            starts = np.flatnonzero(is_shared[places])
            covered = np.zeros(n_in_text + 1, np.int64)
            covered[starts] += 1
            covered[starts + index.n_words] -= 1
            n_covered[k] += int(np.count_nonzero(np.cumsum(covered[:-1])))
        n_words += n_in_text
    return [n / max(1, n_words) for n in n_covered]


@cached_by_file(maxsize=1)
def _load_index(path: Path) -> RunIndex:
    return RunIndex.load(path, RUN_WORDS)


def _index_path(scratch: Scratch) -> Path:
    return scratch.path("index", 0)


def _record_path(scratch: Scratch) -> Path:
    return scratch.folder / "overlap.json"
