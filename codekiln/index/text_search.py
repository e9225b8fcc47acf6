"""Searches documents for a text, whatever the tokens of the text are.

The tokens of a text depend on what is before and after it: "turn" is a token of its own, or a part of " return". The search
follows every sequence of tokens that spells the text and occurs in the index. A sequence begins with a token whose end is the
beginning of the text, and each token that does not fit the next bytes, or that never follows the ones before it, ends it.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codekiln.errors import ConfigError
from codekiln.index import kernels
from codekiln.index.names import DocumentName
from codekiln.index.search import Index, Shard

EXCERPT_CHARACTERS = 160


@dataclass(frozen=True)
class TextPlace:
    """Where a text begins. `line` counts from 1, and `excerpt` is that line, cut if it is long."""

    name: DocumentName
    document: int
    byte_offset: int
    line: int
    excerpt: str


@dataclass(frozen=True)
class FoundText:
    """How often a text occurs, overlaps included, and its first places in the order of the corpus."""

    count: int
    places: list[TextPlace]


@dataclass(frozen=True)
class _Spelling:
    """Suffixes whose tokens spell the text, from the byte `offset` of the first token on."""

    offset: int
    low: int
    high: int


class TextSearch:
    """Searches an index. `token_bytes` are the bytes of each id.

    All occurrences are found, and nothing else: tokens are compared with the text byte by byte, and the tokens of a document
    spell its text. A tokenizer with Unicode normalization is the exception: its documents are normalized text.
    `document_start` is text before each document that is not a part of it.
    """

    def __init__(self, index: Index, token_bytes: Sequence[bytes], document_start: str = "") -> None:
        self._index, self._bytes, self._document_start = index, token_bytes, document_start.encode()
        self._spelled = sorted((data, i) for i, data in enumerate(token_bytes) if data)
        self._sorted_bytes = [data for data, _ in self._spelled]
        self._ranks = index.ranks_of(range(len(token_bytes)))
        self._longest = max(map(len, token_bytes), default=0)

    def find(self, text: str | bytes, limit: int) -> FoundText:
        """How often `text` occurs, and its first `limit` places. Raises ConfigError for an empty text."""
        wanted = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        if not wanted:
            raise ConfigError("the text to search for is empty")
        count = 0
        places: list[TextPlace] = []
        for shard in self._index.shards:
            positions, offsets = self._positions(shard, wanted)
            count += len(positions)
            first = slice(0, limit - len(places))
            for place, offset in zip(shard.places(positions[first]), offsets[first], strict=True):
                places.append(self._place(place.document, place.offset, int(offset)))
        return FoundText(count, places)

    def _positions(self, shard: Shard, wanted: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the text begins in a shard: the positions of its first tokens, and the bytes before it in each."""
        found = list(self._spellings(shard, wanted))
        none = np.empty(0, np.int64)
        positions = np.concatenate([none, *(shard.suffixes[s.low : s.high].astype(np.int64) for s in found)])
        offsets = np.concatenate([none, *(np.full(s.high - s.low, s.offset, np.int64) for s in found)])
        if wanted.startswith(self._document_start[:1]) and self._document_start:
            is_before = (offsets < len(self._document_start)) & np.isin(positions, shard.documents)
            positions, offsets = positions[~is_before], offsets[~is_before]
        order = np.lexsort((offsets, positions))
        return positions[order], offsets[order]

    def _spellings(self, shard: Shard, wanted: bytes) -> Iterator[_Spelling]:
        """Depth-first: a branch is a range of suffixes that share `depth` tokens, which spell the text up to `end`."""
        branches: list[tuple[int, int, int, int, int]] = []  # offset, depth, end, low, high

        def follow(token: int, offset: int, end: int, depth: int, low: int, high: int) -> Iterator[_Spelling]:
            low, high = kernels.narrow(shard.text, shard.suffixes, depth, self._ranks[token], low, high)
            if low == high:
                return
            end += len(self._bytes[token]) - (offset if depth == 0 else 0)
            if end >= len(wanted):
                yield _Spelling(offset, low, high)
            else:
                branches.append((offset, depth + 1, end, low, high))

        for token, data in enumerate(self._bytes):
            offset = data.find(wanted[:1])
            while offset >= 0:
                if wanted.startswith(data[offset:]) or data.startswith(wanted, offset):
                    yield from follow(token, offset, 0, 0, 0, len(shard.suffixes))
                offset = data.find(wanted[:1], offset + 1)
        while branches:
            offset, depth, end, low, high = branches.pop()
            for token in self._continuations(shard, wanted[end : end + self._longest], depth, low, high):
                yield from follow(token, offset, end, depth, low, high)

    def _continuations(self, shard: Shard, rest: bytes, depth: int, low: int, high: int) -> Iterator[int]:
        """The tokens that begin `rest` or are begun by it. In a small range, only those that follow."""
        if high - low <= kernels.N_READ:
            ranks, _ = kernels.next_ranks(*shard.searched, depth, low, high)
            for token in self._index.ids_of(ranks):
                data = self._bytes[token] if token < len(self._bytes) else b""
                if data and (rest.startswith(data) or data.startswith(rest)):
                    yield token
            return
        for n in range(1, len(rest)):
            yield from self._spelled_as(rest[:n], is_prefix=False)
        yield from self._spelled_as(rest, is_prefix=True)

    def _spelled_as(self, data: bytes, *, is_prefix: bool) -> Iterator[int]:
        """The tokens with these bytes, or with bytes that begin with them."""
        i = bisect_left(self._sorted_bytes, data)
        while i < len(self._spelled) and (
            self._sorted_bytes[i].startswith(data) if is_prefix else self._sorted_bytes[i] == data
        ):
            yield self._spelled[i][1]
            i += 1

    def _place(self, document: int, token: int, offset: int) -> TextPlace:
        data = [self._bytes[i] for i in self._index.document(document)]
        start = sum(map(len, data[:token])) + offset - len(self._document_start)
        text = b"".join(data)[len(self._document_start) :]
        line_start = text.rfind(b"\n", 0, start) + 1
        line_end = text.find(b"\n", line_start)
        line = text[line_start : line_end if line_end >= 0 else len(text)].decode(errors="replace").strip()
        if len(line) > EXCERPT_CHARACTERS:
            line = line[: EXCERPT_CHARACTERS - 1] + "…"
        number = text.count(b"\n", 0, start) + 1
        return TextPlace(self._index.name(document), document, start, number, line)
