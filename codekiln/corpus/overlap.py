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
RUN_WORDS = 50  # a match of 50 words is a copy and not a coincidence
MAX_OVERLAP = 0.1  # of the runs of a training document

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
    """What the training documents share with the held-out ones, in words of held-out documents.

    `dropped` are the orders of training documents that share too much. `share_before` and `share` are the fractions of held-out
    words inside a run that a training document has too, before and after these are dropped.
    """

    dropped: list[int]
    share_before: float
    share: float

    def record(self) -> JsonObject:
        """The fields for the manifest."""
        return {"run_words": RUN_WORDS, "share_before": self.share_before, "share": self.share}


def find_overlap(scratch: Scratch, train: Indices, held_out: Indices) -> Overlap:
    """Compares all training documents with the held-out ones, by their orders. Texts are read twice, in batches.

    Memory: 8 bytes per held-out word, and 16 per shared run.
    """
    texts = dict(scratch.texts(held_out))
    index = RunIndex(texts.values(), RUN_WORDS)
    shared: list[Indices] = []  # the places of the runs that each kept training document shares
    dropped: list[int] = []
    is_shared = np.zeros(len(index.values), bool)
    with progress_bar("Corpus: held-out overlap", len(train)) as progress:
        for order, text in scratch.texts(train):
            places = index.find(text)
            found = np.unique(places[places >= 0])
            if len(found):
                is_shared[found] = True
                if np.count_nonzero(places >= 0) >= MAX_OVERLAP * len(places):
                    dropped.append(order)
                else:
                    shared.append(found)
            progress.advance()
    still_shared = np.zeros(len(index.values), bool)
    for found in shared:
        still_shared[found] = True
    return Overlap(
        sorted(dropped), *(_covered_share(texts.values(), index, flags) for flags in (is_shared, still_shared))
    )


def _covered_share(texts: Iterable[str], index: RunIndex, is_shared: npt.NDArray[np.bool_]) -> float:
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
