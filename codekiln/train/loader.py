"""Batches as a pure function of (seed, step, shards).

An epoch is planned from the documents' lengths alone, apart or joined. Apart, documents are cut into units that fit a row,
units are shuffled and packed, and do not see each other. Joined is CodeGen's rule: text of several documents that runs on
through a row. Where a batch stands in the plan follows from its step, so any process can make any batch, and a resumed run
reads what an undisturbed one would. B row, T position.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from codekiln.errors import ConfigError
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import TokenizedExample
from codekiln.train.config import Packing
from codekiln.train.objectives import Chunk, Objective
from codekiln.train.prepare import TokenShards

MAX_OPEN_ROWS = 64  # rows that packing holds open; more fill better and cost more time
MIN_CHUNK_TOKENS = 16  # what is left of a document below this is dropped
MIN_CONCAT_TOKENS = 64  # the same where documents are joined (the released code of CodeGen)


@dataclass(frozen=True)
class Batch:
    """ids, targets and documents (B, T) int64, weights (B, T) float32; padding has weight 0 and document -1.

    Without `documents` a token sees all before it in its row: joined rows are causal and nothing else, and on GPUs attended to
    by the fused kernel, which takes no mask. `n_bytes` counts the text behind the predicted targets, for bits per byte.
    """

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    loss_weights: npt.NDArray[np.float32]
    document_ids: npt.NDArray[np.int64] | None
    n_bytes: int


@dataclass(frozen=True)
class _Chunk:
    """Ids [start, stop) of a document; `is_end` where it ends with them."""

    document: int
    start: int
    stop: int
    is_end: bool


@dataclass(frozen=True)
class _EpochPlan:
    """Rows of an epoch in arrays, for corpora of any size: row k has the units `order[ends[k - 1] : ends[k]]`.

    A unit is a row of `chunks` (N, 4): document, start, stop, is_end.
    """

    chunks: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, k: int) -> list[_Chunk]:
        first = int(self.ends[k - 1]) if k else 0
        chosen = self.chunks[self.order[first : int(self.ends[k])]].tolist()
        return [_Chunk(document, start, stop, bool(is_end)) for document, start, stop, is_end in chosen]


class BatchLoader:
    """`batch(step)` for any step, over as many epochs as it takes."""

    def __init__(
        self,
        shards: TokenShards,
        tokenizer: Tokenizer,
        objective: Objective,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        packing: Packing = "packed",
    ) -> None:
        self._shards, self._tokenizer, self._objective = shards, tokenizer, objective
        self._context_length, self._batch_size, self._seed, self._packing = context_length, batch_size, seed, packing
        if packing == "packed":
            capacity = context_length + 1 - objective.max_added_tokens
            if capacity < MIN_CHUNK_TOKENS:
                raise ConfigError(
                    f"context_length is {context_length}: this objective needs at least "
                    f"{context_length + MIN_CHUNK_TOKENS - capacity}"
                )
            self._chunks = _chunk_documents(shards.lengths(), capacity, objective.min_chunk_fraction, seed)
            if not len(self._chunks):
                raise ConfigError(f"no document has {MIN_CHUNK_TOKENS} tokens: use a larger corpus")
            self._lengths = self._chunks[:, 2] - self._chunks[:, 1] + objective.max_added_tokens - 1
        plan = self._pack_best_fit if packing == "packed" else self._concat_and_chunk
        self._epoch_rows = lru_cache(maxsize=2)(plan)
        self._row_counts: list[int] = []  # of the epochs planned so far

    @property
    def sequences_per_epoch(self) -> int:
        """Rows of the first epoch; other shuffles pack a little better or worse."""
        return len(self._epoch_rows(0))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch of a step, which counts from 0, or the part of one of `world_size` ranks that share its rows."""
        rows = self._rows_of(step)
        n = len(rows) // world_size
        return self._collate([self._examples(row, epoch) for row, epoch in rows[rank * n : rank * n + n]])

    def documents(self, step: int) -> list[int]:
        """The numbers of the documents that a step reads, in the order of their shards."""
        return sorted({chunk.document for row, _ in self._rows_of(step) for chunk in row})

    def _rows_of(self, step: int) -> list[tuple[list[_Chunk], int]]:
        """Units of each row of a step, and their epoch."""
        first = step * self._batch_size
        epoch = 0
        while first >= self._n_rows(epoch):
            first -= self._n_rows(epoch)
            epoch += 1
        rows: list[tuple[list[_Chunk], int]] = []
        while len(rows) < self._batch_size:
            plan = self._epoch_rows(epoch)
            stop = min(len(plan), first + self._batch_size - len(rows))
            rows += [(plan.row(k), epoch) for k in range(first, stop)]
            epoch, first = epoch + 1, 0
        return rows

    def _n_rows(self, epoch: int) -> int:
        while epoch >= len(self._row_counts):
            self._row_counts.append(len(self._epoch_rows(len(self._row_counts))))
        return self._row_counts[epoch]

    def _examples(self, row: list[_Chunk], epoch: int) -> list[TokenizedExample]:
        if self._packing == "packed":
            return [self._example(chunk, epoch) for chunk in row]
        pieces = [self._shards.slice(chunk.document, chunk.start, chunk.stop).tolist() for chunk in row]
        ids = [
            i for chunk, piece in zip(row, pieces, strict=True) for i in piece + [self._tokenizer.eos_id] * chunk.is_end
        ]
        return [TokenizedExample(ids, [1.0] * len(ids))]

    def _example(self, chunk: _Chunk, epoch: int) -> TokenizedExample:
        """A unit through the objective."""
        rng = np.random.default_rng((self._seed, epoch, chunk.document, chunk.start))
        ids = self._shards.slice(chunk.document, chunk.start, chunk.stop)
        example = self._objective(Chunk(ids, chunk.start == 0, chunk.is_end), self._tokenizer, rng)
        assert len(example.ids) <= len(ids) + self._objective.max_added_tokens
        return example

    def _collate(self, rows: list[list[TokenizedExample]]) -> Batch:
        shape = (len(rows), self._context_length)
        ids, targets = np.full(shape, self._tokenizer.pad_id), np.full(shape, self._tokenizer.pad_id)
        weights, documents = np.zeros(shape, np.float32), np.full(shape, -1)
        for r, row in enumerate(rows):
            at = 0
            for number, example in enumerate(row):
                n = len(example.ids) - 1
                ids[r, at : at + n], targets[r, at : at + n] = example.ids[:-1], example.ids[1:]
                weights[r, at : at + n] = example.loss_weights[1:]
                documents[r, at : at + n] = number
                at += n
        n_bytes = target_bytes(self._tokenizer, targets, weights)
        return Batch(ids, targets, weights, documents if self._packing == "packed" else None, n_bytes)

    def _pack_best_fit(self, epoch: int) -> _EpochPlan:
        """Units shuffled and packed into rows: each goes into the fullest open row that has room for it."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._chunks))
        useful = MIN_CHUNK_TOKENS + self._objective.max_added_tokens - 2  # room that a unit may still take
        row_of, n_rows = array("q"), 0
        open_rows: list[tuple[int, int]] = []  # (room, row), the fullest first
        for length in _iter_ints(self._lengths[order]):
            at = bisect_left(open_rows, (length, -1))
            if at < len(open_rows):
                room, row = open_rows.pop(at)
            else:
                room, row = self._context_length, n_rows
                n_rows += 1
                if len(open_rows) == MAX_OPEN_ROWS:
                    open_rows.pop(0)
            row_of.append(row)
            if room - length > useful:
                insort(open_rows, (room - length, row))
        return self._shuffled(self._chunks, order, row_of, epoch)

    def _shuffled(
        self, chunks: npt.NDArray[np.int64], order: npt.NDArray[np.int64], row_of: Iterable[int], epoch: int
    ) -> _EpochPlan:
        """Units in an order, each with its row, as rows in another order."""
        rows = np.fromiter(row_of, np.int64, len(order))
        place = np.random.default_rng((self._seed, epoch, 1)).permutation(int(rows.max()) + 1)[rows]
        return _EpochPlan(chunks, order[np.argsort(place, kind="stable")], np.cumsum(np.bincount(place)))

    def _concat_and_chunk(self, epoch: int) -> _EpochPlan:
        """Rows of CodeGen's packing: an end-of-text token behind every document, whole rows of it first, and what is left of
        at least `MIN_CONCAT_TOKENS` run on from document to document. A last row that is not full is dropped."""
        T, lengths = self._context_length, self._shards.lengths()
        order = np.random.default_rng((self._seed, epoch)).permutation(len(lengths))
        parts, row_of, n_rows = array("q"), array("q"), 0
        n_carried = 0  # tokens of the row that is being filled
        carried = array("q")

        def part(document: int, start: int, stop: int, length: int) -> tuple[int, int, int, int]:
            """Ids [start, stop) of a document and the end-of-text token behind it, which has the index `length`."""
            return document, start, min(stop, length), stop == length + 1

        for document, length in zip(_iter_ints(order), _iter_ints(lengths[order]), strict=True):
            rest = (length + 1) // T * T
            for start in range(0, rest, T):
                parts.extend(part(document, start, start + T, length))
                row_of.append(n_rows)
                n_rows += 1
            if length + 1 - rest < MIN_CONCAT_TOKENS:
                continue
            start = rest
            while n_carried + length + 1 - start >= T:
                stop = start + T - n_carried
                carried.extend(part(document, start, stop, length))
                parts.extend(carried)
                row_of.extend([n_rows] * (len(carried) // 4))
                n_rows += 1
                carried, n_carried, start = array("q"), 0, stop
            if start <= length:
                carried.extend(part(document, start, length + 1, length))
                n_carried += length + 1 - start
        if not n_rows:
            raise ConfigError(f"the corpus does not fill a row of {T} tokens: use a larger one or a shorter context")
        chunks = np.frombuffer(parts, np.int64).reshape(-1, 4)
        return self._shuffled(chunks, np.arange(len(chunks)), row_of, epoch)


def target_bytes(tokenizer: Tokenizer, targets: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> int:
    """Bytes of the text behind the targets that have weight."""
    return int(tokenizer.byte_lengths[targets[weights > 0]].sum())


def _iter_ints(numbers: npt.NDArray[np.int64]) -> Iterator[int]:
    """Python's own, made in portions."""
    for start in range(0, len(numbers), 1 << 16):
        yield from numbers[start : start + (1 << 16)].tolist()


def _chunk_documents(
    lengths: npt.NDArray[np.int64], capacity: int, shortest: float, seed: int
) -> npt.NDArray[np.int64]:
    """Documents in units (N, 4) of `shortest * capacity` to `capacity` tokens; a last one that is too short is dropped."""
    low = max(MIN_CHUNK_TOKENS, round(shortest * capacity))
    n_sizes = 1 + lengths // low  # so many fill a document, however small they are drawn
    documents = np.repeat(np.arange(len(lengths)), n_sizes)
    stops = np.cumsum(np.random.default_rng(seed).integers(low, capacity + 1, size=len(documents)))
    firsts = np.cumsum(n_sizes) - n_sizes
    stops -= np.repeat(np.where(firsts > 0, stops[firsts - 1], 0), n_sizes)
    starts = np.where(np.diff(documents, prepend=-1) > 0, 0, np.roll(stops, 1))
    whole = np.repeat(lengths, n_sizes)
    stops = np.minimum(stops, whole)
    chunks = np.stack((documents, starts, stops, stops == whole), axis=1)
    return chunks[stops - starts >= MIN_CHUNK_TOKENS]
