"""What a model learns from a piece of a document: pure functions of (ids, rng).

An objective turns ids into a layout: ids again, and which of them are to be predicted. It may add at most `n_added`
ids; what would be more is cut from the end of the right context.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import N_LAYOUT_TOKENS, Layout, training_layout, whole_words

Ids = npt.NDArray[np.int64]
_NEWLINE = ord("\n")


class Objective(Protocol):
    """`n_added` bounds the ids that a call adds to those it is given.

    `shortest_unit` is the share of a row that the shortest piece of a long document may have: pieces of one length would
    tell by their positions where the last one ends, and a model learns that instead of how a hole is filled.
    """

    @property
    def n_added(self) -> int: ...

    @property
    def shortest_unit(self) -> float: ...

    def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout: ...


@dataclass(frozen=True)
class NextToken:
    """Left to right, every token predicted."""

    @property
    def n_added(self) -> int:
        return 0

    @property
    def shortest_unit(self) -> float:
        return 1.0

    def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout:
        return Layout(ids.tolist(), [1.0] * len(ids))


@dataclass(frozen=True)
class InfillMixture:
    """Left to right, or with a share `infill_rate` one hole, its suffix told first. All of it is ours.

    A hole is a run of whole lines with a share `line_rate`, else a run of characters anywhere, of which a share
    `word_rate` is widened to whole words; lengths are drawn uniformly on a logarithmic scale, because editors ask for
    short holes and the papers' uniform ones are mostly long. No hole begins in the first `left_share` of a piece: a prompt
    too shows more of what comes before than of what comes after.
    Holes are cut between characters and what they cut is encoded anew, as a prompt is, so tokens that would have
    crossed the edge of a hole never betray it. Holes are a few tokens of many; `middle_weight` makes up for that.
    """

    infill_rate: float = 0.7
    line_rate: float = 0.5
    word_rate: float = 0.75
    max_lines: int = 4
    max_characters: int = 80
    middle_weight: float = 1.0
    left_share: float = 0.0
    shortest_unit: float = 0.25

    @property
    def n_added(self) -> int:
        return N_LAYOUT_TOKENS + 8

    def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout:
        if rng.random() < self.infill_rate:
            text = tokenizer.decode_bytes(ids.tolist())
            hole = self._lines(text, rng) if rng.random() < self.line_rate else self._characters(text, rng)
            if hole is not None:
                left, middle, right = split_at(text, hole, tokenizer)
                room = len(ids) + self.n_added - N_LAYOUT_TOKENS - len(left) - len(middle)
                if room >= 0:
                    return training_layout(tokenizer, left, middle, right[:room], middle_weight=self.middle_weight)
        return Layout(ids.tolist(), [1.0] * len(ids))

    def _lines(self, text: bytes, rng: np.random.Generator) -> tuple[int, int] | None:
        """Whole lines without the last newline; the first is not blank and not the piece's first, which may be cut."""
        starts = [i + 1 for i in np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE).tolist()]
        first_start = self.left_share * len(text)
        starts = [start for start in starts if first_start <= start < len(text) and text[start] != _NEWLINE]
        if not starts:
            return None
        first = int(rng.integers(len(starts)))
        n_lines = _log_uniform(1, self.max_lines, rng)
        end = starts[first]
        for _ in range(n_lines):
            newline = text.find(b"\n", end)
            if newline == -1:
                return None
            end = newline + 1
        return starts[first], end - 1

    def _characters(self, text: bytes, rng: np.random.Generator) -> tuple[int, int] | None:
        if len(text) < 2:
            return None
        length = _log_uniform(1, min(self.max_characters, len(text) - 1), rng)
        start = int(rng.integers(int(self.left_share * (len(text) - length)), len(text) - length))
        stop = start + length
        return whole_words(text, start, stop) if rng.random() < self.word_rate else (start, stop)


def split_at(data: bytes, hole: tuple[int, int], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids left of, in and right of a hole of bytes, each as its text alone is encoded, between whole characters."""
    start, stop = (_character_start(data, at) for at in hole)
    return [tokenizer.encode(part) for part in (data[:start], data[start:stop], data[stop:])]


def _character_start(data: bytes, at: int) -> int:
    """The nearest place at or before `at` that is not inside a UTF-8 character."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _log_uniform(low: int, high: int, rng: np.random.Generator) -> int:
    """A whole number of [low, high], uniform on a logarithmic scale."""
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
