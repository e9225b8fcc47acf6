"""Where a text that a model wrote is in the indexed documents, and how much of it is there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.index.names import DocumentName
from codekiln.index.search import Index

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
    """Tokens [start, stop) of a text, which occur `count` times in the indexed documents.

    `sources` are the first places, one for each document. `licenses` counts the documents of each license among the first
    `MAX_PLACES` places, the most frequent license first.
    """

    start: int
    stop: int
    count: int
    sources: tuple[Source, ...]
    licenses: dict[str, int]


def find_verbatim(
    index: Index, ids: Sequence[int], *, min_tokens: int = MIN_TOKENS, n_sources: int = 3
) -> list[Verbatim]:
    """The longest stretches of a text that are verbatim in the index, which do not overlap, in order.

    The longest stretch is first chosen, then the longest of what it leaves, down to `min_tokens`. Stretches are compared as
    tokens: at the ends of a text, where its tokens depend on what is not given, up to a few tokens are not found.
    """
    found: list[Verbatim] = []
    lengths = index.longest_matches(ids, len(ids)).lengths.tolist()
    gaps = [(0, len(ids))]
    while gaps:
        first, last = gaps.pop()
        length, stop = max(((min(lengths[i], i + 1 - first), -i - 1) for i in range(first, last)), default=(0, 0))
        start, stop = -stop - length, -stop
        if length < min_tokens or length == 0:
            continue
        found.append(_verbatim(index, ids, start, stop, n_sources))
        gaps += [(first, start), (stop, last)]
    return sorted(found, key=lambda each: each.start)


def memorized_fraction(index: Index, texts: Sequence[Sequence[int]], *, min_tokens: int = MEMORIZED_TOKENS) -> float:
    """The fraction of all tokens of `texts` that are in a match of at least `min_tokens` tokens; 0 without tokens."""
    n_memorized = 0
    for ids in texts:
        covered_to = 0  # tokens before it are counted
        for end, length in enumerate(index.longest_matches(ids, len(ids)).lengths.tolist(), start=1):
            if length >= min_tokens:
                n_memorized += end - max(covered_to, end - length)
                covered_to = end
    return n_memorized / max(1, sum(map(len, texts)))


def _verbatim(index: Index, ids: Sequence[int], start: int, stop: int, n_sources: int) -> Verbatim:
    match = index.find(ids[start:stop])
    offsets: dict[int, int] = {}
    for place in index.places(match, MAX_PLACES):
        offsets.setdefault(place.document, place.offset)
    names = {document: index.name(document) for document in offsets}
    licenses = Counter(name.license for name in names.values())
    sources = tuple(Source(document, offsets[document], names[document]) for document in list(offsets)[:n_sources])
    return Verbatim(start, stop, match.count, sources, dict(licenses.most_common()))
