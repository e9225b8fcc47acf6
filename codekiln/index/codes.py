"""Byte codes of tokens, so that a suffix array of bytes is one of tokens.

Tokens are numbered by frequency: rank 0 is the most frequent one. A rank has a code of 1, 2 or 3 bytes. No code begins another
one, and codes sort as ranks do, so suffixes of codes sort as suffixes of ranks do. Frequent tokens have short codes, because
the time and the memory of sorting grow with the bytes: about 1.3 bytes per token of code instead of the 2 or 4 of an id.
"""

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.unsignedinteger]
_compiled = numba.njit(cache=True, nogil=True)


@dataclass(frozen=True)
class Code:
    """The first byte of a code is below `n_short` in codes of 1 byte, and below `n_short + n_middle` in those of 2 bytes."""

    n_short: int
    n_middle: int

    @property
    def first_of_three(self) -> int:
        """The lowest rank with a code of 3 bytes."""
        return self.n_short + 256 * self.n_middle

    def n_bytes(self, counts: npt.NDArray[np.int64]) -> int:
        """Bytes of all codes, if rank r occurs `counts[r]` times."""
        return int(counts.sum() + counts[self.n_short :].sum() + counts[self.first_of_three :].sum())


def shortest_code(counts: npt.NDArray[np.int64]) -> Code:
    """The code with the fewest bytes for ranks that occur `counts` times, of up to 16 million ranks."""
    codes = []
    for n_middle in range(256):
        for n_short in range(256 - n_middle, -1, -1):
            n_long = 256 - n_middle - n_short
            if n_short + 256 * n_middle + 65536 * n_long >= len(counts):
                codes.append(Code(n_short, n_middle))
                break  # fewer short codes are never better
    totals = np.concatenate([[0], np.cumsum(counts)])

    def n_bytes(code: Code) -> int:
        ends = [min(end, len(counts)) for end in (code.n_short, code.first_of_three)]
        return int(3 * totals[-1] - totals[ends[0]] - totals[ends[1]])

    return min(codes, key=n_bytes)


@_compiled
def count_ids(ids: Ranks, n_ids: int) -> tuple[npt.NDArray[np.int64], int]:
    """How often each id below `n_ids` occurs, and the highest id."""
    counts = np.zeros(n_ids, np.int64)
    highest = 0
    for value in ids:
        i = int(np.int64(value))
        highest = max(highest, i)
        if i < n_ids:
            counts[i] += 1
    return counts, highest


@_compiled
def encode_ranks(
    ranks: Ranks, n_short: int, n_middle: int, n_bytes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]]:
    """The code bytes of all ranks, and a bit for each byte: whether a code begins there."""
    out = np.empty(n_bytes, np.uint8)
    begins = np.zeros(n_bytes // 64 + 1, np.uint64)
    first_of_three = n_short + 256 * n_middle
    end = 0
    for value in ranks:
        rank = np.int64(value)
        begins[end >> 6] |= np.uint64(1) << np.uint64(end & 63)
        if rank < n_short:
            out[end] = rank
            end += 1
        elif rank < first_of_three:
            out[end] = n_short + ((rank - n_short) >> 8)
            out[end + 1] = (rank - n_short) & 255
            end += 2
        else:
            rest = rank - first_of_three
            out[end] = n_short + n_middle + (rest >> 16)
            out[end + 1] = (rest >> 8) & 255
            out[end + 2] = rest & 255
            end += 3
    return out, begins


@_compiled
def _n_set(bits: np.uint64) -> np.int64:
    """How many bits are set (the parallel sum of Hacker's Delight, section 5-1)."""
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_compiled
def keep_suffixes_of_tokens(suffixes: npt.NDArray[np.int32], begins: npt.NDArray[np.uint64]) -> int:
    """Keeps the suffixes that begin with a token, as positions of tokens, at the front of the array. Returns their number."""
    before = np.empty(len(begins), np.int32)
    total = 0
    for i, bits in enumerate(begins):
        before[i] = total
        total += _n_set(bits)
    n = 0
    for position in suffixes:
        word, bit = position >> 6, np.uint64(position & 63)
        suffixes[n] = before[word] + _n_set(begins[word] & ((np.uint64(1) << bit) - np.uint64(1)))
        n += int(
            np.int64((begins[word] >> bit) & np.uint64(1))
        )  # without a branch, which half of the time is not foreseen
    return n
