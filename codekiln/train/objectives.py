"""What a model learns from a piece of a document: pure functions of (ids, rng).

An objective turns a piece into a layout: ids again, and which of them are to be predicted.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import (
    N_FIM_SENTINELS,
    N_SENTINELS_PER_SPAN,
    TokenizedExample,
    causal_mask_example,
    expand_to_words,
    psm_example,
    spm_example,
    spm_v2_example,
)

Ids = npt.NDArray[np.int64]
Span = tuple[int, int]
_NEWLINE = ord("\n")


@dataclass(frozen=True)
class Chunk:
    """Ids of a document or of a part of it, and whether the document begins and ends with it."""

    ids: Ids
    is_start: bool
    is_end: bool


class Objective(Protocol):
    """`max_added_tokens` bounds the ids that a call adds to those of a piece; what would be more is cut from its end.

    `min_chunk_fraction` is the share of a row that the shortest piece of a long document may have: pieces of one length would
    tell by their positions where the last one ends, and a model learns that instead of how a hole is filled.
    """

    @property
    def max_added_tokens(self) -> int: ...

    @property
    def min_chunk_fraction(self) -> float: ...

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample: ...


def left_to_right(chunk: Chunk, tokenizer: Tokenizer) -> TokenizedExample:
    """Every token predicted, and the end of text behind a document; what stands before one is not predicted."""
    before = [tokenizer.bos_id] if chunk.is_start else []
    ids = before + chunk.ids.tolist() + [tokenizer.eos_id] * chunk.is_end
    return TokenizedExample(ids, [0.0] * len(before) + [1.0] * (len(ids) - len(before)))


@dataclass(frozen=True)
class NextToken:
    """Left to right."""

    min_chunk_fraction: float = 1.0

    @property
    def max_added_tokens(self) -> int:
        return 2

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        return left_to_right(chunk, tokenizer)


@dataclass(frozen=True)
class CausalMasking:
    """Spans moved behind the document, each behind its mask, so that they are written with what follows in view (InCoder,
    section 2.1).

    `sampling` "paper" is the text's: a count of spans from a Poisson distribution of mean 1 truncated to [1, 256], each uniform,
    all drawn again where two overlap. "released" is that of the code its authors name: the count is clamped to [1, 255], and
    for more than one span pairs are drawn and taken greedily where they do not overlap; about a fifth of pieces then have
    other counts than the paper's. Masks have no weight in the loss. What more than `RESERVED_SPANS` spans add is cut from
    the end.
    """

    sampling: Literal["paper", "released"] = "paper"
    min_chunk_fraction: float = 1.0

    RESERVED_SPANS = 8  # more come once in a million draws

    @property
    def max_added_tokens(self) -> int:
        return 1 + N_SENTINELS_PER_SPAN * self.RESERVED_SPANS

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        draw = paper_spans if self.sampling == "paper" else released_spans
        example = causal_mask_example(tokenizer, chunk.ids.tolist(), draw(len(chunk.ids), rng), is_start=chunk.is_start)
        most = len(chunk.ids) + self.max_added_tokens
        return TokenizedExample(example.ids[:most], example.loss_weights[:most])


def paper_spans(n: int, rng: np.random.Generator) -> list[Span]:
    """Spans [start, stop) of n tokens, in order, none empty and no two overlapping (InCoder, section 2.1).

    The paper draws all anew until none overlap. What it ends with is uniform over all sets without overlaps, and that is
    drawn here at once: 2 k ends, each above the one before it, or between two spans not below it.
    """
    while n > 0:
        count = int(rng.poisson(1.0))
        if 1 <= count <= min(n, MAX_SPANS["paper"]):
            apart = np.sort(rng.choice(n + count, 2 * count, replace=False))
            ends = (apart - np.arange(2 * count) // 2).tolist()
            return list(zip(ends[::2], ends[1::2], strict=True))
    return []


def released_spans(n: int, rng: np.random.Generator) -> list[Span]:
    """The same as the released code draws them, and no span at all where its one span is empty.

    Of several, those that would be empty are left out: in that code they take a token away.
    """
    count = min(max(int(rng.poisson(1.0)), 1), MAX_SPANS["released"])
    draws = np.sort(rng.random((count**2, 2)), axis=1) * n
    starts, stops = np.floor(draws[:, 0]).astype(int), np.floor(draws[:, 1] + 0.5).astype(int)
    spans: list[Span] = []
    for start, stop in zip(starts.tolist()[::-1], stops.tolist()[::-1], strict=True):
        is_apart = all(stop <= other[0] or other[1] <= start for other in spans)
        if start < stop and is_apart and len(spans) < count:
            spans.append((start, stop))
    return sorted(spans)


MAX_SPANS = {"paper": 256, "released": 255}  # 256 masks exist, and the released code wants one to spare


@dataclass(frozen=True)
class FillInTheMiddle:
    """Left to right, or with a share `fim_rate` cut in three at two uniform places (Bavarian et al., arXiv 2207.14255).

    Told prefix, suffix, middle (PSM), or with a share `fim_spm_rate` in their second form of suffix, prefix, middle (SPM); all of
    it is predicted but the sentinels. Places are `split`: between characters, tokens or lines. It cuts pieces, which is
    their context-level variant. Needs a tokenizer whose prompts are PSM (`tokenizer/infill.py`).
    """

    fim_rate: float = 0.5
    fim_spm_rate: float = 0.5
    split: Literal["characters", "tokens", "lines"] = "characters"
    min_chunk_fraction: float = 0.25

    @property
    def max_added_tokens(self) -> int:
        return N_FIM_SENTINELS + 8 + 1

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        if rng.random() >= self.fim_rate:
            return left_to_right(chunk, tokenizer)
        prefix, middle, suffix = self._parts(chunk.ids, tokenizer, rng)
        write = spm_v2_example if rng.random() < self.fim_spm_rate else psm_example
        room = len(chunk.ids) + self.max_added_tokens - N_FIM_SENTINELS - 1 - len(prefix) - len(middle)
        if room < 0:
            return left_to_right(chunk, tokenizer)
        return write(tokenizer, prefix, middle, suffix[:room])

    def _parts(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> list[list[int]]:
        if self.split == "tokens":
            start, stop = np.sort(rng.integers(0, len(ids) + 1, 2)).tolist()
            return [ids[:start].tolist(), ids[start:stop].tolist(), ids[stop:].tolist()]
        text = tokenizer.decode_bytes(ids.tolist())
        if self.split == "lines":
            places = [0, *(i + 1 for i, byte in enumerate(text) if byte == _NEWLINE), len(text)]
            start, stop = np.sort(rng.integers(0, len(places), 2)).tolist()
            return encode_around(text, (places[start], places[stop]), tokenizer)
        start, stop = np.sort(rng.integers(0, len(text) + 1, 2)).tolist()
        return encode_around(text, (start, stop), tokenizer)


@dataclass(frozen=True)
class SpmInfill:
    """Left to right, or with a share `fim_rate` one hole, its suffix told first. All of it is ours.

    A hole is a run of whole lines with a share `line_rate`, else a run of characters anywhere, of which a share
    `word_rate` is widened to whole words; lengths are drawn uniformly on a logarithmic scale, because editors ask for
    short holes and the papers' uniform ones are mostly long. No hole begins in the first `min_prefix_fraction` of a piece: a prompt
    too shows more of what comes before than of what comes after.
    Holes are cut between characters and what they cut is encoded anew, as a prompt is, so tokens that would have
    crossed the edge of a hole never betray it. Holes are a few tokens of many; `middle_loss_weight` makes up for that.
    """

    fim_rate: float = 0.7
    line_rate: float = 0.5
    word_rate: float = 0.75
    max_lines: int = 4
    max_characters: int = 80
    middle_loss_weight: float = 1.0
    min_prefix_fraction: float = 0.0
    min_chunk_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_prefix_fraction < 1:
            raise ValueError(f"min_prefix_fraction is {self.min_prefix_fraction}: it must be from 0 to below 1")

    @property
    def max_added_tokens(self) -> int:
        return N_FIM_SENTINELS + 8 + 2

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        if rng.random() < self.fim_rate:
            text = tokenizer.decode_bytes(chunk.ids.tolist())
            hole = self._lines(text, rng) if rng.random() < self.line_rate else self._characters(text, rng)
            if hole is not None:
                prefix, middle, suffix = encode_around(text, hole, tokenizer)
                room = len(chunk.ids) + self.max_added_tokens - 2 - N_FIM_SENTINELS - len(prefix) - len(middle)
                if room >= 0:
                    suffix = suffix[:room]
                    return spm_example(
                        tokenizer,
                        prefix,
                        middle,
                        suffix,
                        is_start=chunk.is_start,
                        middle_loss_weight=self.middle_loss_weight,
                    )
        return left_to_right(chunk, tokenizer)

    def _lines(self, text: bytes, rng: np.random.Generator) -> tuple[int, int] | None:
        """Whole lines without the last newline; the first is not blank and not the piece's first, which may be cut."""
        starts = [i + 1 for i in np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE).tolist()]
        first_start = self.min_prefix_fraction * len(text)
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
        start = int(rng.integers(int(self.min_prefix_fraction * (len(text) - length)), len(text) - length))
        stop = start + length
        return expand_to_words(text, start, stop) if rng.random() < self.word_rate else (start, stop)


def encode_around(data: bytes, hole: tuple[int, int], tokenizer: Tokenizer) -> list[list[int]]:
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
