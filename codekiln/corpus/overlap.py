"""Runs of words that documents share with other texts: with the held-out documents, and with benchmarks.

Near-duplicates are whole documents. A document may also hold a part of another one, for example a copied function or a vendored
file that was rewritten. Such parts are found by the runs of words that both have.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codekiln.corpus.scratch import Scratch
from codekiln.corpus.shingles import find_in, make_filter, text_runs
from codekiln.files import JsonObject
from codekiln.progress import progress_bar

HELD_OUT_OVERLAP = "overlaps the held-out split"
RUN_WORDS = 50
# A run that more training documents have is boilerplate, for example a license header, and not a copy of one of them.
MAX_COPIES = 20

Indices = npt.NDArray[np.int64]


class RunIndex:
    """The runs of `n_words` words of some texts."""

    def __init__(self, texts: Iterable[str], n_words: int) -> None:
        runs = [text_runs(text, n_words) for text in texts]
        self.n_words = n_words
        self.values = np.unique(np.concatenate([np.empty(0, np.uint64), *runs]))
        self._filter = make_filter(self.values)

    def find(self, text: str) -> Indices:
        """The place in the index of each run of a text, or -1, in order."""
        places: Indices = find_in(text_runs(text, self.n_words), self.values, self._filter)
        return places


@dataclass(frozen=True)
class Overlap:
    """The runs that training and held-out documents share.

    `dropped` are the orders of training documents that share too much. `fraction_before` and `fraction` are the fractions of
    held-out words inside a run that a training document has too, before and after these are dropped.
    """

    n_held_out: int
    dropped: list[int]
    fraction_before: float
    fraction: float

    def record(self) -> JsonObject:
        """The fields for the manifest."""
        return {"run_words": RUN_WORDS, "fraction_before": self.fraction_before, "fraction": self.fraction}


def find_overlap(scratch: Scratch, train: Indices, held_out: Indices, max_overlap: float | None) -> Overlap:
    """Compares all training documents with the held-out ones, by their orders.

    A training document is dropped if at least `max_overlap` of its runs are in held-out documents and in no more than
    `MAX_COPIES` training documents; None drops nothing. Memory: the held-out texts, three times their runs, and 8 bytes per
    shared run. Training texts are read in batches.
    """
    texts = [text for _, text in scratch.texts(held_out)]
    index = RunIndex(texts, RUN_WORDS)
    shared: list[tuple[int, int, Indices]] = []  # order, number of runs, and places of the shared ones
    with progress_bar("Corpus: held-out overlap", len(train)) as progress:
        for order, text in scratch.texts(train):
            places = index.find(text)
            found = np.unique(places[places >= 0])
            if len(found):
                shared.append((order, len(places), found))
            progress.advance()
    n_documents = np.zeros(len(index.values), np.int64)
    for _, _, found in shared:
        n_documents[found] += 1
    is_copied = n_documents <= MAX_COPIES
    dropped = {
        order
        for order, n_runs, found in shared
        if max_overlap is not None and np.count_nonzero(is_copied[found]) >= max_overlap * n_runs
    }
    is_left = np.zeros(len(index.values), bool)
    for order, _, found in shared:
        if order not in dropped:
            is_left[found] = True
    before, after = (_covered_fraction(texts, index, flags) for flags in (n_documents > 0, is_left))
    return Overlap(len(held_out), sorted(dropped), before, after)


def _covered_fraction(texts: Iterable[str], index: RunIndex, is_shared: npt.NDArray[np.bool_]) -> float:
    """The fraction of the words of texts that are inside a shared run."""
    n_covered = n_words = 0
    for text in texts:
        n_in_text = len(text_runs(text, 1))
        starts = np.flatnonzero(is_shared[index.find(text)])
        covered = np.zeros(n_in_text + 1, np.int64)
        covered[starts] += 1
        covered[starts + index.n_words] -= 1
        n_covered += int(np.count_nonzero(np.cumsum(covered[:-1])))
        n_words += n_in_text
    return n_covered / max(1, n_words)
