"""Batches as a pure function of (seed, step, shards).

1. Documents are cut into chunks.
2. The chunks of an epoch are shuffled and packed into sequences, by one of two rules:
   - "packed": best-fit packing. Documents share a sequence and do not see each other.
   - "concat": concat-and-chunk (CodeGen). Documents are one stream of text, without masks.
3. A batch is a range of sequences, and its position in the plan of the epoch follows from its step.
4. The objective turns each chunk into a training example, with a random generator seeded by the chunk.

So any process can make any batch, and a resumed run reads what an uninterrupted one would. B sequence, T position.
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

MAX_OPEN_ROWS = 64  # sequences that packing keeps open; more fill better and take longer
MIN_CHUNK_TOKENS = 16  # a shorter rest of a document is dropped
MIN_CONCAT_TOKENS = 64  # the same for "concat" (the released code of CodeGen)


@dataclass(frozen=True)
class Batch:
    """ids, targets and document_ids (B, T) int64, loss_weights (B, T) float32. Padding has weight 0 and document -1.

    `document_ids` is None for "concat": attention is plain causal there, so that GPUs can use the fused kernel, which
    takes no mask. `n_bytes` counts the text of the predicted targets, for bits per byte.
    """

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    loss_weights: npt.NDArray[np.float32]
    document_ids: npt.NDArray[np.int64] | None
    n_bytes: int


@dataclass(frozen=True)
class _Chunk:
    """Ids [start, stop) of a document. `is_end`: the document ends there."""

    document: int
    start: int
    stop: int
    is_end: bool


@dataclass(frozen=True)
class _EpochPlan:
    """The sequences of an epoch in arrays, for corpora of any size.

    A row of `chunks` (N, 4) is: document, start, stop, is_end. Sequence k has the chunks `order[ends[k - 1] : ends[k]]`.
    """

    chunks: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def sequence(self, k: int) -> list[_Chunk]:
        first = int(self.ends[k - 1]) if k else 0
        chosen = self.chunks[self.order[first : int(self.ends[k])]].tolist()
        return [_Chunk(document, start, stop, bool(is_end)) for document, start, stop, is_end in chosen]


class BatchLoader:
    """`batch(step)` for any step, over as many epochs as needed. Raises ConfigError if the corpus has too little text."""

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
            # An example of n + 1 tokens gives n inputs and n targets.
            capacity = context_length + 1 - objective.max_added_tokens
            if capacity < MIN_CHUNK_TOKENS:
                raise ConfigError(
                    f"train.context_length is {context_length}: "
                    f"this objective needs at least {context_length + MIN_CHUNK_TOKENS - capacity}"
                )
            self._chunks = _chunk_documents(shards.lengths(), capacity, objective.min_chunk_fraction, seed)
            if not len(self._chunks):
                raise ConfigError(f"all documents are shorter than {MIN_CHUNK_TOKENS} tokens: use a larger corpus")
            self._lengths = self._chunks[:, 2] - self._chunks[:, 1] + objective.max_added_tokens - 1
        plan = self._pack_best_fit if packing == "packed" else self._concat_and_chunk
        self._epoch_plan = lru_cache(maxsize=2)(plan)
        self._epoch_lengths: list[int] = []  # sequences of the epochs planned so far

    @property
    def sequences_per_epoch(self) -> int:
        """Sequences of the first epoch. Other epochs pack slightly better or worse."""
        return len(self._epoch_plan(0))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch of a step, which counts from 0, or the part of one of `world_size` ranks that share it."""
        sequences = self._sequences_of(step)
        n = len(sequences) // world_size
        return self._collate([self._examples(chunks, epoch) for chunks, epoch in sequences[rank * n : rank * n + n]])

    def documents(self, step: int) -> list[int]:
        """The numbers of the documents that a step reads, in the order of the shards."""
        return sorted({chunk.document for chunks, _ in self._sequences_of(step) for chunk in chunks})

    def _sequences_of(self, step: int) -> list[tuple[list[_Chunk], int]]:
        """The chunks of each sequence of a step, and their epoch."""
        first = step * self._batch_size
        epoch = 0
        while first >= self._epoch_length(epoch):
            first -= self._epoch_length(epoch)
            epoch += 1
        sequences: list[tuple[list[_Chunk], int]] = []
        while len(sequences) < self._batch_size:
            plan = self._epoch_plan(epoch)
            stop = min(len(plan), first + self._batch_size - len(sequences))
            sequences += [(plan.sequence(k), epoch) for k in range(first, stop)]
            epoch, first = epoch + 1, 0
        return sequences

    def _epoch_length(self, epoch: int) -> int:
        while epoch >= len(self._epoch_lengths):
            self._epoch_lengths.append(len(self._epoch_plan(len(self._epoch_lengths))))
        return self._epoch_lengths[epoch]

    def _examples(self, chunks: list[_Chunk], epoch: int) -> list[TokenizedExample]:
        """The examples of a sequence: one per chunk if packed, one in total if concatenated."""
        if self._packing == "packed":
            return [self._example(chunk, epoch) for chunk in chunks]
        ids: list[int] = []
        for chunk in chunks:
            ids += self._shards.slice(chunk.document, chunk.start, chunk.stop).tolist()
            ids += [self._tokenizer.eos_id] * chunk.is_end
        return [TokenizedExample(ids, [1.0] * len(ids))]

    def _example(self, chunk: _Chunk, epoch: int) -> TokenizedExample:
        """The objective's example of a chunk."""
        rng = np.random.default_rng((self._seed, epoch, chunk.document, chunk.start))
        ids = self._shards.slice(chunk.document, chunk.start, chunk.stop)
        example = self._objective(Chunk(ids, chunk.start == 0, chunk.is_end), self._tokenizer, rng)
        assert len(example.ids) <= len(ids) + self._objective.max_added_tokens
        return example

    def _collate(self, sequences: list[list[TokenizedExample]]) -> Batch:
        """Examples next to each other in each sequence, padded to the context length."""
        shape = (len(sequences), self._context_length)  # (B, T)
        ids, targets = np.full(shape, self._tokenizer.pad_id), np.full(shape, self._tokenizer.pad_id)
        loss_weights, document_ids = np.zeros(shape, np.float32), np.full(shape, -1)
        for b, examples in enumerate(sequences):
            at = 0
            for number, example in enumerate(examples):
                n = len(example.ids) - 1
                ids[b, at : at + n], targets[b, at : at + n] = example.ids[:-1], example.ids[1:]
                loss_weights[b, at : at + n] = example.loss_weights[1:]
                document_ids[b, at : at + n] = number
                at += n
        n_bytes = target_bytes(self._tokenizer, targets, loss_weights)
        return Batch(ids, targets, loss_weights, document_ids if self._packing == "packed" else None, n_bytes)

    def _pack_best_fit(self, epoch: int) -> _EpochPlan:
        """Best-fit packing: shuffled chunks, each put into the open sequence that it fills best."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._chunks))
        useful = MIN_CHUNK_TOKENS + self._objective.max_added_tokens - 2  # the largest room that no chunk can use
        row_of, n_rows = array("q"), 0
        open_rows: list[tuple[int, int]] = []  # (room, row), sorted: the fullest first
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
        return self._shuffle_rows(self._chunks, order, row_of, epoch)

    def _shuffle_rows(
        self, chunks: npt.NDArray[np.int64], order: npt.NDArray[np.int64], row_of: Iterable[int], epoch: int
    ) -> _EpochPlan:
        """The plan of chunks in `order`, each in its row, with the rows in random order."""
        rows = np.fromiter(row_of, np.int64, len(order))
        place = np.random.default_rng((self._seed, epoch, 1)).permutation(int(rows.max()) + 1)[rows]
        return _EpochPlan(chunks, order[np.argsort(place, kind="stable")], np.cumsum(np.bincount(place)))

    def _concat_and_chunk(self, epoch: int) -> _EpochPlan:
        """Concat-and-chunk as in CodeGen: an end-of-text token follows every document. Each document is cut into full
        sequences first; rests of at least `MIN_CONCAT_TOKENS` are concatenated. An incomplete last sequence is dropped."""
        T, lengths = self._context_length, self._shards.lengths()
        order = np.random.default_rng((self._seed, epoch)).permutation(len(lengths))
        parts, row_of, n_rows = array("q"), array("q"), 0
        n_carried = 0  # tokens of the sequence that is being filled
        carried = array("q")

        def part(document: int, start: int, stop: int, length: int) -> tuple[int, int, int, int]:
            """Ids [start, stop) of a document. The end-of-text token after it has the index `length`."""
            return document, start, min(stop, length), stop == length + 1

        for document, length in zip(_iter_ints(order), _iter_ints(lengths[order]), strict=True):
            rest = (length + 1) // T * T  # where the part that fills no sequence begins
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
            raise ConfigError(
                f"the corpus has fewer than one sequence of {T} tokens: use more text or a shorter context"
            )
        chunks = np.frombuffer(parts, np.int64).reshape(-1, 4)
        return self._shuffle_rows(chunks, np.arange(len(chunks)), row_of, epoch)


def target_bytes(tokenizer: Tokenizer, targets: npt.NDArray[np.int64], loss_weights: npt.NDArray[np.float32]) -> int:
    """Bytes of the text of the targets that have weight."""
    return int(tokenizer.byte_lengths[targets[loss_weights > 0]].sum())


def _iter_ints(numbers: npt.NDArray[np.int64]) -> Iterator[int]:
    """Python integers, converted in portions so that memory stays small."""
    for start in range(0, len(numbers), 1 << 16):
        yield from numbers[start : start + (1 << 16)].tolist()


def _chunk_documents(
    lengths: npt.NDArray[np.int64], capacity: int, min_fraction: float, seed: int
) -> npt.NDArray[np.int64]:
    """Documents cut into chunks (N, 4) of `min_fraction * capacity` to `capacity` tokens, of uniform random lengths.

    The last chunk of a document may be shorter; it is dropped below `MIN_CHUNK_TOKENS`. All documents are cut at once: each
    gets more than enough random lengths, and chunks that begin after its end are dropped as well.
    """
    low = max(MIN_CHUNK_TOKENS, round(min_fraction * capacity))
    n_sizes = 1 + lengths // low  # upper bound on the number of chunks of each document
    documents = np.repeat(np.arange(len(lengths)), n_sizes)  # of each chunk
    stops = np.cumsum(np.random.default_rng(seed).integers(low, capacity + 1, size=len(documents)))
    firsts = np.cumsum(n_sizes) - n_sizes  # index of the first chunk of each document
    stops -= np.repeat(np.where(firsts > 0, stops[firsts - 1], 0), n_sizes)  # now relative to the document
    starts = np.where(np.diff(documents, prepend=-1) > 0, 0, np.roll(stops, 1))
    ends = np.repeat(lengths, n_sizes)
    stops = np.minimum(stops, ends)
    chunks = np.stack((documents, starts, stops, stops == ends), axis=1)
    return chunks[stops - starts >= MIN_CHUNK_TOKENS]
