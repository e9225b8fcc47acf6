"""Names of the documents of an index: a Parquet file next to it, so that it needs no corpus."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from codekiln.errors import InvalidFileError
from codekiln.tables import write_table

NAMES_FILE = "documents.parquet"
SCHEMA = pa.schema([(name, pa.string()) for name in ("repository", "revision", "path", "license")])
GROUP_ROWS = 4096


@dataclass(frozen=True)
class DocumentName:
    """Where a document is from. `license` is the SPDX expression that its repository declares."""

    repository: str
    revision: str
    path: str
    license: str


def write_names(path: Path, names: Iterable[pa.RecordBatch], *, n_documents: int) -> None:
    """Writes the names of all documents. Raises InvalidFileError if there are not as many as documents."""
    n_rows = write_table(path, names, SCHEMA, group_rows=GROUP_ROWS)
    if n_rows != n_documents:
        path.unlink()
        raise InvalidFileError(
            f"{n_documents:,} documents are to be indexed, and there are names of {n_rows:,}: "
            "the tokens and the corpus do not belong together"
        )


class DocumentNames:
    """Reads names, a group of rows at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        self._group = lru_cache(maxsize=8)(self._file.read_row_group)

    def __getitem__(self, document: int) -> DocumentName:
        rows = self._group(document // GROUP_ROWS)
        return DocumentName(**{name: rows.column(name)[document % GROUP_ROWS].as_py() for name in SCHEMA.names})
