"""Exact duplicates by InCoder's key: the alphanumeric tokens of a file."""

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from codekiln.corpus.scratch import Scratch
from codekiln.corpus.steps.step import Draft, Step

if TYPE_CHECKING:
    import daft

DUPLICATE = "duplicate"
_IS_WORD = bytes(byte if byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(256))


def duplicate_key(path: str, text: str) -> str:
    """(file extension, number of alphanumeric tokens, MD5 of their sequence) as one string: InCoder, section 3.1.

    Characters beyond ASCII count as letters. The paper keeps the keys in a Bloom filter. Codekiln compares them exactly, so
    nothing is dropped by accident.
    """
    words = text.encode().translate(_IS_WORD).split()
    digest = hashlib.md5(b" ".join(words), usedforsecurity=False).hexdigest()
    return f"{PurePosixPath(path).suffix.lower()}:{len(words)}:{digest}"


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(Step):
    """Keeps the first of all documents with the same key."""

    columns: ClassVar = {"key": str}
    compares_documents = True

    def check_document(self, draft: Draft) -> str | None:
        draft.columns["key"] = duplicate_key(draft.path, draft.text)
        return None

    def check_corpus(self, rows: "daft.DataFrame", scratch: Scratch) -> "daft.DataFrame":
        # The engine is imported when a corpus is built, so that recipes load without it.
        from daft import col, lit  # noqa: PLC0415

        dropped, kept = rows.where(col("reason").not_null()), rows.where(col("reason").is_null())
        first = kept.groupby("key").agg(col("order").min().alias("first"))
        kept = kept.join(first, on="key", how="inner")
        unique = kept.where(col("order") == col("first")).exclude("first")
        repeated = kept.where(col("order") != col("first")).exclude("first").with_column("reason", lit(DUPLICATE))
        columns = rows.column_names
        return dropped.select(*columns).concat(repeated.select(*columns)).concat(unique.select(*columns))
