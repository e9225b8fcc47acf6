"""Documents on disk: Parquet parts per split, and a manifest with their checksums."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import JsonObject, RecordedFile, checksum, read_json, recorded_files, verify_checksum
from codekiln.tables import write_table

SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("repository", pa.string()),
        ("revision", pa.string()),
        ("license", pa.string()),
        ("path", pa.string()),
        ("language", pa.string()),
    ]
)
# What the last phase of the steps sees of a document.
DOCUMENT_COLUMNS = (*SCHEMA.names, "stars", "kernel")
SPLITS = ("train", "validation")
DROPPED = "dropped"  # the folder of dropped documents
MANIFEST = "manifest.json"
FORMAT = 3  # of the manifest
PART_BYTES = 32 * 2**20
READ_BATCH_ROWS = 512
GROUP_ROWS = 512  # of a row group


@dataclass(frozen=True)
class Document:
    """One file with its metadata. `license` is the SPDX expression that its repository declares."""

    text: str
    source: str
    repository: str
    revision: str
    license: str
    path: str
    language: str

    @property
    def name(self) -> str:
        """`repository@revision/path`, the same in every report."""
        return document_name(self.repository, self.revision, self.path)


def document_name(repository: str, revision: str, path: str) -> str:
    """The name of a document in every report."""
    return f"{repository}@{revision}/{path}"


def hash_order(seed: int, name: str) -> str:
    """A uniform random order of names: 16 hexadecimal digits that depend on the seed and the name only."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16]


def write_part(path: Path, batches: Iterable[pa.RecordBatch]) -> JsonObject:
    """Writes one part with the rows of `SCHEMA`, of which `GROUP_ROWS` are in memory. Returns its record."""
    n_bytes = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal n_bytes
        for batch in batches:
            n_bytes += _text_bytes(batch)
            yield batch.cast(SCHEMA)

    n_documents = write_table(path, rows(), SCHEMA, group_rows=GROUP_ROWS)
    return {"file": path.name, "documents": n_documents, "text_bytes": n_bytes} | checksum(path)


def read_manifest(corpus: Path) -> JsonObject:
    """The manifest of a finished corpus. Raises MissingFileError if there is none, and InvalidFileError if it is damaged."""
    path = corpus / MANIFEST
    if not path.is_file():
        raise MissingFileError(f"{corpus} has no finished corpus ({MANIFEST} is missing): run `codekiln train` first")
    manifest = read_json(path)
    splits = manifest.get("splits")
    if manifest.get("format") != FORMAT or not isinstance(splits, dict) or not all(map(_is_split, splits.values())):
        raise InvalidFileError(
            f"{path} is damaged or of another version of Codekiln (format {FORMAT} is needed): "
            f"remove {corpus} and run the same command again"
        )
    return manifest


def _is_split(entry: object) -> bool:
    """Whether an entry of the manifest has the parts of a split."""
    parts = entry.get("parts") if isinstance(entry, dict) else None
    return isinstance(parts, list) and all(
        isinstance(part, dict) and isinstance(part.get("file"), str) and {"bytes", "sha256"} <= part.keys()
        for part in parts
    )


def corpus_files(corpus: Path) -> Iterator[RecordedFile]:
    """The files of a corpus, with their checksums: its parts, what its steps listed, and dropped documents."""
    manifest = read_manifest(corpus)
    for split, entry in manifest["splits"].items():
        for part in entry["parts"]:
            yield RecordedFile(corpus / split / Path(part["file"]).name, part["sha256"])
    yield from recorded_files(corpus, manifest.get("lists", {}), corpus / MANIFEST)
    yield from recorded_files(corpus / DROPPED, manifest.get("dropped_parts", {}), corpus / MANIFEST)


def read_documents(corpus: Path, split: str) -> Iterator[Document]:
    """The documents of a split in order. Each part is verified against the manifest before it is read.

    Raises CorruptFileError that names a corrupt part.
    """
    for record in read_manifest(corpus)["splits"][split]["parts"]:
        for batch in _batches(corpus, split, record, SCHEMA.names):
            for row in batch.to_pylist():
                yield Document(**row)


def read_texts(corpus: Path, split: str, part: int) -> Iterator[list[str]]:
    """The texts of a part in order, in batches. The part is verified against the manifest first."""
    record = read_manifest(corpus)["splits"][split]["parts"][part]
    for batch in _batches(corpus, split, record, ["text"]):
        yield batch.column("text").to_pylist()


def read_names(corpus: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Repository, revision, path and license of the documents of a split, in order. Each part is verified first."""
    for record in read_manifest(corpus)["splits"][split]["parts"]:
        yield from _batches(corpus, split, record, ["repository", "revision", "path", "license"])


def _batches(corpus: Path, split: str, record: JsonObject, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a part, after its checksum was verified."""
    path = corpus / split / Path(record["file"]).name
    verify_checksum(path, record, folder=corpus)
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=READ_BATCH_ROWS, columns=columns, use_threads=False)


def _text_bytes(data: pa.RecordBatch | pa.Table) -> int:
    return int(pc.sum(pc.binary_length(data.column("text"))).as_py() or 0)
