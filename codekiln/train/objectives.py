"""What a model learns from a piece of a document: pure functions of (ids, rng).

An objective turns a piece into a layout: ids again, and which of them are to be predicted.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import (
    N_LAYOUT_TOKENS,
    N_MASK_TOKENS,
    Layout,
    masked_layout,
    psm_layout,
    spm_layout,
    training_layout,
    whole_words,
)

Ids = npt.NDArray[np.int64]
Span = tuple[int, int]
_NEWLINE = ord("\n")


@dataclass(frozen=True)
class Piece:
    """Ids of a document or of a part of it, and whether the document begins and ends with it."""

    ids: Ids
    is_start: bool
    is_end: bool


class Objective(Protocol):
    """`n_added` bounds the ids that a call adds to those of a piece; what would be more is cut from its end.

    `shortest_unit` is the share of a row that the shortest piece of a long document may have: pieces of one length would
    tell by their positions where the last one ends, and a model learns that instead of how a hole is filled.
    """

    @property
    def n_added(self) -> int: ...

    @property
    def shortest_unit(self) -> float: ...

    def __call__(self, piece: Piece, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout: ...


def left_to_right(piece: Piece, tokenizer: Tokenizer) -> Layout:
    """Every token predicted, and the end of text behind a document; what stands before one is not predicted."""
    before = [tokenizer.bos] if piece.is_start else []
    ids = before + piece.ids.tolist() + [tokenizer.end_of_text] * piece.is_end
    return Layout(ids, [0.0] * len(before) + [1.0] * (len(ids) - len(before)))


@dataclass(frozen=True)
class NextToken:
    """Left to right."""

    shortest_unit: float = 1.0

    @property
    def n_added(self) -> int:
        return 2

    def __call__(self, piece: Piece, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout:
        return left_to_right(piece, tokenizer)


@dataclass(frozen=True)
class CausalMasking:
    """Spans moved behind the document, each behind its mask, so that they are written with what follows in view (InCoder,
    section 2.1).

    `form` "paper" is the text's: a count of spans from a Poisson distribution of mean 1 truncated to [1, 256], each uniform,
    all drawn again where two overlap. "released" is that of the code its authors name: the count is clamped to [1, 255], and
    for more than one span pairs are drawn and taken greedily where they do not overlap; about a fifth of pieces then have
    other counts than the paper's. Masks have no weight in the loss. What more than `RESERVED_SPANS` spans add is cut from
    the end.
    """

    form: Literal["paper", "released"] = "paper"
    shortest_unit: float = 1.0

    RESERVED_SPANS = 8  # more come once in a million draws

    @property
    def n_added(self) -> int:
        return 1 + N_MASK_TOKENS * self.RESERVED_SPANS

    def __call__(self, piece: Piece, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout:
        draw = paper_spans if self.form == "paper" else released_spans
        layout = masked_layout(tokenizer, piece.ids.tolist(), draw(len(piece.ids), rng), is_start=piece.is_start)
        most = len(piece.ids) + self.n_added
        return Layout(layout.ids[:most], layout.weights[:most])


def paper_spans(n: int, rng: np.random.Generator) -> list[Span]:
    """Spans [start, stop) of n tokens, in order, none empty and no two overlapping (InCoder, section 2.1).

    The paper draws all anew until none overlap. What it ends with is uniform over all sets without overlaps, and that is
    drawn here at once: 2 k ends, each above the one before it, or between two spans not below it.
    """
    while n > 0:
        count = int(rng.poisson(1.0))
        if 1 <= count <= min(n, MOST_SPANS["paper"]):
            apart = np.sort(rng.choice(n + count, 2 * count, replace=False))
            ends = (apart - np.arange(2 * count) // 2).tolist()
            return list(zip(ends[::2], ends[1::2], strict=True))
    return []


def released_spans(n: int, rng: np.random.Generator) -> list[Span]:
    """The same as the released code draws them, and no span at all where its one span is empty.

    Of several, those that would be empty are left out: in that code they take a token away.
    """
    count = min(max(int(rng.poisson(1.0)), 1), MOST_SPANS["released"])
    draws = np.sort(rng.random((count**2, 2)), axis=1) * n
    starts, stops = np.floor(draws[:, 0]).astype(int), np.floor(draws[:, 1] + 0.5).astype(int)
    spans: list[Span] = []
    for start, stop in zip(starts.tolist()[::-1], stops.tolist()[::-1], strict=True):
        is_apart = all(stop <= other[0] or other[1] <= start for other in spans)
        if start < stop and is_apart and len(spans) < count:
            spans.append((start, stop))
    return sorted(spans)


MOST_SPANS = {"paper": 256, "released": 255}  # 256 masks exist, and the released code wants one to spare


@dataclass(frozen=True)
class FillInTheMiddle:
    """Left to right, or with a share `rate` cut in three at two uniform places (Bavarian et al., arXiv 2207.14255).

    Told prefix, suffix, middle (PSM), or with a share `spm_rate` in their second form of suffix, prefix, middle (SPM); all of
    it is predicted but the sentinels. Places are `split`: between characters, tokens or lines. It cuts pieces, which is
    their context-level variant. Needs a tokenizer whose prompts are PSM (`tokenizer/infill.py`).
    """

    rate: float = 0.5
    spm_rate: float = 0.5
    split: Literal["characters", "tokens", "lines"] = "characters"
    shortest_unit: float = 0.25

    @property
    def n_added(self) -> int:
        return N_LAYOUT_TOKENS + 8 + 1

    def __call__(self, piece: Piece, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout:
        if rng.random() >= self.rate:
            return left_to_right(piece, tokenizer)
        left, middle, right = self._parts(piece.ids, tokenizer, rng)
        write = spm_layout if rng.random() < self.spm_rate else psm_layout
        room = len(piece.ids) + self.n_added - N_LAYOUT_TOKENS - 1 - len(left) - len(middle)
        if room < 0:
            return left_to_right(piece, tokenizer)
        return write(tokenizer, left, middle, right[:room])

    def _parts(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> list[list[int]]:
        if self.split == "tokens":
            start, stop = np.sort(rng.integers(0, len(ids) + 1, 2)).tolist()
            return [ids[:start].tolist(), ids[start:stop].tolist(), ids[stop:].tolist()]
        text = tokenizer.decode_bytes(ids.tolist())
        if self.split == "lines":
            places = [0, *(i + 1 for i, byte in enumerate(text) if byte == _NEWLINE), len(text)]
            start, stop = np.sort(rng.integers(0, len(places), 2)).tolist()
            return split_at(text, (places[start], places[stop]), tokenizer)
        start, stop = np.sort(rng.integers(0, len(text) + 1, 2)).tolist()
        return split_at(text, (start, stop), tokenizer)


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

    def __post_init__(self) -> None:
        if not 0 <= self.left_share < 1:
            raise ValueError(f"left_share is {self.left_share}: it must be from 0 to below 1")

    @property
    def n_added(self) -> int:
        return N_LAYOUT_TOKENS + 8 + 2

    def __call__(self, piece: Piece, tokenizer: Tokenizer, rng: np.random.Generator) -> Layout:
        if rng.random() < self.infill_rate:
            text = tokenizer.decode_bytes(piece.ids.tolist())
            hole = self._lines(text, rng) if rng.random() < self.line_rate else self._characters(text, rng)
            if hole is not None:
                left, middle, right = split_at(text, hole, tokenizer)
                room = len(piece.ids) + self.n_added - 2 - N_LAYOUT_TOKENS - len(left) - len(middle)
                if room >= 0:
                    right = right[:room]
                    return training_layout(
                        tokenizer, left, middle, right, is_start=piece.is_start, middle_weight=self.middle_weight
                    )
        return left_to_right(piece, tokenizer)

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
    return tokenizer.encode_batch([data[:start], data[start:stop], data[stop:]])


def _character_start(data: bytes, at: int) -> int:
    """The nearest place at or before `at` that is not inside a UTF-8 character."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _log_uniform(low: int, high: int, rng: np.random.Generator) -> int:
    """A whole number of [low, high], uniform on a logarithmic scale."""
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
