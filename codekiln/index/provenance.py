"""Where a text that a model wrote is in the indexed documents, and how many of its tokens are memorized."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codekiln.index.names import DocumentName
from codekiln.index.search import Index, Match

MIN_TOKENS = 16  # shorter stretches are in many documents, or in none by design: `for i in range(len(`
MEMORIZED_TOKENS = 50  # Carlini et al. 2023, section 3: extractable with 50 tokens
MAX_PLACES = 1000  # whose licenses are counted


@dataclass(frozen=True)
class Source:
    """A document with a verbatim stretch, and the offset of the stretch in its tokens."""

    document: int
    offset: int
    name: DocumentName


@dataclass(frozen=True)
class Verbatim:
    """Tokens [start, stop) of a text, which occur `count` times in the indexed documents, with `n_before` tokens before it.

    `sources` are the first places, one for each document. `licenses` counts the documents of each license among the first
    `MAX_PLACES` places, the most frequent license first.
    """

    start: int
    stop: int
    n_before: int
    count: int
    sources: tuple[Source, ...]
    licenses: dict[str, int]


def find_verbatim(
    index: Index,
    ids: Sequence[int],
    *,
    n_context: int = 0,
    min_tokens: int = MIN_TOKENS,
    n_sources: int = 3,
) -> list[Verbatim]:
    """The longest stretches of a text that are verbatim in the index, which do not overlap, in order.

    The first `n_context` ids are not of the text, but what it continues. A stretch may begin among them: it then has at least
    `min_tokens` tokens together with them, and `n_before` is how many of them it has. The stretch with the most tokens of the
    text is first chosen, then the longest of what it leaves. Stretches are compared as tokens: at the ends of a text, where
    its tokens depend on what is not given, up to a few tokens are not found.
    """
    found: list[Verbatim] = []
    lengths = index.longest_matches(ids, len(ids)).lengths
    gaps = [(n_context, len(ids))]
    while gaps:
        first, last = gaps.pop()
        if first == last:
            continue
        matched = lengths[first:last]
        inside = np.minimum(matched, np.arange(1, last - first + 1))
        inside = np.where((matched if first == n_context else inside) >= min_tokens, inside, 0)
        at = int(inside.argmax())
        length, stop = int(inside[at]), first + at + 1
        if length == 0:
            continue
        start = stop - length
        n_before = int(matched[at]) - length if start == n_context else 0
        places = index.find(ids[start - n_before : stop])
        found.append(_verbatim(index, places, start - n_context, stop - n_context, n_before, n_sources))
        gaps += [(first, start), (stop, last)]
    return sorted(found, key=lambda each: each.start)


def count_memorized(index: Index, ids: Sequence[int], *, min_tokens: int = MEMORIZED_TOKENS) -> int:
    """How many tokens of a text are in a match of at least `min_tokens` tokens."""
    return count_in_matches(index.longest_matches(ids, len(ids)).lengths.tolist(), min_tokens=min_tokens)


def count_in_matches(lengths: Sequence[int], *, min_tokens: int = MEMORIZED_TOKENS) -> int:
    """`count_memorized` from the length of the longest match that ends at each token."""
    n_memorized = covered_to = 0  # tokens before `covered_to` are counted
    for end, length in enumerate(lengths, start=1):
        if length >= min_tokens:
            n_memorized += end - max(covered_to, end - length)
            covered_to = end
    return n_memorized


def _verbatim(index: Index, match: Match, start: int, stop: int, n_before: int, n_sources: int) -> Verbatim:
    offsets: dict[int, int] = {}
    for place in index.places(match, MAX_PLACES):
        offsets.setdefault(place.document, place.offset)
    names = {document: index.name(document) for document in offsets}
    licenses = Counter(name.license for name in names.values())
    sources = tuple(Source(document, offsets[document], names[document]) for document in list(offsets)[:n_sources])
    return Verbatim(start, stop, n_before, match.count, sources, dict(licenses.most_common()))
