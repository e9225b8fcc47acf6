"""What followed the end of a context in indexed tokens: the evidence for the next token, and drafts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from codekiln.index import kernels

MAX_LENGTH = 64  # tokens of a match
GUESS = 4  # about the length of a longest match in code that the index does not have
MAX_READ = 32  # places of a match whose next token is read

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


def ids_of_ranks(ranks: Array) -> Ids:
    """The id of each rank. The last one is the separator, which gets the number of ids."""
    return np.append(np.argsort(ranks), len(ranks))


@dataclass(frozen=True)
class SortedTokens:
    """Documents as ranks, a separator after each, with their suffix array.

    `ranks[id]` is the rank of an id, and `ids[rank]` the id of a rank. `keys` are those of `kernels.make_keys`.
    """

    text: Array
    suffixes: Array
    keys: Array
    ranks: Array
    ids: Ids

    @cached_property
    def searched(self) -> tuple[Array, Array, Array, int, Array]:
        """The first arguments of kernels."""
        return self.text, self.suffixes, self.keys, kernels.rank_bits(len(self.ranks)), self.ranks


@dataclass(frozen=True)
class Continuations:
    """The longest end of a context that occurs elsewhere: `length` tokens, at `count` places, and what followed there.

    `ids` are different ids, and `fractions` how often each of them follows, of all that follow. `places` and `sources` say
    where one place of each is: a position in the tokens of a source.
    """

    length: int
    count: int
    ids: Ids
    fractions: npt.NDArray[np.float64]
    places: Ids
    sources: Sequence[SortedTokens | Array]

    def draft(self, n: int) -> list[int]:
        """The next `n` tokens at the most frequent continuation, or fewer if the document ends before."""
        if not len(self.ids):
            return []
        best = int(self.fractions.argmax())
        source, at = self.sources[best if len(self.sources) > 1 else 0], int(self.places[best])
        if isinstance(source, SortedTokens):
            ranks = source.text[at : at + n]
            ends = np.flatnonzero(ranks == len(source.ranks))
            found = source.ids[ranks[: ends[0]] if len(ends) else ranks]
        else:
            found = source[at : at + n]
            ends = np.flatnonzero(found < 0)
            found = found[: ends[0]] if len(ends) else found
        ids: list[int] = found.tolist()
        return ids


NONE = Continuations(0, 0, np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), ())


def find_continuations(
    shards: Sequence[SortedTokens], context: Ids, limit: int = MAX_LENGTH, *, guess: int = GUESS
) -> Continuations:
    """The continuations of the longest end of `context`, of at most `limit` tokens, in several shards as in one.

    `guess` is a length to begin with: it changes the time and not the result.
    """
    found = [kernels.continuations(*each.searched, each.ids, context, limit, guess, MAX_READ) for each in shards]
    length = max((each[0] for each in found), default=0)
    if not length:
        return NONE
    kept = [(shard, *each) for shard, each in zip(shards, found, strict=True) if each[0] == length]
    if len(kept) == 1:
        shard, length, count, ids, weights, places = kept[0]
        return Continuations(length, count, ids, _fractions(weights), places, (shard,))
    count = sum(each[2] for each in kept)
    ids, first, numbers = np.unique(np.concatenate([each[3] for each in kept]), return_index=True, return_inverse=True)
    fractions = _fractions(np.bincount(numbers, np.concatenate([each[4] for each in kept]), len(ids)))
    places = np.concatenate([each[5] for each in kept])[first]
    sources = [shard for shard, _, _, found_ids, _, _ in kept for _ in range(len(found_ids))]
    return Continuations(length, count, ids, fractions, places, [sources[i] for i in first.tolist()])


def find_in_text(text: Array, n: int) -> Continuations:
    """The continuations of the end of text[:n] in text[:n] itself, latest places first. Negative numbers separate texts."""
    length, count, ids, weights, places = kernels.longest_in(text, n, MAX_LENGTH, MAX_READ)
    return Continuations(length, count, ids, _fractions(weights), places, (text[:n],))


def _fractions(weights: Array) -> npt.NDArray[np.float64]:
    return np.asarray(weights / (weights.sum() or 1.0))
