"""Words, shingles and MinHash of a document: compiled functions on bytes, the same for every engine and machine.

A word is a run of ASCII letters, digits, underscores and bytes beyond ASCII. A shingle is a run of words. Words and shingles
are hashed to 64 bits: that two different ones have the same hash is too rare to matter. (Of words of 64 equal characters and
more, many have.)
"""

import hashlib

import numba
import numpy as np
import numpy.typing as npt

from codekiln.arrays import sorted_unique

SHINGLE_WORDS = 5
N_BANDS, BAND_ROWS = 42, 6
N_BINS = N_BANDS * BAND_ROWS

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_IS_WORD = np.array([byte >= 0x80 or byte == ord("_") or chr(byte).isalnum() for byte in range(256)])
_BYTE_HASHES = np.array(
    [int.from_bytes(hashlib.blake2b(bytes([byte]), digest_size=8).digest(), "little") for byte in range(256)], np.uint64
)
# The finalizer of MurmurHash3 (Appleby).
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_POLYNOMIAL = np.uint64(0x9E3779B97F4A7C15)
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def _mix(value: np.uint64) -> np.uint64:
    value ^= value >> np.uint64(33)
    value *= _MIX_1
    value ^= value >> np.uint64(33)
    value *= _MIX_2
    return value ^ (value >> np.uint64(33))


@_compiled
def word_hashes(text: Bytes) -> Hashes:
    """The hash of each word of a text in UTF-8, in order."""
    found = np.empty(len(text) // 2 + 2, np.uint64)
    n = 0
    value = _POLYNOMIAL
    inside = False
    for byte in text:  # without branches, which the processor could not predict
        is_word = _IS_WORD[byte]
        found[n] = value
        n += inside & (not is_word)
        # Hashing by rotation (Cohen 1997), because a product would take twice as long: each byte waits for the one before it.
        longer = ((value << np.uint64(7)) | (value >> np.uint64(57))) + _BYTE_HASHES[byte]
        value = longer if is_word else _POLYNOMIAL
        inside = is_word
    found[n] = value
    n += inside
    for at in range(n):
        found[at] = _mix(found[at])
    return found[:n]


@_compiled
def join_words(text: Bytes) -> tuple[Bytes, int]:
    """The words of a text in UTF-8, each followed by a space, and how many there are."""
    found = np.empty(len(text) + 1, np.uint8)
    n = n_words = 0
    inside = False
    for byte in text:
        if _IS_WORD[byte]:
            found[n] = byte
            n += 1
            inside = True
        elif inside:
            found[n] = 32
            n += 1
            n_words += 1
            inside = False
    if inside:
        found[n] = 32
        n += 1
        n_words += 1
    return found[:n], n_words


@_compiled
def shingle_hashes(words: Hashes, n_words: int) -> Hashes:
    """The hash of each run of `n_words` words, in order: none if there are fewer."""
    n = max(0, len(words) - n_words + 1)
    found = np.empty(n, np.uint64)
    oldest = np.uint64(1)  # the factor of the word that leaves the run
    for _ in range(n_words):
        oldest *= _POLYNOMIAL
    rolling = np.uint64(0)
    for at in range(len(words)):
        rolling = rolling * _POLYNOMIAL + words[at]
        if at >= n_words:
            rolling -= oldest * words[at - n_words]
        if at >= n_words - 1:
            found[at - n_words + 1] = _mix(rolling)
    return found


@_compiled
def _minhash(shingles: Hashes) -> Hashes:
    """The least hash in each of `N_BINS` bins: one permutation (Li, Owen, Zhang 2012). A bin that no shingle falls into takes
    the value of a random other one (optimal densification, Shrivastava, arXiv 1703.04664)."""
    least = np.full(N_BINS, _EMPTY)
    for value in shingles:
        at = ((value >> np.uint64(32)) * np.uint64(N_BINS)) >> np.uint64(32)
        least[at] = min(least[at], value)
    dense = least.copy()
    for at in range(N_BINS):
        attempt = np.uint64(at) << np.uint64(32)
        while dense[at] == _EMPTY:
            attempt += np.uint64(1)
            dense[at] = least[((_mix(attempt) >> np.uint64(32)) * np.uint64(N_BINS)) >> np.uint64(32)]
    return dense


@_compiled
def band_hashes(shingles: Hashes) -> Hashes:
    """The hash of each of `N_BANDS` bands of `BAND_ROWS` MinHash values; zeros for a document without shingles.

    Two documents of Jaccard similarity s share a band with probability 1 - (1 - s^6)^42: 0.995 at 0.7, 0.48 at 0.5.
    """
    if len(shingles) == 0:
        return np.zeros(N_BANDS, np.uint64)
    least = _minhash(shingles)
    found = np.empty(N_BANDS, np.uint64)
    for band in range(N_BANDS):
        value = np.uint64(band)
        for row in range(BAND_ROWS):
            value = _mix(value * _POLYNOMIAL + least[band * BAND_ROWS + row])
        found[band] = value
    return found


@_compiled
def jaccard(one: Hashes, other: Hashes) -> float:
    """The Jaccard similarity of two sets, each sorted and without repetitions."""
    i = j = common = 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            common += 1
            i += 1
            j += 1
        elif one[i] < other[j]:
            i += 1
        else:
            j += 1
    union = len(one) + len(other) - common
    return common / union if union else 0.0


@_compiled
def _find(parent: Indices, at: int) -> int:
    """The root of the component that `at` belongs to. Paths are halved on the way."""
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@_compiled
def similarities(pairs: Indices, shingles: Hashes, offsets: Indices) -> npt.NDArray[np.float64]:
    """The Jaccard similarity of each of (2, n) pairs, (n,). Document k has `shingles[offsets[0, k]:offsets[1, k]]`, sorted."""
    found = np.empty(pairs.shape[1])
    for n in range(pairs.shape[1]):
        one, other = pairs[0, n], pairs[1, n]
        found[n] = jaccard(shingles[offsets[0, one] : offsets[1, one]], shingles[offsets[0, other] : offsets[1, other]])
    return found


@_compiled
def link_buckets(
    members: Indices, stops: Indices, parent: Indices, shingles: Hashes, offsets: Indices, threshold: float, window: int
) -> None:
    """Joins the components of the members of each bucket whose similarity is at least `threshold`.

    Bucket b has `members[stops[b - 1]:stops[b]]`. Document k has the sorted shingles `shingles[offsets[0, k]:offsets[1, k]]`.
    Members in one component are not compared. A member is compared with the `window` members before it at most.
    """
    start = 0
    for stop in stops:
        for n in range(start + 1, stop):
            at = members[n]
            size = offsets[1, at] - offsets[0, at]
            for m in range(max(start, n - window), n):
                other = members[m]
                root, other_root = _find(parent, at), _find(parent, other)
                if root == other_root:
                    continue
                other_size = offsets[1, other] - offsets[0, other]
                if min(size, other_size) < threshold * max(size, other_size):
                    continue  # the similarity is at most the ratio of the sizes
                one = shingles[offsets[0, at] : offsets[1, at]]
                if jaccard(one, shingles[offsets[0, other] : offsets[1, other]]) >= threshold:
                    parent[max(root, other_root)] = min(root, other_root)
        start = stop


@_compiled
def join_pairs(pairs: Indices, parent: Indices) -> None:
    """Joins the components of both members of each pair, (2, pairs)."""
    for n in range(pairs.shape[1]):
        root, other_root = _find(parent, pairs[0, n]), _find(parent, pairs[1, n])
        parent[max(root, other_root)] = min(root, other_root)


@_compiled
def find_roots(parent: Indices) -> Indices:
    """The root of each document, (n,): the first of its component."""
    found = np.empty_like(parent)
    for at in range(len(parent)):
        found[at] = _find(parent, at)
    return found


@_compiled
def find_in(hashes: Hashes, index: Hashes, filter_bits: Bytes) -> Indices:
    """The place of each hash in a sorted index, or -1, (hashes,). `filter_bits` are those of `make_filter`."""
    found = np.full(len(hashes), -1, np.int64)
    mask = np.uint64(8 * len(filter_bits) - 1)
    for n, value in enumerate(hashes):
        bit = value & mask
        if filter_bits[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7)) & np.uint8(1):
            at = np.searchsorted(index, value)
            if at < len(index) and index[at] == value:
                found[n] = at
    return found


@_compiled
def make_filter(index: Hashes) -> Bytes:
    """A table of bits, at least 16 for each hash of an index: a hash whose bit is not set is not in the index."""
    n_bits = 64
    while n_bits < 16 * len(index):
        n_bits *= 2
    bits = np.zeros(n_bits // 8, np.uint8)
    for value in index:
        bit = value & np.uint64(n_bits - 1)
        bits[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))
    return bits


def shingle_set(text: str | Bytes) -> Hashes:
    """The sorted, unique shingles of a text, or of its bytes in UTF-8."""
    return sorted_unique(text_runs(text, SHINGLE_WORDS))


def text_runs(text: str | Bytes, n_words: int) -> Hashes:
    """The hash of each run of `n_words` words of a text, or of its bytes in UTF-8, in order."""
    content = np.frombuffer(text.encode(), np.uint8) if isinstance(text, str) else text
    runs: Hashes = shingle_hashes(word_hashes(content), n_words)
    return runs
