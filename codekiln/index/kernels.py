"""Searches in the suffix array of one shard: compiled, and safe to call from several threads.

`text` holds the ranks of the tokens of a shard. Every document ends with the separator, the highest rank. A pattern has no
separator, so no comparison passes the end of a document. `suffixes[i]` is where the i-th smallest suffix begins, and
`starts[r]` the first suffix that begins with rank r. A range [low, high) of suffixes holds all places of a pattern.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
N_LINEAR = 16  # in a range of so many suffixes, reading all of them is faster than searching
_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def _find(
    text: Array, suffixes: Array, pattern: Array, first: int, low: int, high: int
) -> tuple[int, int, int]:
    """A suffix in [low, high) that begins with pattern[first:], or -1, and the range in which the search found it.

    All suffixes of the range begin with pattern[first].
    """
    length = len(pattern) - first
    n_low = n_high = 1  # tokens that the pattern shares with the suffixes before and after the range
    while low < high:
        middle = (low + high) >> 1
        at = np.int64(suffixes[middle])
        n = min(n_low, n_high)
        while n < length and text[at + n] == pattern[first + n]:
            n += 1
        if n == length:
            return middle, low, high
        if text[at + n] < pattern[first + n]:
            low, n_low = middle + 1, n
        else:
            high, n_high = middle, n
    return -1, low, high


@_compiled
def _bounds(
    text: Array, suffixes: Array, pattern: Array, first: int, found: int, low: int, high: int
) -> tuple[int, int]:
    """The range of all suffixes in [low, high) that begin with pattern[first:]. The suffix `found` is one of them."""
    length = len(pattern) - first
    lower, end = low, found
    n_low = 0
    while lower < end:
        middle = (lower + end) >> 1
        at = np.int64(suffixes[middle])
        n = n_low
        while n < length and text[at + n] == pattern[first + n]:
            n += 1
        if n == length:
            end = middle
        else:
            lower, n_low = middle + 1, n
    begin, upper = found + 1, high
    n_high = 0
    while begin < upper:
        middle = (begin + upper) >> 1
        at = np.int64(suffixes[middle])
        n = n_high
        while n < length and text[at + n] == pattern[first + n]:
            n += 1
        if n == length:
            begin = middle + 1
        else:
            upper, n_high = middle, n
    return lower, upper


@_compiled
def _pattern(context: Array, ranks: Array, limit: int) -> Array:
    """The ranks of the context's end: at most `limit` tokens, after the last one that is not in the vocabulary."""
    n = 0
    limit = min(limit, len(context))
    while n < limit and 0 <= context[len(context) - 1 - n] < len(ranks):
        n += 1
    pattern = np.empty(n, np.int64)
    for i in range(n):
        pattern[i] = ranks[context[len(context) - n + i]]
    return pattern


@_compiled
def _longest(
    text: Array, suffixes: Array, starts: Array, pattern: Array, guess: int
) -> tuple[int, int, int]:
    """The length of the longest end of the pattern that occurs, and its range. The search begins at the length `guess`.

    An end of the pattern occurs if a longer one does. So lengths are tried in growing steps from the guess, and then halved.
    """
    limit = len(pattern)
    best, best_found, best_low, best_high = 0, np.int64(-1), np.int64(0), np.int64(0)
    shortest_failed = limit + 1
    length, step = min(max(guess, 1), limit), 1
    while best + 1 < shortest_failed:
        first = limit - length
        low, high = starts[pattern[first]], starts[pattern[first] + 1]
        found, low, high = _find(text, suffixes, pattern, first, low, high)
        if found >= 0:
            best, best_found, best_low, best_high = length, found, low, high
        else:
            shortest_failed = length
        if best == 0:  # shorter
            length = max(1, length - step)
            step *= 2
        elif shortest_failed > limit:  # longer
            length = min(limit, length + step)
            step *= 2
        else:
            length = (best + shortest_failed) >> 1
    if best == 0:
        return 0, 0, 0
    low, high = _bounds(text, suffixes, pattern, limit - best, best_found, best_low, best_high)
    return best, low, high


@_compiled
def longest_match(
    text: Array, suffixes: Array, starts: Array, ranks: Array, context: Array, limit: int, guess: int
) -> tuple[int, int, int]:
    """The length of the longest end of a context that occurs, up to `limit`, and the range of its places."""
    return _longest(text, suffixes, starts, _pattern(context, ranks, limit), guess)


@_compiled
def longest_matches(
    text: Array, suffixes: Array, starts: Array, ranks: Array, ids: Array, limit: int
) -> tuple[Array, Array, Array]:
    """`longest_match` of ids[:i + 1] for each i: lengths, lows and highs, (n,). A match is at most one token longer than
    the one before it."""
    n = len(ids)
    lengths, lows, highs = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    longest = 0
    for i in range(n):
        longest += 1
        pattern = _pattern(ids[: i + 1], ranks, min(limit, longest))
        lengths[i], lows[i], highs[i] = _longest(text, suffixes, starts, pattern, len(pattern))
        longest = lengths[i]
    return lengths, lows, highs


@_compiled
def find_sequence(
    text: Array, suffixes: Array, starts: Array, ranks: Array, ids: Array
) -> tuple[int, int]:
    """The range of the places of a sequence of ids."""
    pattern = _pattern(ids, ranks, len(ids))
    if len(pattern) < len(ids) or len(pattern) == 0:
        return 0, 0
    low, high = starts[pattern[0]], starts[pattern[0] + 1]
    found, low, high = _find(text, suffixes, pattern, 0, low, high)
    return _bounds(text, suffixes, pattern, 0, found, low, high) if found >= 0 else (0, 0)


@_compiled
def _end_of(text: Array, suffixes: Array, depth: int, rank: int, low: int, high: int) -> int:
    """The first suffix of [low, high) whose token at `depth` is greater than `rank`: in growing steps, and then halved.

    All suffixes of the range have the same `depth` tokens before it.
    """
    step = 1
    while low + step < high and text[np.int64(suffixes[low + step]) + depth] <= rank:
        low += step
        step *= 2
    high = min(high, low + step)
    low += 1 if low < high and text[np.int64(suffixes[low]) + depth] <= rank else 0
    while low < high:
        middle = (low + high) >> 1
        if text[np.int64(suffixes[middle]) + depth] <= rank:
            low = middle + 1
        else:
            high = middle
    return low


@_compiled
def narrow(text: Array, suffixes: Array, depth: int, rank: int, low: int, high: int) -> tuple[int, int]:
    """The part of a range whose suffixes have `rank` as the token at `depth`, after `depth` tokens that all share."""
    end = high
    first = low
    while first < end:
        middle = (first + end) >> 1
        if text[np.int64(suffixes[middle]) + depth] < rank:
            first = middle + 1
        else:
            end = middle
    if first == high or text[np.int64(suffixes[first]) + depth] != rank:
        return first, first
    return first, _end_of(text, suffixes, depth, rank, first, high)


@_compiled
def next_ranks(text: Array, suffixes: Array, depth: int, low: int, high: int, n_ranks: int) -> tuple[Array, Array]:
    """The ranks that follow the places of a range, ascending, and how often each does. `depth` is the length of the match."""
    most = min(high - low, n_ranks)
    ranks, counts = np.empty(most, np.int64), np.empty(most, np.int64)
    n = 0
    while low < high:
        rank = np.int64(text[np.int64(suffixes[low]) + depth])
        if high - low <= N_LINEAR:
            end = low + 1
            while end < high and text[np.int64(suffixes[end]) + depth] == rank:
                end += 1
        else:
            end = _end_of(text, suffixes, depth, rank, low, high)
        ranks[n], counts[n] = rank, end - low
        n += 1
        low = end
    return ranks[:n], counts[:n]


@_compiled
def join_documents(
    ids: Array, ends: Array, first: int, last: int, ranks: Array, separator: int, out: Array, filled: int
) -> int:
    """Writes the ranks of the documents [first, last) of a token shard into `out`, each with a separator after it.

    `ends` are the offsets in `ids` where documents end, and `filled` is where writing begins. Returns where it ends.
    """
    at = np.int64(ends[first - 1]) if first > 0 else np.int64(0)
    for document in range(first, last):
        while at < ends[document]:
            out[filled] = ranks[ids[at]]
            filled += 1
            at += 1
        out[filled] = separator
        filled += 1
    return filled
