"""What followed the end of a context in indexed tokens: the evidence for the next token, and drafts."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from codekiln.index import kernels
from codekiln.machine import memory_bytes

MAX_LENGTH = 64  # tokens of a match
GUESS = 4  # about the length of a longest match in code that the index does not have
N_SEARCHES = 32  # of shards that are not in memory, at once
MEMORY_FRACTION = 0.5  # of the memory of the machine that an index may have
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
    def n_bytes(self) -> int:
        """Bytes of what is searched."""
        return int(self.text.nbytes + self.suffixes.nbytes + self.keys.nbytes)

    @cached_property
    def searched(self) -> tuple[Array, Array, Array, int, Array]:
        """The first arguments of kernels."""
        return self.text, self.suffixes, self.keys, kernels.rank_bits(len(self.ranks)), self.ranks


Shard = TypeVar("Shard", bound=SortedTokens)
Found = TypeVar("Found")


def each_shard(shards: Sequence[Shard], search: Callable[[Shard], Found], *, is_long: bool = False) -> list[Found]:
    """What `search` finds in each shard. Threads run it if that pays: if it `is_long`, or waits for the disk because the shards
    do not fit into memory."""
    if len(shards) > 1 and (is_long or sum(shard.n_bytes for shard in shards) > _cached_bytes()):
        return list(_threads().map(search, shards))
    return [search(shard) for shard in shards]


@cache
def _cached_bytes() -> float:
    """How much of an index the system can keep in memory."""
    return MEMORY_FRACTION * (memory_bytes() or math.inf)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(N_SEARCHES, "search")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has no threads


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
    found = each_shard(shards, lambda s: kernels.continuations(*s.searched, s.ids, context, limit, guess, MAX_READ))
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
