"""Objectives: how a chunk of a document becomes a training example. Pure functions of (ids, random generator)."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from codekiln.errors import ConfigError
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import (
    N_FIM_SENTINELS,
    N_SENTINELS_PER_SPAN,
    PSM,
    TokenizedExample,
    boundary_before,
    expand_to_words,
    require_causal_mask,
    require_fim,
    require_spm,
)

Ids = npt.NDArray[np.int64]
Span = tuple[int, int]
_NEWLINE = ord("\n")
# The parts around a hole are encoded separately, which may take more tokens than the uncut chunk had.
_REENCODING_TOKENS = 8
_WORD_RATE = 0.75  # of character holes, that are extended to whole words


@dataclass(frozen=True)
class Chunk:
    """Consecutive ids of a document, and whether the document begins and ends with them."""

    ids: Ids
    is_start: bool
    is_end: bool


class Objective(Protocol):
    """Turns a chunk into ids and their loss weights.

    `max_added_tokens` limits the ids that a call adds to those of the chunk; the example is cut to that length.
    `min_chunk_fraction` is the length of the shortest chunk of a long document, as a fraction of a sequence. If all chunks
    had the same length, the model could learn where the middle ends from its position.
    """

    @property
    def max_added_tokens(self) -> int: ...

    @property
    def min_chunk_fraction(self) -> float: ...

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample: ...


def left_to_right(chunk: Chunk, tokenizer: Tokenizer) -> TokenizedExample:
    """Predicts every token, and the end of text after a document. The token before a document is not predicted."""
    bos = [tokenizer.bos_id] if chunk.is_start else []
    ids = bos + chunk.ids.tolist() + [tokenizer.eos_id] * chunk.is_end
    return TokenizedExample(ids, [0.0] * len(bos) + [1.0] * (len(ids) - len(bos)))


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Next-token prediction, left to right."""

    min_chunk_fraction: float = 1.0

    @property
    def max_added_tokens(self) -> int:
        return 2

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        return left_to_right(chunk, tokenizer)


@dataclass(frozen=True, kw_only=True)
class CausalMasking:
    """Moves spans to the end of the document, each after its mask, so that they are predicted with the suffix in view
    (InCoder, section 2.1).

    `sampling` "paper" follows the text: the number of spans is Poisson with mean 1, truncated to [1, 256], and spans are
    uniform without overlaps. "released" follows the code that the authors name: the number is clamped to [1, 255], and of
    several spans, pairs are accepted greedily if they do not overlap. About a fifth of the chunks then have another number
    of spans than in the paper. Masks have loss weight 0. The tokens that more than `RESERVED_SPANS` spans add are cut off.
    """

    sampling: Literal["paper", "released"] = "paper"
    min_chunk_fraction: float = 1.0

    RESERVED_SPANS = 8  # the probability of more is about 1e-6

    @property
    def max_added_tokens(self) -> int:
        return 1 + N_SENTINELS_PER_SPAN * self.RESERVED_SPANS

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        infill_format = require_causal_mask(tokenizer.infill_format)
        sample_spans = paper_spans if self.sampling == "paper" else released_spans
        spans = sample_spans(len(chunk.ids), rng)
        example = infill_format.example(chunk.ids.tolist(), spans, is_start=chunk.is_start)
        max_tokens = len(chunk.ids) + self.max_added_tokens
        return TokenizedExample(example.ids[:max_tokens], example.loss_weights[:max_tokens])


def paper_spans(n: int, rng: np.random.Generator) -> list[Span]:
    """Spans [start, stop) of n tokens, in order, none empty and no two overlapping (InCoder, section 2.1).

    The paper uses rejection sampling: it draws all spans again until none overlap. The result is uniform over all sets of
    spans without overlaps, so this function samples such a set directly. A set of k spans is a sequence of 2 k ends that
    increases within a span and does not decrease between spans; subtracting 0, 0, 1, 1, 2, 2, ... from 2 k distinct sorted
    numbers below n + k gives each such sequence exactly once.
    """
    while n > 0:
        count = int(rng.poisson(1.0))
        if 1 <= count <= min(n, MAX_SPANS["paper"]):
            distinct = np.sort(rng.choice(n + count, 2 * count, replace=False))
            ends = (distinct - np.arange(2 * count) // 2).tolist()
            return list(zip(ends[::2], ends[1::2], strict=True))
    return []


def released_spans(n: int, rng: np.random.Generator) -> list[Span]:
    """Spans as the released code samples them; none if its only span is empty.

    Of several spans, empty ones are left out: the released code would lose a token there.
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


MAX_SPANS = {"paper": 256, "released": 255}  # there are 256 masks, and the released code keeps one unused


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle:
    """Fill in the middle (Bavarian et al., arXiv 2207.14255): chunks are cut at two uniform positions with probability
    `fim_rate`, and are left-to-right examples otherwise.

    Cut chunks are in PSM order, or in SPMv2 with probability `fim_spm_rate`. All tokens but the sentinels are predicted.
    `split` says what positions are between: characters, tokens or lines. Cutting chunks instead of documents is the
    context-level variant of the paper. Needs a tokenizer with the PSM format, or with CodeGen2's, which has no SPMv2.
    """

    fim_rate: float = 0.5
    fim_spm_rate: float = 0.5
    split: Literal["characters", "tokens", "lines"] = "characters"
    min_chunk_fraction: float = 0.25

    @property
    def max_added_tokens(self) -> int:
        return N_FIM_SENTINELS + 1 + _REENCODING_TOKENS  # 1: end of text, or the start token of a family that has one

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        infill_format = require_fim(tokenizer.infill_format)
        if rng.random() >= self.fim_rate:
            return left_to_right(chunk, tokenizer)
        prefix, middle, suffix = self._parts(chunk.ids, tokenizer, rng)
        is_spm_v2 = rng.random() < self.fim_spm_rate
        room = len(chunk.ids) + self.max_added_tokens - N_FIM_SENTINELS - 1 - len(prefix) - len(middle)
        if room < 0:
            return left_to_right(chunk, tokenizer)
        suffix = suffix[:room]
        if is_spm_v2 and isinstance(infill_format, PSM):
            example = infill_format.spm_v2_example(prefix, middle, suffix)
        else:
            example = infill_format.example(prefix, middle, suffix)
        if tokenizer.start_id is None:
            return example
        # Every prompt of these families begins with the start token, also one that begins inside of a document.
        return TokenizedExample([tokenizer.start_id, *example.ids], [0.0, *example.loss_weights])

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


@dataclass(frozen=True, kw_only=True)
class SpmInfill:
    """One hole per chunk in SPM order with probability `fim_rate`, left-to-right examples otherwise. All numbers are ours.

    A hole is a run of whole lines with probability `line_rate`. Otherwise it is a run of characters anywhere, extended to
    whole words three times out of four. Lengths are log-uniform, because editors ask for short holes, and the uniform
    ones of the papers are mostly long. No hole begins in the first `min_prefix_fraction` of a chunk, because a prompt has
    more prefix than suffix. The parts around a hole are encoded separately, as in a prompt: a token that crosses the edge
    of a hole would reveal it. Middles are few tokens of many, and `middle_loss_weight` compensates for that.
    """

    fim_rate: float = 0.7
    line_rate: float = 0.5
    max_lines: int = 4
    max_characters: int = 80
    middle_loss_weight: float = 1.0
    min_prefix_fraction: float = 0.0
    min_chunk_fraction: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_prefix_fraction < 1:
            raise ConfigError(
                f"min_prefix_fraction is {self.min_prefix_fraction}: it must be at least 0 and less than 1"
            )

    @property
    def max_added_tokens(self) -> int:
        return N_FIM_SENTINELS + 2 + _REENCODING_TOKENS  # 2: the ends of text before and after

    def __call__(self, chunk: Chunk, tokenizer: Tokenizer, rng: np.random.Generator) -> TokenizedExample:
        infill_format = require_spm(tokenizer.infill_format)
        if rng.random() < self.fim_rate:
            text = tokenizer.decode_bytes(chunk.ids.tolist())
            hole = self._lines(text, rng) if rng.random() < self.line_rate else self._characters(text, rng)
            if hole is not None:
                prefix, middle, suffix = encode_around(text, hole, tokenizer)
                room = len(chunk.ids) + self.max_added_tokens - 2 - N_FIM_SENTINELS - len(prefix) - len(middle)
                if room >= 0:
                    return infill_format.example(
                        prefix,
                        middle,
                        suffix[:room],
                        is_start=chunk.is_start,
                        middle_loss_weight=self.middle_loss_weight,
                    )
        return left_to_right(chunk, tokenizer)

    def _lines(self, text: bytes, rng: np.random.Generator) -> tuple[int, int] | None:
        """Whole lines without the last line end. The first is not blank, nor the first of the chunk, which may be cut."""
        starts = [i + 1 for i in np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE).tolist()]
        first_start = self.min_prefix_fraction * len(text)
        starts = [start for start in starts if first_start <= start < len(text) and text[start] not in b"\r\n"]
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
        return starts[first], boundary_before(text, end - 1)

    def _characters(self, text: bytes, rng: np.random.Generator) -> tuple[int, int] | None:
        if len(text) < 2:
            return None
        length = _log_uniform(1, min(self.max_characters, len(text) - 1), rng)
        start = int(rng.integers(int(self.min_prefix_fraction * (len(text) - length)), len(text) - length))
        stop = start + length
        return expand_to_words(text, start, stop) if rng.random() < _WORD_RATE else (start, stop)


def encode_around(data: bytes, hole: tuple[int, int], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of prefix, middle and suffix of a hole of bytes, each encoded separately. No character or line end is cut."""
    start, stop = (boundary_before(data, at) for at in hole)
    return tokenizer.encode_batch([data[:start], data[start:stop], data[stop:]])


def _log_uniform(low: int, high: int, rng: np.random.Generator) -> int:
    """An integer in [low, high], uniform on a logarithmic scale."""
    return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))
