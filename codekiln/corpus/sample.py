"""A sample of a corpus in which all languages have equal shares."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from codekiln.corpus.documents import Document, read_documents


def balanced_sample(corpus: Path, split: str, limit_bytes: int, seed: int) -> Iterator[Document]:
    """Documents of at most `limit_bytes` of text in total. Every language has the same share of it.

    The unused share of a small language goes to the others. Within a language, documents are in a random order that depends
    on the seed and their names, and the sample is its beginning; the last document is cut. Memory: the sample, plus the
    names of as many bytes for each language, for a corpus of any size.
    """
    sizes: Counter[str] = Counter()
    # Per language, a heap of (-key, size, name): its root is the last of the documents that are kept.
    kept: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
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
    order: dict[str, tuple[int, int]] = {}  # by name: the key of a document, and how many of its bytes are taken
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
    """Equal quotas that add up to `limit`, except that nothing gives more than its size; less if there is not enough."""
    shares: dict[str, int] = {}
    left = limit
    for k, (name, size) in enumerate(sorted(sizes.items(), key=lambda entry: (entry[1], entry[0]))):
        shares[name] = min(size, left // (len(sizes) - k))
        left -= shares[name]
    return shares
