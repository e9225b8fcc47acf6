"""Batches as a pure function of (seed, step, shards).

An epoch is planned from the documents' lengths alone, apart or joined. Apart, documents are cut into units that fit a row,
units are shuffled and packed, and do not see each other. Joined is CodeGen's rule: text of several documents that runs on
through a row. Where a batch stands in the plan follows from its step, so any process can make any batch, and a resumed run
reads what an undisturbed one would. B row, T position.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import Layout
from codekiln.train.objectives import Objective, Piece
from codekiln.train.prepare import Shards

OPEN_ROWS = 64  # rows that packing holds open; more fill better and cost more time
MIN_UNIT_TOKENS = 16  # what is left of a document below this is dropped
MIN_JOINED_TOKENS = 64  # the same where documents are joined (the released code of CodeGen)

Packing = Literal["apart", "joined"]


@dataclass(frozen=True)
class Batch:
    """ids, targets and documents (B, T) int64, weights (B, T) float32; padding has weight 0 and document -1.

    `n_bytes` counts the text behind the predicted targets, for bits per byte.
    """

    ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    documents: npt.NDArray[np.int64]
    n_bytes: int


@dataclass(frozen=True)
class _Unit:
    """Ids [start, stop) of a document; `is_end` where it ends with them."""

    document: int
    start: int
    stop: int
    is_end: bool


class Loader:
    """`batch(step)` for any step, over as many epochs as it takes."""

    def __init__(
        self,
        shards: Shards,
        tokenizer: Tokenizer,
        objective: Objective,
        *,
        context_length: int,
        rows: int,
        seed: int,
        packing: Packing = "apart",
    ) -> None:
        self._shards, self._tokenizer, self._objective = shards, tokenizer, objective
        self._context_length, self._rows, self._seed, self._packing = context_length, rows, seed, packing
        if packing == "apart":
            capacity = context_length + 1 - objective.n_added
            if capacity < MIN_UNIT_TOKENS:
                raise ValueError(
                    f"context_length is {context_length}: this objective needs at least "
                    f"{context_length + MIN_UNIT_TOKENS - capacity}"
                )
            self._units = _cut(shards.lengths(), capacity, objective.shortest_unit, seed)
            if not self._units:
                raise ValueError(f"no document has {MIN_UNIT_TOKENS} tokens: use a larger corpus")
            self._lengths = np.array([unit.stop - unit.start + objective.n_added - 1 for unit in self._units], np.int64)
        plan = self._packed if packing == "apart" else self._joined
        self._epoch_rows = lru_cache(maxsize=2)(plan)
        self._row_counts: list[int] = []  # of the epochs planned so far

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first epoch; other shuffles pack a little better or worse."""
        return len(self._epoch_rows(0))

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of a step, which counts from 0, or the `part[0]`-th of `part[1]` equal parts of its rows."""
        rows = self._rows_of(step)
        n = len(rows) // part[1]
        return self._collate([self._layouts(row, epoch) for row, epoch in rows[part[0] * n : part[0] * n + n]])

    def documents(self, step: int) -> list[int]:
        """The numbers of the documents that a step reads, in the order of their shards."""
        return sorted({unit.document for row, _ in self._rows_of(step) for unit in row})

    def _rows_of(self, step: int) -> list[tuple[list[_Unit], int]]:
        """Units of each row of a step, and their epoch."""
        first = step * self._rows
        epoch = 0
        while first >= self._n_rows(epoch):
            first -= self._n_rows(epoch)
            epoch += 1
        rows: list[tuple[list[_Unit], int]] = []
        while len(rows) < self._rows:
            plan = self._epoch_rows(epoch)
            rows += [(row, epoch) for row in plan[first : first + self._rows - len(rows)]]
            epoch, first = epoch + 1, 0
        return rows

    def _n_rows(self, epoch: int) -> int:
        while epoch >= len(self._row_counts):
            self._row_counts.append(len(self._epoch_rows(len(self._row_counts))))
        return self._row_counts[epoch]

    def _layouts(self, row: list[_Unit], epoch: int) -> list[Layout]:
        if self._packing == "apart":
            return [self._layout(unit, epoch) for unit in row]
        pieces = [self._shards.slice(unit.document, unit.start, unit.stop).tolist() for unit in row]
        ids = [
            i
            for unit, piece in zip(row, pieces, strict=True)
            for i in piece + [self._tokenizer.end_of_text] * unit.is_end
        ]
        return [Layout(ids, [1.0] * len(ids))]

    def _layout(self, unit: _Unit, epoch: int) -> Layout:
        """A unit through the objective."""
        rng = np.random.default_rng((self._seed, epoch, unit.document, unit.start))
        ids = self._shards.slice(unit.document, unit.start, unit.stop)
        layout = self._objective(Piece(ids, unit.start == 0, unit.is_end), self._tokenizer, rng)
        assert len(layout.ids) <= len(ids) + self._objective.n_added
        return layout

    def _collate(self, rows: list[list[Layout]]) -> Batch:
        shape = (len(rows), self._context_length)
        ids, targets = np.full(shape, self._tokenizer.pad), np.full(shape, self._tokenizer.pad)
        weights, documents = np.zeros(shape, np.float32), np.full(shape, -1)
        for r, row in enumerate(rows):
            at = 0
            for number, layout in enumerate(row):
                n = len(layout.ids) - 1
                ids[r, at : at + n], targets[r, at : at + n] = layout.ids[:-1], layout.ids[1:]
                weights[r, at : at + n] = layout.weights[1:]
                documents[r, at : at + n] = number
                at += n
        n_bytes = int(self._tokenizer.byte_lengths[targets[weights > 0]].sum())
        return Batch(ids, targets, weights, documents, n_bytes)

    def _packed(self, epoch: int) -> list[list[_Unit]]:
        """Units shuffled and packed into rows: each goes into the fullest open row that has room for it."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._units))
        rows: list[list[int]] = []
        open_rows: list[tuple[int, int]] = []  # (room, row)
        for unit, length in zip(order.tolist(), self._lengths[order].tolist(), strict=True):
            fitting = [entry for entry in open_rows if entry[0] >= length]
            if fitting:
                room, row = min(fitting)
                open_rows.remove((room, row))
            else:
                room, row = self._context_length, len(rows)
                rows.append([])
                if len(open_rows) == OPEN_ROWS:
                    open_rows.remove(min(open_rows))
            rows[row].append(unit)
            if room - length > MIN_UNIT_TOKENS + self._objective.n_added - 2:
                open_rows.append((room - length, row))
        shuffled = np.random.default_rng((self._seed, epoch, 1)).permutation(len(rows))
        return [[self._units[unit] for unit in rows[row]] for row in shuffled.tolist()]

    def _joined(self, epoch: int) -> list[list[_Unit]]:
        """Rows of CodeGen's packing: an end-of-text token behind every document, whole rows of it first, and what is left of
        at least `MIN_JOINED_TOKENS` run on from document to document. A last row that is not full is dropped."""
        T, lengths = self._context_length, self._shards.lengths()
        order = np.random.default_rng((self._seed, epoch)).permutation(len(lengths))
        rows: list[list[_Unit]] = []
        carried: list[_Unit] = []
        n_carried = 0
        for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
            rest = (length + 1) // T * T
            rows += [[_part(document, start, start + T, length)] for start in range(0, rest, T)]
            if length + 1 - rest < MIN_JOINED_TOKENS:
                continue
            start = rest
            while n_carried + length + 1 - start >= T:
                stop = start + T - n_carried
                rows.append([*carried, _part(document, start, stop, length)])
                carried, n_carried, start = [], 0, stop
            if start <= length:
                carried.append(_part(document, start, length + 1, length))
                n_carried += length + 1 - start
        if not rows:
            raise ValueError(f"the corpus does not fill a row of {T} tokens: use a larger one or a shorter context")
        shuffled = np.random.default_rng((self._seed, epoch, 1)).permutation(len(rows))
        return [rows[row] for row in shuffled.tolist()]


def _part(document: int, start: int, stop: int, length: int) -> _Unit:
    """Ids [start, stop) of a document and the end-of-text token behind it, which has the index `length`."""
    return _Unit(document, start, min(stop, length), stop == length + 1)


def _cut(lengths: npt.NDArray[np.int64], capacity: int, shortest: float, seed: int) -> list[_Unit]:
    """Documents in pieces of `shortest * capacity` to `capacity` tokens; a last piece that is too short is dropped."""
    low = max(MIN_UNIT_TOKENS, round(shortest * capacity))
    units = []
    for document, length in enumerate(lengths.tolist()):
        sizes = np.random.default_rng((seed, document)).integers(low, capacity + 1, size=1 + length // low).tolist()
        start = 0
        for size in sizes:
            stop = min(start + size, length)
            if stop - start >= MIN_UNIT_TOKENS:
                units.append(_Unit(document, start, stop, stop == length))
            start = stop
    return units
