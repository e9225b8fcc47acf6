"""Exact duplicates: by InCoder's key, the alphanumeric tokens of a file, or by CodeGen's, the SHA-256 of its content."""

import hashlib
from dataclasses import dataclass
from functools import partial
from posixpath import splitext
from typing import ClassVar, Literal

import numpy as np

from codekiln.arrays import load_arrays, save_arrays
from codekiln.corpus.scratch import Drops, Scratch, read_partition, write_partitions
from codekiln.corpus.steps.step import Draft, Drop, Step
from codekiln.corpus.steps.survivors import COLUMNS, ranks

DUPLICATE = "duplicate"


def word_key(path: str, text: str) -> bytes:
    """(file extension, number of alphanumeric tokens, MD5 of their sequence) as bytes: InCoder, section 3.1.

    Characters beyond ASCII count as letters. The paper keeps the keys in a Bloom filter. Codekiln compares them exactly, so
    nothing is dropped by accident.
    """
    from codekiln.corpus.shingles import join_words  # noqa: PLC0415 - compiled functions take half a second to load

    words, n_words = join_words(np.frombuffer(text.encode(), np.uint8))
    digest = hashlib.md5(words.data, usedforsecurity=False).digest()
    return digest + f"{n_words}:{splitext(path)[1].lower()}".encode(errors="replace")


def content_key(text: str) -> bytes:
    """The SHA-256 of a text: CodeGen (jaxformer's preprocessing)."""
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(Step):
    """Keeps one of all documents with the same key, by the rule of `survivors.py`."""

    key: Literal["words", "content"] = "words"

    columns: ClassVar = {"key": bytes}
    compares_documents = True

    def check_document(self, draft: Draft) -> Drop | None:
        key = word_key(draft.path, draft.text) if self.key == "words" else content_key(draft.text)
        draft.columns["key"] = hashlib.blake2b(key, digest_size=16).digest()
        return None

    def check_corpus(self, scratch: Scratch) -> Drops:
        n = scratch.n_partitions("exact-keys", 200 * scratch.n_documents())
        scratch.run("Corpus: keys", "exact-keys", partial(_partition, scratch, n))
        scratch.run("Corpus: duplicates", "exact-drops", partial(_find_repeated, scratch), n)
        dropped = [load_arrays(scratch.path("exact-drops", k))["order"] for k in range(n)]
        return Drops(DUPLICATE, np.sort(np.concatenate(dropped)))


def _partition(scratch: Scratch, n: int, unit: int) -> None:
    """Task: the keys and ranks of the documents of a work unit, in partitions by key."""
    rows = scratch.rows(unit, ["key", *COLUMNS])
    keys = np.frombuffer(b"".join(rows["key"]), np.uint64).reshape(-1, 2)
    is_unknown, stars, sizes, orders = ranks(rows)
    columns = {"rest": keys[:, 1], "is_unknown": is_unknown, "stars": stars, "size": sizes, "order": orders}
    write_partitions(scratch.path("exact-keys", unit), keys[:, 0], columns, n)


def _find_repeated(scratch: Scratch, partition: int) -> None:
    """Task: the documents of a partition that are not the first of those with the same key."""
    rows = read_partition([scratch.path("exact-keys", unit) for unit in range(scratch.n_units)], partition)
    by = np.lexsort([rows[name] for name in ("order", "size", "stars", "is_unknown", "rest", "hash")])
    is_repeated = np.zeros(len(by), bool)
    first, second = rows["hash"][by], rows["rest"][by]
    is_repeated[1:] = (first[1:] == first[:-1]) & (second[1:] == second[:-1])
    save_arrays(scratch.path("exact-drops", partition), {"order": np.sort(rows["order"][by[is_repeated]])})
