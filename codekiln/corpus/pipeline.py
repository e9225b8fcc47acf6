"""Builds a corpus: lists and reads files, runs the steps, splits, and writes. Every drop is counted.

The engine is Daft: one plan for one machine and for a cluster. Texts pass through it once, into a scratch folder. Steps over
all documents compare small columns, and read single texts again where they must.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import daft
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft import DataType, col

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import FORMAT, MANIFEST, SPLITS, document_name, write_parts
from codekiln.corpus.languages import language_of
from codekiln.corpus.overlap import HELD_OUT_OVERLAP, Overlap, find_overlap
from codekiln.corpus.reading import NAME_NOT_UTF8, is_utf8, read_text
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.sources.files import SourceFile
from codekiln.corpus.split import HeldOut, choose_held_out, hash_order, split_rows
from codekiln.corpus.steps.license_gate import REASON as LICENSE_REASON
from codekiln.corpus.steps.step import Draft, Step
from codekiln.errors import ConfigError
from codekiln.files import JsonObject, write_json
from codekiln.folders import claim_folder, clear_folder
from codekiln.progress import ProgressTask, print_line, progress_bar

SCRATCH = ".scratch"  # the rows of the engine, before it is decided which are kept
# All files that this module writes: they are removed before an interrupted corpus is built again.
_FILES = (f"{SCRATCH}/*.parquet", f"{SCRATCH}/*.bin", *(f"{split}/part-*.parquet" for split in SPLITS), MANIFEST)
N_EXAMPLES = 10


def build_corpus(config: CorpusConfig, folder: Path) -> JsonObject:
    """Writes the corpus into `folder`, which is new or unfinished, and the manifest last. Returns the manifest.

    Raises ConfigError with all drop counts if nothing is left to train on.
    """
    claim_folder(folder, "corpus")
    clear_folder(folder, "corpus", (*_FILES, *(name for kind in Step.__subclasses__() for name in kind.outputs)))
    scratch = Scratch(folder / SCRATCH, folder)
    scratch.folder.mkdir()
    listed = [file for source in config.sources for file in source.files()]
    drops = _DropCounts()
    files = _check_files(listed, config, drops)

    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # Codekiln draws its own
    with count_interrupts() as interrupts, progress_bar("Corpus: read and filter", len(files)) as progress:
        _read(files, config, progress).write_parquet(str(scratch.folder), compression="zstd")
    # After Ctrl-C, the engine may return as if it had finished: a truncated read must not be mistaken for a complete one.
    n_read = sum(pq.read_metadata(path).num_rows for path in scratch.folder.glob("*.parquet"))
    _require_complete(n_read == len(files), interrupts)
    read = daft.read_parquet(str(scratch.folder / "*.parquet"))
    decided = read.exclude("text")
    for step in config.steps:
        decided = step.check_corpus(decided, scratch)
    decided = decided.collect()
    _count_drops(decided, drops)
    kept = decided.where(col("reason").is_null())
    n_kept = kept.count_rows()
    if not n_kept:
        raise _empty_corpus_error("every file was dropped", len(listed), drops)

    held_out = choose_held_out(kept, config)
    if held_out.unit != "repository":
        print_line(f"Corpus: held out by {held_out.unit}, because the repositories are few or large")
    overlap = _find_overlap(scratch, kept, held_out, config.max_overlap)
    if overlap is not None and overlap.dropped:
        reasons = Step.drop_rows(kept, overlap.dropped, HELD_OUT_OVERLAP).collect()
        _count_drops(reasons, drops)
        kept = reasons.where(col("reason").is_null())
        n_kept = kept.count_rows()
        if n_kept == overlap.n_held_out:
            raise _empty_corpus_error("all other files hold copies of held-out files", len(listed), drops)
    with count_interrupts() as interrupts, progress_bar("Corpus: write", len(SPLITS)) as progress:
        rows = read.join(kept.select("order"), on="order", how="inner")
        splits = _write_splits(rows, held_out, folder, progress)
    n_written = sum(split["documents"] for split in splits.values())
    n_cut = held_out.is_cut and splits["validation"]["documents"]  # a cut document is in both splits
    _require_complete(n_written - n_cut == n_kept == len(listed) - drops.n_documents, interrupts)
    manifest: JsonObject = {
        "format": FORMAT,
        "splits": splits,
        "read": {"files": len(listed), "bytes": sum(_size(file.location) for file in listed)},
        "kept": {"documents": n_kept, "text_bytes": _total(kept, "text_bytes")},
        "dropped": drops.record(),
        "emails_redacted": _total(kept, "emails"),
        "notices_removed": _total(kept, "notices"),
        "licenses": kept.groupby("license")
        .agg(col("order").count().alias("n"), col("text_bytes").sum())
        .sort("license")
        .to_pylist(),
        "repositories": kept.groupby("repository", "revision", "license")
        .agg(col("order").count().alias("documents"), col("text_bytes").sum())
        .sort("repository")
        .to_pylist(),
        "validation": {
            "by": held_out.unit,
            "names": list(held_out.names),
            "overlap": None if overlap is None else overlap.record(),
        },
    }
    for path in scratch.folder.iterdir():
        path.unlink()
    scratch.folder.rmdir()
    write_json(folder / MANIFEST, manifest)
    return manifest


def _find_overlap(
    scratch: Scratch, kept: daft.DataFrame, held_out: HeldOut, max_overlap: float | None
) -> Overlap | None:
    """The runs that the two splits share. None if nothing is held out, or only the end of a file."""
    if held_out.is_cut or not held_out.names:
        return None
    rows = kept.select("order", "repository").sort("order").to_arrow()
    orders = rows.column("order").to_numpy()
    column, values = held_out.selector
    is_held_out = pc.is_in(rows.column(column), pa.array(values)).to_numpy()
    return find_overlap(scratch, orders[~is_held_out], orders[is_held_out], max_overlap)


def _check_files(listed: Sequence[SourceFile], config: CorpusConfig, drops: "_DropCounts") -> list[SourceFile]:
    """The listed files that are read. Raises ConfigError if there are none."""
    files = []
    for file in listed:
        if reason := _check_file(file, config):
            name = _name(file) if is_utf8(_name(file)) else ascii(_name(file))
            drops.add(reason, name, _size(file.location))
        else:
            files.append(file)
    if not files:
        is_license = any(reason.startswith(LICENSE_REASON) for reason in drops.record())
        why = "no file has a permissive license" if is_license else "no file was kept"
        raise _empty_corpus_error(why, len(listed), drops, is_license=is_license)
    return files


def _write_splits(read: daft.DataFrame, held_out: HeldOut, folder: Path, progress: ProgressTask) -> JsonObject:
    """Writes the Parquet parts of each split. Returns their records."""
    splits: JsonObject = {}
    for split in SPLITS:
        parts = write_parts(folder / split, split_rows(read, held_out, split))
        splits[split] = {
            "documents": sum(part["documents"] for part in parts),
            "text_bytes": sum(part["text_bytes"] for part in parts),
            "parts": parts,
        }
        progress.advance()
    return splits


def _check_file(file: SourceFile, config: CorpusConfig) -> str | None:
    """The reason to drop a listed file before it is read."""
    if file.problem is not None:
        return file.problem
    if not is_utf8(_name(file)):
        return NAME_NOT_UTF8
    return next((reason for step in config.steps if (reason := step.check_file(file))), None)


def _read(files: list[SourceFile], config: CorpusConfig, progress: ProgressTask) -> daft.DataFrame:
    """One row per file: its columns in the corpus, those of the steps, and the reason to drop it or null."""
    step_columns = {name: kind for step in config.steps for name, kind in step.columns.items()}
    types = {str: DataType.string(), int: DataType.int64(), float: DataType.float64(), bytes: DataType.binary()}
    fields = {"text": DataType.string(), "text_bytes": DataType.int64(), "reason": DataType.string()}
    fields |= {name: types[kind] for name, kind in step_columns.items()}

    @daft.func.batch(return_dtype=DataType.struct(fields))
    def read(location: daft.Series, path: daft.Series) -> list[JsonObject]:
        pairs = zip(location.to_pylist(), path.to_pylist(), strict=True)
        rows = [dict.fromkeys(step_columns) | _read_one(Path(each), name, config) for each, name in pairs]
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
    unpacked = [col("read").get(name).alias(name) for name in fields]
    return frame.select(*[name for name in columns.column_names if name != "location"], *unpacked)


def _read_one(location: Path, path: str, config: CorpusConfig) -> JsonObject:
    """Reads one file and passes it through the steps. The text is returned only if the file is kept."""
    size = _size(location)
    read = read_text(location, path, config.notebooks)
    if read.problem is not None:
        return {"text_bytes": size, "reason": read.problem}
    draft = Draft(path=path, language=language_of(path) or "", text=read.text, kernel=read.kernel)
    for step in config.steps:
        if reason := step.check_document(draft):
            return {"text_bytes": size, "reason": reason} | draft.columns
        step.edit_document(draft)
    return {"text": draft.text, "text_bytes": len(draft.text.encode()), "reason": None} | draft.columns


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
        drops.add(reason, document_name(repository, revision, path), size)


def _total(rows: daft.DataFrame, column: str) -> int:
    """The sum of a column; 0 if no step has it."""
    if column not in rows.column_names:
        return 0
    return int(rows.agg(col(column).sum()).to_pydict()[column][0] or 0)


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


def _size(location: Path) -> int:
    """Bytes on the disk. 0 for a listed file that does not exist, which is counted when it is read."""
    try:
        return location.stat().st_size
    except OSError:
        return 0


def _name(file: SourceFile) -> str:
    return document_name(file.repository, file.revision, file.path)


def _empty_corpus_error(why: str, n_files: int, drops: _DropCounts, *, is_license: bool = False) -> ConfigError:
    counts = ", ".join(f"{reason}: {entry['documents']}" for reason, entry in drops.record().items())
    advice = "use other sources, or set --license SPDX if the code is yours" if is_license else "use other sources"
    return ConfigError(f"nothing to train on: {why} (of {n_files} files; {counts or 'none was found'}): {advice}")
