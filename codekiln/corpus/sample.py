"""A sample of a corpus that is even over its languages."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from codekiln.corpus.documents import Document, read_documents


def balanced_sample(corpus: Path, split: str, limit_bytes: int, seed: int) -> Iterator[Document]:
    """Documents of at most `limit_bytes` bytes of text together, every language with an equal share of them.

    What a language is too small to fill is shared by the others. Within a language documents come in an order drawn from
    the seed and their names, whichever part they stand in, and the sample is the beginning of it; its last document is cut.
    Holds the sample and the names of as much again for each language, however large the corpus is.
    """
    sizes: Counter[str] = Counter()
    kept: dict[str, list[tuple[int, int, str]]] = defaultdict(list)  # heaps, last drawn first
    kept_bytes: Counter[str] = Counter()
    for document in read_documents(corpus, split):
        language, size = document.language, len(document.text.encode())
        key = int.from_bytes(hashlib.sha256(f"{seed}:{document.name}".encode()).digest())
        heapq.heappush(kept[language], (-key, size, document.name))
        sizes[language] += size
        kept_bytes[language] += size
        while kept_bytes[language] - kept[language][0][1] >= limit_bytes:
            kept_bytes[language] -= heapq.heappop(kept[language])[1]
    shares = balanced_quotas(sizes, limit_bytes)
    order: dict[str, tuple[int, int]] = {}  # where a document stands, and how much of it is taken
    for language, heap in kept.items():
        taken = 0
        for key, size, name in sorted(heap, reverse=True):
            if taken >= shares[language]:
                break
            order[name] = -key, min(size, shares[language] - taken)
            taken += size
    chosen = [document for document in read_documents(corpus, split) if document.name in order]
    for document in sorted(chosen, key=lambda document: order[document.name]):
        text = document.text.encode()[: order[document.name][1]].decode(errors="ignore")
        yield replace(document, text=text)


def balanced_quotas(sizes: dict[str, int], limit: int) -> dict[str, int]:
    """How much of each is taken when none gives more than it has and the rest give alike; `limit` in all, or all there is."""
    shares: dict[str, int] = {}
    left = limit
    for k, (name, size) in enumerate(sorted(sizes.items(), key=lambda entry: (entry[1], entry[0]))):
        shares[name] = min(size, left // (len(sizes) - k))
        left -= shares[name]
    return shares
