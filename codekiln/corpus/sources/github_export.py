"""The public export of GitHub on BigQuery, three tables that are joined on the disk."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from codekiln.corpus.decoding import NOT_UTF8, is_utf8
from codekiln.corpus.languages import LANGUAGES, may_be
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.archives import NO_TEXT, license_of, utf8_bytes
from codekiln.corpus.sources.data_files import DataFile, find_data_files, fingerprint_of
from codekiln.corpus.sources.files import MAX_FILE_BYTES, CannotRead, HeldContent, SourceFile
from codekiln.corpus.sources.partitions import (
    MAX_PARTITIONS,
    PartitionWriter,
    Sorting,
    make_partitions,
    partition_path,
    read_partition,
)
from codekiln.corpus.sources.records import record_parts
from codekiln.errors import ConfigError
from codekiln.files import JsonObject
from codekiln.progress import ProgressTask, progress_bar

FORMAT = 1  # of the partitions
BINARY = "binary"
NO_CONTENT = "content is not in the export"
BAD_ROW = "row without an id, a repository or a path"
_MAX_LINE_BYTES = 16 * 2**20  # the export holds no content of more than 1 MB
_LINK_MODES = (40960, "40960")  # 0o120000; BigQuery writes numbers as text


@dataclass(frozen=True, kw_only=True)
class GitHubExport:
    """The tables of the BigQuery data set `bigquery-public-data.github_repos`, exported as Parquet or JSONL.

    `folder` is a folder or a URL with the folders `files` (columns `repo_name`, `path`, `id`), `contents` (`id`, `content`,
    `binary`) and `licenses` (`repo_name`, `license`: lower-case names such as "mit"). Their schemas are documented on the pages
    of the data set in the Google Cloud marketplace ("GitHub Activity Data").

    A content counts once, although many repositories hold it, as in data sets that were made from this export: its document
    is the copy in the repository that comes first by name, and of this the first by path. Its license is that of this
    repository. The export has no numbers of stars. Links, and files whose names are of no language in `languages`, are ignored.

    The tables are sorted into partitions by the hash of the content, of about `partition_bytes` of the exported contents. They
    need as much of the disk as the contents compressed by Zstandard. A worker holds the names of one partition in memory.
    """

    folder: str
    languages: tuple[str, ...] = LANGUAGES
    max_bytes: int = MAX_FILE_BYTES
    partition_bytes: int = 128 * 2**20

    @property
    def folders(self) -> tuple[Path, ...]:
        return () if "://" in self.folder else (Path(self.folder),)

    def units(self, scratch: Path) -> Iterator["ContentPartition"]:
        """The partitions. Raises MissingFileError if a table is missing, and InvalidFileError if it lacks a column."""
        inputs = {
            "tables": {name: fingerprint_of(self._files(name)) for name in ("files", "contents", "licenses")},
            "languages": list(self.languages),
            "partition_bytes": self.partition_bytes,
            "format": FORMAT,
        }
        folder = scratch / "github"
        record = make_partitions(folder, inputs, self._partition, not_kept=("licenses", "names"))
        for number, n_partition_bytes in enumerate(record["partitions"]):
            yield ContentPartition(folder, number, n_partition_bytes, self.languages, self.max_bytes)

    def fingerprint(self) -> dict[str, Any]:
        """A hash of the names, sizes, and times or etags of the files of each table."""
        return {"folder": self.folder} | {
            name: fingerprint_of(self._files(name)) for name in ("files", "contents", "licenses")
        }

    def _files(self, table: str) -> list[DataFile]:
        files = find_data_files([f"{self.folder.rstrip('/')}/{table}"])
        if other := next((file for file in files if file.format not in ("parquet", "jsonl")), None):
            raise ConfigError(f"{other.location} is no table: the export has Parquet or JSONL")
        return files

    def _partition(self, sorting: Sorting) -> JsonObject:
        tables = {name: self._files(name) for name in ("files", "contents", "licenses")}
        total = sum(file.n_bytes for file in tables["contents"])
        n = min(max(1, math.ceil(total / self.partition_bytes)), MAX_PARTITIONS)
        n_bytes = sum(file.n_bytes for files in tables.values() for file in files)
        done = (sorting.state or {}).get("read_bytes", 0)
        with progress_bar("GitHub: sort by content", n_bytes, done=done) as progress:
            return {"partitions": _Partitioning(sorting, n, self.languages, progress).run(tables)}


@dataclass(frozen=True)
class ContentPartition:
    """The contents of a partition, in the order of the export, then the files whose content is missing."""

    folder: Path
    number: int
    n_bytes: int  # of the contents
    languages: tuple[str, ...]
    max_bytes: int

    def files(self) -> Iterator[SourceFile]:
        """Raises CorruptFileError if the partition is damaged."""
        copies: dict[str, list[str]] = {}
        for content_id, *copy in read_partition(partition_path(self.folder / "copies", self.number)):
            if content_id not in copies or copy < copies[content_id]:
                copies[content_id] = copy
        for content_id, text, problem in read_partition(partition_path(self.folder / "contents", self.number)):
            if content_id is None:
                yield self._file(["-", text, UNKNOWN], "", problem)
            elif content_id in copies:
                yield self._file(copies.pop(content_id), text, problem)
        for content_id in sorted(copies):
            yield self._file(copies[content_id], "", NO_CONTENT)

    def _file(self, copy: Sequence[str], text: str, problem: str | None) -> SourceFile:
        repository, path, license = copy
        return SourceFile(
            source="github",
            repository=repository,
            revision="-",
            license=license,
            path=path,
            size=utf8_bytes(text),
            read=HeldContent(text) if problem is None else CannotRead(),
            problem=problem,
            languages=self.languages,
            max_bytes=self.max_bytes,
        )


class _Partitioning:
    """Joins files with licenses by repository, and sorts both files and contents by the id of the content."""

    def __init__(self, sorting: Sorting, n: int, languages: tuple[str, ...], progress: ProgressTask) -> None:
        self._sorting, self._folder = sorting, sorting.folder
        self._n, self._languages, self._progress = n, languages, progress
        saved = sorting.state or {}
        self._n_read: dict[str, int] = saved.get("read", {})  # parts of each table
        self._sizes: list[int] = saved.get("sizes", [0] * n)
        self._contents = sorting.writer("contents", n)

    def run(self, tables: dict[str, list[DataFile]]) -> list[int]:
        """The bytes of the contents of each partition."""
        licenses, names = (self._sorting.writer(name, self._n) for name in ("licenses", "names"))
        for values, _ in self._rows("licenses", tables, ("repo_name", "license")):
            if _is_name(repository := values.get("repo_name")):
                licenses.write(self._place(repository), [repository, license_of(values.get("license"))])
        for values, row in self._rows("files", tables, ("repo_name", "path", "id"), ("mode",)):
            repository, path, content_id = (values.get(name) for name in ("repo_name", "path", "id"))
            if not (_is_name(repository) and _is_name(path) and _is_name(content_id)):
                self._drop(row, BAD_ROW)
            elif values.get("mode") not in _LINK_MODES and may_be(path, self._languages):
                names.write(self._place(repository), [repository, path, content_id])
        copies = PartitionWriter(self._folder / "copies", self._n)
        for k in range(self._n):
            license_by_name = dict(read_partition(partition_path(self._folder / "licenses", k)))
            for repository, path, content_id in read_partition(partition_path(self._folder / "names", k)):
                license = license_by_name.get(repository, UNKNOWN)
                copies.write(self._place(content_id), [content_id, repository, path, license])
        copies.flush()
        for values, row in self._rows("contents", tables, ("id", "content", "binary")):
            self._write_content(values, row)
        self._contents.flush()
        return self._sizes

    def _rows(
        self, table: str, tables: dict[str, list[DataFile]], columns: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[dict[str, Any], str]]:
        """The values of the records of a table, each with the place of the record. Those with a problem are dropped.

        Parts that were read before an interruption are left out: their rows are saved.
        """
        for number, part in enumerate(record_parts(tables[table], columns)):
            if number < self._n_read.get(table, 0):
                continue
            for record in part.records([*columns, *optional], _MAX_LINE_BYTES):
                row = f"{part.file.name}/{record.number}"
                if record.problem is None:
                    yield record.values, row
                else:
                    self._drop(row, record.problem)
            self._progress.advance(part.n_bytes)
            self._n_read[table] = number + 1
            self._sorting.save({"read": self._n_read, "read_bytes": self._progress.done, "sizes": self._sizes})

    def _write_content(self, values: dict[str, Any], row: str) -> None:
        content_id, text = values.get("id"), values.get("content")
        if not _is_name(content_id):
            self._drop(row, BAD_ROW)
            return
        problem = None
        if values.get("binary") in (True, "true"):
            text, problem = "", BINARY
        elif not isinstance(text, str):
            text, problem = "", NO_TEXT
        elif not is_utf8(text):
            text, problem = "", NOT_UTF8
        place = self._place(content_id)
        self._contents.write(place, [content_id, text, problem])
        self._sizes[place] += utf8_bytes(text)

    def _drop(self, row: str, problem: str) -> None:
        """A row that belongs to no file. It is counted in the partition of its place."""
        self._contents.write(self._place(row), [None, row, problem])

    def _place(self, name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()) % self._n


def _is_name(value: Any) -> TypeGuard[str]:
    """Whether a value is text that a record can hold, of at most 4,096 characters."""
    return isinstance(value, str) and 0 < len(value) <= 4096 and is_utf8(value)
