"""Searches in the suffix array of one shard: compiled, and safe to call from several threads.

`text` holds the ranks of the tokens of a shard. Every document ends with the separator, the highest rank. A pattern has no
separator, so no comparison passes the end of a document. `suffixes[i]` is where the i-th smallest suffix begins. `keys[j]` has
the first tokens of the suffix `N_SKIPPED * j` in one integer, so that most of a search reads consecutive memory that stays in
the caches. A range [low, high) of suffixes holds all places of a pattern.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
N_SKIPPED = 32  # suffixes per key
KEY_BITS = 63
N_FEW = 32  # places whose preceding tokens are compared one by one
N_READ = 16  # tokens that are read at once: their cache misses overlap, and those of a binary search do not
_compiled = numba.njit(cache=True, nogil=True)


def rank_bits(vocab_size: int) -> int:
    """Bits of a rank in a key. The separator is the rank `vocab_size`."""
    return max(1, vocab_size.bit_length())


@_compiled
def make_keys(text: Array, suffixes: Array, bits: int) -> Array:
    """The key of every `N_SKIPPED`-th suffix: as many ranks of `bits` bits as fit, the first one highest."""
    n_ranks = KEY_BITS // bits
    keys = np.zeros((len(suffixes) + N_SKIPPED - 1) // N_SKIPPED, np.int64)
    for j in range(len(keys)):
        at = np.int64(suffixes[j * N_SKIPPED])
        for n in range(n_ranks):
            keys[j] = (keys[j] << bits) | (np.int64(text[at + n]) if at + n < len(text) else 0)
    return keys


@_compiled
def _key_range(keys: Array, bits: int, pattern: Array, first: int, n_suffixes: int) -> tuple[int, int, int]:
    """The suffixes that can begin with pattern[first:], as far as keys show, and how many keys begin with all of it."""
    n_ranks = KEY_BITS // bits
    shared = min(n_ranks, len(pattern) - first)
    lowest = np.int64(0)
    for n in range(shared):
        lowest = (lowest << bits) | pattern[first + n]
    rest = bits * (n_ranks - shared)
    lowest <<= rest
    highest = lowest | ((np.int64(1) << rest) - 1)
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < lowest:
            low = middle + 1
        else:
            high = middle
    begin, step = low, 1  # of the keys from here on, those up to `highest`: in growing steps, then halved
    end, high = low, len(keys)
    while end < high and keys[end] <= highest:
        low = end + 1
        end += step
        step *= 2
    high = min(end, high)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] <= highest:
            low = middle + 1
        else:
            high = middle
    n_whole = low - begin if shared == len(pattern) - first else 0
    return max(0, (begin - 1) * N_SKIPPED + 1), min(low * N_SKIPPED, n_suffixes), n_whole


@_compiled
def _find(text: Array, suffixes: Array, keys: Array, bits: int, pattern: Array, first: int) -> tuple[int, int, int]:
    """A suffix that begins with pattern[first:], or -1, and a range that has all of them."""
    low, high, n_whole = _key_range(keys, bits, pattern, first, len(suffixes))
    if n_whole:
        return ((low + N_SKIPPED - 1) // N_SKIPPED) * N_SKIPPED, low, high
    length = len(pattern) - first
    n_low = n_high = 0  # tokens that the pattern shares with the suffixes before and after the range
    while low < high:
        middle = (low + high) >> 1
        at = np.int64(suffixes[middle])
        n = min(n_low, n_high)
        while n < length and text[at + n] == pattern[first + n]:
            n += 1
        if n == length:
            return middle, low, high
        # The last suffix of the text is shorter than others, and ends with the separator.
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
def _longest_of(text: Array, suffixes: Array, pattern: Array, length: int, low: int, high: int) -> int:
    """How many tokens at the end of the pattern are equal to those before a place, at most.

    The place is `length` tokens after the beginning of a suffix of the range.
    """
    longest = 0
    for i in range(low, high):
        end = int(np.int64(suffixes[i])) + length
        n = 0
        most = min(len(pattern), end) if end <= len(text) else 0
        while n < most and text[end - 1 - n] == pattern[len(pattern) - 1 - n]:
            n += 1
        longest = max(longest, n)
    return longest


@_compiled
def _longest(text: Array, suffixes: Array, keys: Array, bits: int, pattern: Array, guess: int) -> tuple[int, int, int]:
    """The length of the longest end of the pattern that occurs, and its range. The search begins at the length `guess`.

    An end of the pattern occurs if a longer one does. So lengths are tried in growing steps from the guess, and then halved.
    Places of the longest end are also places of shorter ends: if an end has few, the tokens before them give the longest.
    """
    limit = len(pattern)
    best = n_low = n_high = found = 0
    shortest_failed = limit + 1
    length, step = min(max(guess, 1), limit), 1
    while best + 1 < shortest_failed:
        at, low, high = _find(text, suffixes, keys, bits, pattern, limit - length)
        if at < 0:
            shortest_failed = length
        else:
            best, found, n_low, n_high = length, at, low, high
            if high - low <= N_FEW and best + 1 < shortest_failed:
                length = _longest_of(text, suffixes, pattern, best, low, high)
                shortest_failed = length + 1
                continue
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
    lower, upper = _bounds(text, suffixes, pattern, limit - best, found, n_low, n_high)
    return best, lower, upper


@_compiled
def longest_match(
    text: Array, suffixes: Array, keys: Array, bits: int, ranks: Array, context: Array, limit: int, guess: int
) -> tuple[int, int, int]:
    """The length of the longest end of a context that occurs, up to `limit`, and the range of its places."""
    length, low, high = _longest(text, suffixes, keys, bits, _pattern(context, ranks, limit), guess)
    return length, low, high


@_compiled
def longest_matches(
    text: Array, suffixes: Array, keys: Array, bits: int, ranks: Array, ids: Array, limit: int
) -> tuple[Array, Array, Array]:
    """`longest_match` of ids[:i + 1] for each i: lengths, lows and highs, (n,). A match is at most one token longer than
    the one before it."""
    n = len(ids)
    lengths, lows, highs = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    longest = 0
    for i in range(n):
        longest += 1
        pattern = _pattern(ids[: i + 1], ranks, min(limit, longest))
        lengths[i], lows[i], highs[i] = _longest(text, suffixes, keys, bits, pattern, len(pattern))
        longest = lengths[i]
    return lengths, lows, highs


@_compiled
def find_sequence(text: Array, suffixes: Array, keys: Array, bits: int, ranks: Array, ids: Array) -> tuple[int, int]:
    """The range of the places of a sequence of ids."""
    pattern = _pattern(ids, ranks, len(ids))
    if len(pattern) < len(ids) or len(pattern) == 0:
        return 0, 0
    found, low, high = _find(text, suffixes, keys, bits, pattern, 0)
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
def _skip_by_keys(keys: Array, shift: int, mask: int, rank: int, low: int, high: int) -> int:
    """A place in [low, high], after suffixes that all have `rank` where `shift` finds it in keys."""
    first = (low + N_SKIPPED - 1) // N_SKIPPED
    end = (high + N_SKIPPED - 1) // N_SKIPPED
    begin, step = first, 1
    while begin < end and (keys[begin] >> shift) & mask == rank:
        first = begin + 1
        begin += step
        step *= 2
    end = min(begin, end)
    while first < end:
        middle = (first + end) >> 1
        if (keys[middle] >> shift) & mask == rank:
            first = middle + 1
        else:
            end = middle
    return max(low, (first - 1) * N_SKIPPED + 1)


@_compiled
def next_ranks(
    text: Array, suffixes: Array, keys: Array, bits: int, ranks: Array, depth: int, low: int, high: int
) -> tuple[Array, Array]:
    """The ranks that follow the places of a range, ascending, and how often each does. `depth` is the length of the match."""
    most = min(high - low, len(ranks) + 1)
    found, counts = np.empty(most, np.int64), np.empty(most, np.int64)
    following = np.empty(N_READ, np.int64)
    shift = bits * (KEY_BITS // bits - 1 - depth)
    n = 0
    while low < high:
        n_read = min(N_READ, high - low)
        for i in range(n_read):
            following[i] = text[np.int64(suffixes[low + i]) + depth]
        for i in range(n_read):
            if n == 0 or found[n - 1] != following[i]:
                found[n], counts[n] = following[i], 0
                n += 1
            counts[n - 1] += 1
        low += n_read
        if shift >= 0:
            end = _skip_by_keys(keys, shift, (np.int64(1) << bits) - 1, found[n - 1], low, high)
        else:
            end = _end_of(text, suffixes, depth, found[n - 1], low - 1, high)
        counts[n - 1] += end - low
        low = end
    return found[:n], counts[:n]


@_compiled
def merge_counts(ranks: Array, counts: Array, other_ranks: Array, other_counts: Array) -> tuple[Array, Array]:
    """The sum of two results of `next_ranks`, ascending too."""
    most = len(ranks) + len(other_ranks)
    merged, sums = np.empty(most, np.int64), np.empty(most, np.int64)
    i = j = n = 0
    while i < len(ranks) or j < len(other_ranks):
        is_first = j == len(other_ranks) or (i < len(ranks) and ranks[i] <= other_ranks[j])
        merged[n], sums[n] = (ranks[i] if is_first else other_ranks[j]), 0
        if i < len(ranks) and ranks[i] == merged[n]:
            sums[n] += counts[i]
            i += 1
        if j < len(other_ranks) and other_ranks[j] == merged[n]:
            sums[n] += other_counts[j]
            j += 1
        n += 1
    return merged[:n], sums[:n]


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


@_compiled
def continuations(
    text: Array,
    suffixes: Array,
    keys: Array,
    bits: int,
    ranks: Array,
    ids: Array,
    context: Array,
    limit: int,
    guess: int,
    most: int,
) -> tuple[int, int, Array, Array, Array]:
    """`longest_match`, its count, and the ids that follow `most` of its places at most, in equal steps through the range.

    Returns length, count, ids, the number of places that each stands for (float64), and a place of each in the text. Ends of
    documents are left out. All places of a match are read if there are few; else the counts are as exact as `most` allows,
    because a range is sorted by what follows.
    """
    length, low, high = _longest(text, suffixes, keys, bits, _pattern(context, ranks, limit), guess)
    n_read = min(high - low, most) if length else 0
    found, weights, places = np.empty(n_read, np.int64), np.zeros(n_read, np.float64), np.empty(n_read, np.int64)
    for i in range(n_read):
        places[i] = np.int64(suffixes[low + (i * (high - low) + (high - low) // 2) // n_read]) + length
    last, n = np.int64(-1), 0
    for i in range(n_read):
        rank = np.int64(text[places[i]])
        if rank == len(ranks):
            continue
        if rank != last:
            found[n], places[n] = ids[rank], places[i]
            last = rank
            n += 1
        weights[n - 1] += (high - low) / n_read
    return length, high - low, found[:n], weights[:n], places[:n]


@_compiled
def longest_in(text: Array, n: int, limit: int, most: int) -> tuple[int, int, Array, Array, Array]:
    """`continuations` of text[:n] in itself: the longest earlier place of its end, latest places first, without an index.

    Negative numbers are in no match.
    """
    best = count = 0
    found, weights, places = np.empty(most, np.int64), np.zeros(most, np.float64), np.empty(most, np.int64)
    n_found = 0
    last = text[n - 1] if n else -1
    for j in range(n - 1 if last >= 0 else 0, 0, -1):
        if text[j - 1] != last:
            continue
        length = 1
        while (
            length < limit and length < j and text[j - 1 - length] == text[n - 1 - length] and text[j - 1 - length] >= 0
        ):
            length += 1
        if length < best:
            continue
        if length > best:
            best, count, n_found = length, 0, 0
        count += 1
        following = text[j]
        if following < 0 or count > most:
            continue
        k = 0
        while k < n_found and found[k] != following:
            k += 1
        if k == n_found:
            found[k], weights[k], places[k] = following, 0.0, j
            n_found += 1
        weights[k] += 1.0
    return best, count, found[:n_found], weights[:n_found], places[:n_found]
