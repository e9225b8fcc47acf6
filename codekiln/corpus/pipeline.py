"""Builds a corpus: license gate, read, filters, exact duplicates, caps, redaction, split. Every drop is counted.

The engine is Daft: one plan for one machine and for a cluster. Texts pass through it once, into a scratch folder. Steps over
all documents (duplicates, caps) read only the small columns.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import daft
import pyarrow as pa
import pyarrow.parquet as pq
from daft import DataType, Window, col, lit
from daft.functions import when

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.dedup import duplicate_key
from codekiln.corpus.documents import FORMAT, MANIFEST, SCHEMA, SPLITS, write_parts
from codekiln.corpus.filters import drop_reason
from codekiln.corpus.languages import language_of
from codekiln.corpus.licenses import is_permissive
from codekiln.corpus.redact import redact_emails
from codekiln.corpus.sources.files import SourceFile
from codekiln.errors import ConfigError
from codekiln.files import JsonObject, write_json
from codekiln.folders import claim_folder, clear_folder
from codekiln.progress import ProgressTask, progress_bar

SCRATCH = ".scratch"  # the rows of the engine, before it is decided which are kept
# All files that this module writes: they are removed before an interrupted corpus is built again.
_FILES = (f"{SCRATCH}/*.parquet", *(f"{split}/part-*.parquet" for split in SPLITS), MANIFEST)
N_EXAMPLES = 10
DUPLICATE, CAPPED = "duplicate", "over its repository's cap"


def build_corpus(config: CorpusConfig, folder: Path) -> JsonObject:
    """Writes the corpus into `folder`, which is new or unfinished, and the manifest last. Returns the manifest.

    Raises ConfigError with all drop counts if nothing is left to train on.
    """
    claim_folder(folder, "corpus")
    clear_folder(folder, "corpus", _FILES)
    scratch = folder / SCRATCH
    scratch.mkdir()
    listed = [file for source in config.sources for file in source.files()]
    files = [file for file in listed if _is_utf8(_name(file))]
    permitted = [file for file in files if is_permissive(file.license, config.licenses)]
    refused = [file for file in files if not is_permissive(file.license, config.licenses)]
    drops = _DropCounts()
    for file in listed:
        if not _is_utf8(_name(file)):
            drops.add("name not UTF-8", ascii(_name(file)), _size(file.location))
    for file in refused:
        drops.add(f"license {file.license}", _name(file), _size(file.location))
    if not permitted:
        raise _empty_corpus_error("no file has a permissive license", len(listed), drops, is_license=True)

    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # Codekiln draws its own
    with count_interrupts() as interrupts, progress_bar("Corpus: read and filter", len(permitted)) as progress:
        _read(permitted, config, progress).write_parquet(str(scratch), compression="zstd")
    # After Ctrl-C, the engine may return as if it had finished: a truncated read must not be mistaken for a complete one.
    n_read = sum(pq.read_metadata(path).num_rows for path in scratch.glob("*.parquet"))
    _require_complete(n_read == len(permitted), interrupts)
    read = daft.read_parquet(str(scratch / "*.parquet"))
    decided = _mark_duplicates_and_caps(read.exclude("text"), config).collect()
    _count_drops(decided, drops)
    kept = decided.where(col("reason").is_null())
    sizes = kept.groupby("repository").agg(col("text_bytes").sum(), col("order").count().alias("n")).to_pydict()
    if not sizes["repository"]:
        raise _empty_corpus_error("every file was dropped", len(listed), drops)

    split_by, validation = _choose_validation(dict(zip(sizes["repository"], sizes["text_bytes"], strict=True)), config)
    is_validation = (
        col("repository").is_in(sorted(validation))
        if split_by == "repository"
        else col("draw") < lit(_hash_threshold(config))
    )
    if split_by == "repository" and not validation:
        is_validation = lit(False)
    chosen = kept.select("order", is_validation.alias("validation"))
    splits: dict[str, Any] = {}
    with count_interrupts() as interrupts, progress_bar("Corpus: write", len(SPLITS)) as progress:
        for split in SPLITS:
            mine = chosen.where(col("validation") == lit(split == "validation")).select("order")
            rows = read.join(mine, on="order", how="inner").sort("order").select(*SCHEMA.names)
            parts = write_parts(folder / split, _batches(rows))
            splits[split] = {
                "documents": sum(part["documents"] for part in parts),
                "text_bytes": sum(part["text_bytes"] for part in parts),
                "parts": parts,
            }
            progress.advance()
    n_kept = sum(split["documents"] for split in splits.values())
    _require_complete(n_kept == sum(sizes["n"]) == len(listed) - drops.n_documents, interrupts)
    if not splits["train"]["documents"]:
        raise _empty_corpus_error("no document is left for training", len(listed), drops)

    licenses = kept.groupby("license").agg(col("order").count().alias("n"), col("text_bytes").sum()).sort("license")
    manifest: JsonObject = {
        "format": FORMAT,
        "splits": splits,
        "read": {"files": len(listed), "bytes": sum(_size(file.location) for file in listed)},
        "kept": {"documents": sum(sizes["n"]), "text_bytes": sum(sizes["text_bytes"])},
        "dropped": drops.record(),
        "emails_redacted": int(kept.agg(col("emails").sum()).to_pydict()["emails"][0] or 0),
        "licenses": _rows(licenses),
        "repositories": _rows(
            kept.groupby("repository", "revision", "license")
            .agg(col("order").count().alias("documents"), col("text_bytes").sum())
            .sort("repository")
        ),
        "validation": {"by": split_by, "repositories": sorted(validation)},
    }
    for path in scratch.glob("*.parquet"):
        path.unlink()
    scratch.rmdir()
    write_json(folder / MANIFEST, manifest)
    return manifest


def _read(files: list[SourceFile], config: CorpusConfig, progress: ProgressTask) -> daft.DataFrame:
    """One row per file: its columns in the corpus, its duplicate key, and the reason to drop it or null."""
    result = DataType.struct(
        {
            "text": DataType.string(),
            "text_bytes": DataType.int64(),
            "emails": DataType.int64(),
            "key": DataType.string(),
            "reason": DataType.string(),
        }
    )

    @daft.func.batch(return_dtype=result)
    def read(location: daft.Series, path: daft.Series) -> list[JsonObject]:
        rows = [
            _read_one(Path(loc), name, config) for loc, name in zip(location.to_pylist(), path.to_pylist(), strict=True)
        ]
        progress.advance(len(rows))
        return rows

    columns = pa.table(
        {
            "order": pa.array(range(len(files)), pa.int64()),
            "draw": [hash_order(config.seed, _name(file)) for file in files],
            "source": [file.source for file in files],
            "repository": [file.repository for file in files],
            "revision": [file.revision for file in files],
            "license": [file.license for file in files],
            "path": [file.path for file in files],
            "language": [language_of(file.path) or "" for file in files],
            "location": [str(file.location) for file in files],
        }
    )
    frame = daft.from_arrow(columns).into_batches(128).with_column("read", read(col("location"), col("path")))
    unpacked = [col("read").get(name).alias(name) for name in ("text", "text_bytes", "emails", "key", "reason")]
    return frame.select(*[name for name in columns.column_names if name != "location"], *unpacked)


def _read_one(location: Path, path: str, config: CorpusConfig) -> JsonObject:
    """Reads and filters one file. The text is returned only if the file is kept."""
    dropped: JsonObject = {"text": None, "text_bytes": 0, "emails": 0, "key": None}
    try:
        size = location.stat().st_size
        if size > config.max_file_bytes:
            return dropped | {"text_bytes": size, "reason": f"over {config.max_file_bytes:,} bytes"}
        raw = location.read_bytes()
    except OSError:
        return dropped | {"reason": "unreadable"}
    dropped["text_bytes"] = len(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return dropped | {"reason": "not UTF-8"}
    if reason := drop_reason(text, config.filters):
        return dropped | {"reason": reason}
    redacted, emails = redact_emails(text)
    size = len(redacted.encode())
    return {"text": redacted, "text_bytes": size, "emails": emails, "key": duplicate_key(path, text), "reason": None}


def _mark_duplicates_and_caps(rows: daft.DataFrame, config: CorpusConfig) -> daft.DataFrame:
    """Marks duplicates (the first in order stays) and documents over the cap of their repository (the lowest hashes stay)."""
    judged, passed = rows.where(col("reason").not_null()), rows.where(col("reason").is_null())
    first = passed.groupby("key").agg(col("order").min().alias("first"))
    passed = passed.join(first, on="key", how="inner")
    unique = passed.where(col("order") == col("first")).exclude("first")
    repeated = passed.where(col("order") != col("first")).exclude("first").with_column("reason", lit(DUPLICATE))
    if config.max_repository_bytes is not None:
        drawn = Window().partition_by("repository").order_by("draw", "order")
        drawn = drawn.rows_between(Window.unbounded_preceding, Window.current_row)
        running = unique.with_column("running", col("text_bytes").sum().over(drawn))
        is_over = col("running") > lit(config.max_repository_bytes)
        reason = when(is_over, lit(CAPPED)).otherwise(lit(None).cast(DataType.string()))
        unique = running.with_column("reason", reason).exclude("running")
    columns = rows.column_names
    return judged.select(*columns).concat(repeated.select(*columns)).concat(unique.select(*columns))


class _DropCounts:
    """Drops by reason: documents, bytes, and ten examples."""

    def __init__(self) -> None:
        self._by_reason: dict[str, JsonObject] = {}

    def add(self, reason: str, name: str, size: int, n: int = 1) -> None:
        entry = self._by_reason.setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})
        entry["documents"] += n
        entry["bytes"] += size
        if len(entry["examples"]) < N_EXAMPLES:
            entry["examples"].append(name)

    @property
    def n_documents(self) -> int:
        return sum(entry["documents"] for entry in self._by_reason.values())

    def record(self) -> JsonObject:
        return dict(sorted(self._by_reason.items(), key=lambda item: (-item[1]["documents"], item[0])))


def _count_drops(decided: daft.DataFrame, drops: _DropCounts) -> None:
    columns = ("reason", "repository", "revision", "path", "text_bytes")
    rows = decided.where(col("reason").not_null()).sort(["draw", "order"]).select(*columns).to_pydict()
    for reason, repository, revision, path, size in zip(*(rows[name] for name in columns), strict=True):
        drops.add(reason, f"{repository}@{revision}/{path}", size)


def _choose_validation(repository_bytes: dict[str, int], config: CorpusConfig) -> tuple[str, set[str]]:
    """The repositories that are held out: in the order of their hashes, each that fits, until the fraction is reached.

    A single repository cannot be on one side only: then files are held out, and the manifest records it.
    """
    if len(repository_bytes) == 1 and config.validation_fraction > 0:
        return "file", set()
    wanted = config.validation_fraction * sum(repository_bytes.values())
    validation: set[str] = set()
    held_bytes = 0
    for name in sorted(repository_bytes, key=lambda name: hash_order(config.seed, name)):
        if held_bytes + repository_bytes[name] <= 1.2 * wanted:
            validation.add(name)
            held_bytes += repository_bytes[name]
        if held_bytes >= wanted:
            break
    if not validation and wanted > 0:
        validation.add(min(repository_bytes, key=lambda name: (repository_bytes[name], name)))
    return "repository", validation


def _hash_threshold(config: CorpusConfig) -> str:
    """The hash below which a fraction of `config.validation_fraction` of all hashes is."""
    return f"{int(config.validation_fraction * 16**16):016x}"


def hash_order(seed: int, name: str) -> str:
    """A uniform random order of names: 16 hexadecimal digits that depend on the seed and the name only."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:16]


@contextmanager
def count_interrupts() -> Iterator[list[int]]:
    """Within the block, Ctrl-C is recorded in the list before it interrupts: the engine may swallow the exception.

    Has no effect outside of the main thread.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def _require_complete(is_complete: bool, interrupts: list[int]) -> None:
    """Raises KeyboardInterrupt if the engine swallowed a Ctrl-C. Without one, a wrong count is a bug."""
    if not is_complete:
        if interrupts:
            raise KeyboardInterrupt
        raise RuntimeError("the corpus engine returned another number of rows than it was given")


def _is_utf8(name: str) -> bool:
    """Whether a file name is valid UTF-8. Other bytes are lone surrogates, which no record can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _size(location: Path) -> int:
    """Bytes on the disk. 0 for a listed file that does not exist, which is counted when it is read."""
    try:
        return location.stat().st_size
    except OSError:
        return 0


def _name(file: SourceFile) -> str:
    return f"{file.repository}@{file.revision}/{file.path}"


def _batches(rows: daft.DataFrame) -> Iterator[pa.RecordBatch]:
    """The rows in small batches, so that parts have nearly equal sizes whatever batches the engine returns."""
    for batch in rows.to_arrow_iter():
        for start in range(0, batch.num_rows, 256):
            yield batch.slice(start, 256).cast(SCHEMA)


def _rows(frame: daft.DataFrame) -> list[JsonObject]:
    rows: list[JsonObject] = frame.to_pylist()
    return rows


def _empty_corpus_error(why: str, n_files: int, drops: _DropCounts, *, is_license: bool = False) -> ConfigError:
    counts = ", ".join(f"{reason}: {entry['documents']}" for reason, entry in drops.record().items())
    advice = "use other sources, or set --license SPDX if the code is yours" if is_license else "use other sources"
    return ConfigError(f"nothing to train on: {why} (of {n_files} files; {counts or 'none was found'}): {advice}")
