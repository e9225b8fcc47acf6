"""Reads the documents of a work unit, and passes them through the steps that look at one document."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.corpus.config import CorpusConfig, named_steps, step_columns
from codekiln.corpus.decoding import NOT_UTF8, UndecodableError, decode_source, is_utf8
from codekiln.corpus.documents import document_name, hash_order
from codekiln.corpus.languages import detect_language, language_of
from codekiln.corpus.notebooks import notebook_to_text
from codekiln.corpus.scratch import (
    FLUSH_BYTES,
    FLUSH_COPIES,
    FLUSH_ROWS,
    MIN_FLUSH_BYTES,
    ORDER_BITS,
    READ_BATCH_ROWS,
    Scratch,
)
from codekiln.corpus.sources.blobs import ReadBlob
from codekiln.corpus.sources.files import UNREADABLE, SourceFile, WorkUnit
from codekiln.corpus.steps.step import Draft, Drop, Step
from codekiln.errors import InvalidFileError
from codekiln.files import atomic_write, write_json

NAME_NOT_UTF8 = "name not UTF-8"
N_EARLY_READS = 32  # of a task, from a store that answers late

COLUMNS = {
    "order": pa.int64(),
    "draw": pa.string(),
    "source": pa.string(),
    "repository": pa.string(),
    "revision": pa.string(),
    "license": pa.string(),
    "path": pa.string(),
    "language": pa.string(),
    "stars": pa.int64(),
    "kernel": pa.string(),
    "file_bytes": pa.int64(),  # as listed
    "text_bytes": pa.int64(),
    "text": pa.large_string(),
    "step": pa.string(),
    "reason": pa.string(),
    "measured": pa.float64(),
}
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary()}


@dataclass(frozen=True)
class UnitReader:
    """Task k reads work unit k into the scratch folder. Texts of dropped documents are kept if `keep_dropped`."""

    units: Sequence[WorkUnit]
    config: CorpusConfig
    scratch: Scratch
    keep_dropped: bool

    def __call__(self, unit: int) -> None:
        """Parts that an interrupted task has finished are not read again: their documents are skipped."""
        n_parts = n_rows = n_bytes = 0
        while (path := self.scratch.read_path(unit, n_parts)).is_file():
            with pq.ParquetFile(path) as file:
                n_rows += file.metadata.num_rows
            n_bytes += _sum(pq.read_table(path, columns=["text_bytes"]).column(0))
            n_parts += 1
        schema = pa.schema(
            [*COLUMNS.items(), *((name, _TYPES[kind]) for name, kind in step_columns(self.config).items())]
        )
        steps = named_steps(self.config)
        # Texts do not repeat, so a dictionary of them would be work for nothing.
        repeating = [name for name in schema.names if name != "text"]
        rows: list[dict[str, Any]] = []
        pending = 0
        flush_bytes = min(FLUSH_BYTES, max(MIN_FLUSH_BYTES, self.scratch.engine.worker_memory_bytes // FLUSH_COPIES))

        def flush() -> None:
            nonlocal n_parts, n_bytes, pending
            with atomic_write(self.scratch.read_path(unit, n_parts)) as temp_path:
                pq.write_table(
                    pa.Table.from_pylist(rows, schema),
                    temp_path,
                    compression="lz4",
                    use_dictionary=repeating,
                    row_group_size=READ_BATCH_ROWS,
                )
            n_parts += 1
            n_bytes += sum(row["text_bytes"] for row in rows)
            rows.clear()
            pending = 0

        def is_wanted(file: SourceFile) -> bool:
            """Whether no step drops a file before it is read."""
            return file.problem is None and not any(step.check_file(file) for _, step in steps)

        listed = map(with_utf8_names, islice(_readable(self.units[unit].files()), n_rows, None))
        for file in read_early(listed, is_wanted):
            row = self._read(file, steps)
            row["order"] = (unit << ORDER_BITS) + n_rows
            n_rows += 1
            rows.append(row)
            pending += len(row["text"] or "")
            if pending >= flush_bytes or len(rows) >= FLUSH_ROWS:
                flush()
        if rows:
            flush()
        write_json(self.scratch.unit_record(unit), {"parts": n_parts, "documents": n_rows, "text_bytes": n_bytes})

    def _read(self, file: SourceFile, steps: Sequence[tuple[str, Step]]) -> dict[str, Any]:
        """One row: the document, or the reason to drop it."""
        draft, step, drop = read_document(file, self.config, steps)
        if draft is not None and drop is not None and self.keep_dropped:
            _redact(draft, steps)
        is_text_kept = draft is not None and (drop is None or self.keep_dropped)
        text = draft.text if draft is not None and is_text_kept else None
        return {
            "draw": hash_order(self.config.seed, document_name(file.repository, file.revision, file.path)),
            "source": file.source,
            "repository": file.repository,
            "revision": file.revision,
            "license": draft.license if draft is not None else file.license,
            "path": file.path,
            "language": draft.language if draft is not None else (file.language or language_of(file.path) or ""),
            "stars": file.stars,
            "kernel": draft.kernel if draft is not None else "",
            "file_bytes": file.size,
            "text_bytes": file.size if text is None or drop is not None else len(text.encode()),
            "text": text,
            "step": step,
            "reason": drop.reason if drop is not None else None,
            "measured": drop.measured if drop is not None else None,
        } | (draft.columns if draft is not None else {})


def read_document(
    file: SourceFile, config: CorpusConfig, steps: Sequence[tuple[str, Step]]
) -> tuple[Draft | None, str | None, Drop | None]:
    """Passes a file through steps, which have names: the document, and where and why it is dropped, or None and None.

    The document is None if it was dropped before it was read.
    """
    if file.problem is not None:
        return None, "Source", Drop(file.problem)
    for name, step in steps:
        if drop := step.check_file(file):
            return None, name, drop
    draft, drop = read_draft(file, config)
    if draft is None or drop is not None:
        return None, "Read", drop
    for name, step in steps:
        if drop := step.check_document(draft):
            return draft, name, drop
        step.edit_document(draft)
    return draft, None, None


def read_draft(file: SourceFile, config: CorpusConfig) -> tuple[Draft | None, Drop | None]:
    """The document of a file, or why it is dropped. Notebooks become the text of their cells."""
    content = _read_content(file)
    if isinstance(content, Drop):
        return None, content
    text = content
    language = file.language if file.language is not None else detect_language(file.path, text)
    kernel = ""
    if language == "Jupyter":
        notebook = notebook_to_text(text, config.notebooks)
        if notebook is None:
            return None, Drop("damaged notebook")
        text, kernel = notebook.text, notebook.kernel
    if file.languages and language not in file.languages:
        return None, Drop(f"language {language}")
    return Draft(file=file, language=language, text=text, license=file.license, kernel=kernel), None


def _read_content(file: SourceFile) -> str | Drop:
    """The decoded text of a file, or why it is dropped."""
    if file.size > file.max_bytes:
        return _too_large(file, file.size)
    try:
        content = file.read()
        if len(content) > file.max_bytes:  # it has grown since it was listed
            return _too_large(file, len(content))
        if isinstance(content, bytes):
            return decode_source(content, file.path)
    except OSError:
        return Drop(UNREADABLE)
    except UndecodableError as error:
        return Drop(str(error))
    return content if is_utf8(content) else Drop(NOT_UTF8)


def _redact(draft: Draft, steps: Sequence[tuple[str, Step]]) -> None:
    """Replaces what steps of redaction would have replaced in a document that an earlier step drops: it is written too."""
    for _, step in steps:
        if step.redacts:
            step.edit_document(draft)


def _readable(files: Iterator[SourceFile]) -> Iterator[SourceFile]:
    """The files of a work unit. Raises InvalidFileError if its input is no longer there, or cannot be read."""
    try:
        yield from files
    except OSError as error:
        name = error.filename or "an input of the corpus"
        message = f"{name} cannot be read ({error.strerror or error}): restore it, then run the same command again"
        raise InvalidFileError(message) from error


def read_early(files: Iterator[SourceFile], is_wanted: Callable[[SourceFile], bool]) -> Iterator[SourceFile]:
    """The files in order. Blobs that are wanted are requested before their turn, `N_EARLY_READS` at a time."""
    waiting: deque[SourceFile] = deque()
    pool = ThreadPoolExecutor(N_EARLY_READS)
    try:
        for file in files:
            if isinstance(file.read, ReadBlob) and file.size <= file.max_bytes and is_wanted(file):
                waiting.append(replace(file, read=_Requested(pool.submit(file.read))))
            else:
                waiting.append(file)
            while waiting and not (isinstance(waiting[0].read, _Requested) and len(waiting) <= N_EARLY_READS):
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Requested:
    """The reader of content that another thread reads. An error is raised in its turn."""

    content: Future[bytes | str]

    def __call__(self) -> bytes | str:
        return self.content.result()


def _too_large(file: SourceFile, n_bytes: int) -> Drop:
    return Drop(f"over {file.max_bytes:,} bytes", n_bytes)


def with_utf8_names(file: SourceFile) -> SourceFile:
    """The file with a problem instead of a name that is not UTF-8, which no record can hold."""
    names = {name: getattr(file, name) for name in ("repository", "revision", "path", "license", "language")}
    wrong = {name: ascii(text)[1:-1] for name, text in names.items() if text is not None and not is_utf8(text)}
    return replace(file, **wrong, problem=NAME_NOT_UTF8) if wrong else file  # type: ignore[arg-type]


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
