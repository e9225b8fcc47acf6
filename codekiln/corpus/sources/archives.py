"""Data sets in files: tables in Parquet and JSONL, and files in tar and zip archives."""

import itertools
from collections.abc import Iterator, Set
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from codekiln.corpus.declared import MAX_BYTES as MAX_LICENSE_BYTES
from codekiln.corpus.declared import (
    NearestLicense,
    declares_license,
    join_licenses,
    license_of_texts,
    named_license_file,
)
from codekiln.corpus.languages import LANGUAGES, known_language, may_be
from codekiln.corpus.licenses import UNKNOWN, declared_license
from codekiln.corpus.sources.blobs import BlobStore
from codekiln.corpus.sources.data_files import DataFile, find_data_files, fingerprint_of
from codekiln.corpus.sources.files import MAX_FILE_BYTES, CannotRead, HeldContent, Reader, SourceFile, WorkUnit
from codekiln.corpus.sources.ignored import VENDORED_REASON, is_vendored
from codekiln.corpus.sources.members import UNSAFE_NAME, Member, clean_name, is_unsafe
from codekiln.corpus.sources.records import Record, RecordPart, record_parts, value_at
from codekiln.corpus.sources.tar_members import tar_members
from codekiln.corpus.sources.zip_members import zip_members
from codekiln.errors import ConfigError

NO_TEXT = "no text"
OTHER_TYPE = "text of another type"
LONG_NAME = "name too long"
MAX_NAME_CHARACTERS = 1000
# Characters of a language other than English have three times as many bytes in JSON that is escaped to ASCII.
_JSON_FACTOR, _JSON_OTHER_BYTES = 3, 2**20


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns of a table. `meta.name` is the field `name` in the column `meta`.

    `license` may hold a list: the code is then under all of them. `text` holds the content as text or as bytes, or the id of a
    blob (`Archives.blobs`). Then `size` has its bytes, and `encoding` its encoding. Where a row is a whole repository, `files`
    is the column with the list of its files, without a dot, and `files.path` the field `path` of each of them.
    """

    text: str = "text"
    path: str | None = None
    repository: str | None = None
    revision: str | None = None
    license: str | None = None
    language: str | None = None
    stars: str | None = None
    size: str | None = None
    encoding: str | None = None
    files: str | None = None

    def __post_init__(self) -> None:
        if self.files is not None and "." in self.files:
            raise ConfigError(
                f"columns.files is {self.files!r}: the list of files must be a column of its own, without a dot"
            )

    def names(self) -> list[str]:
        """The columns to read. The list of files is read as a whole."""
        values = [value for field in fields(self) if (value := getattr(self, field.name)) is not None]
        return [value for value in values if self.files is None or not value.startswith(f"{self.files}.")]


@dataclass(frozen=True, kw_only=True)
class Archives:
    """Documents in files of `paths`: paths, folders, globs, and URLs of fsspec (`s3://`, `gs://`, `hf://`, `https://`).

    Tables are Parquet, and JSONL (`.jsonl`, or `.json` with an object per line; also `.gz` and `.zst`). `columns` names their
    columns. Without a column `path`, the path of a document is its file and the number of its row, or for JSONL the place of
    its line in bytes: `train/00/8192`. Without a column `repository`, the repository is the name of the file.

    Archives are `.tar` (also `.tar.gz` and `.tar.zst`) and `.zip`. Their members are source files: the first folder is the
    repository. Hidden files are ignored. Nothing is extracted to the disk.

    `license` is the SPDX expression for all of it. Without it, the license is in a column, or is what the nearest folder of a
    file declares, as in a folder on the disk. `language` is that of all documents. Only files in `languages` are read, by their
    column, name or content; all if it is empty. Only documents of `repositories` are read, or all.

    Limits: `max_bytes` of a document, and lines of JSON of three times as much and 1 MB. A file that is decompressed to more
    than 200 times its size, and to more than 64 MB, is not read further. What cannot be read is counted as a drop.
    """

    paths: tuple[str, ...]
    columns: Columns = Columns()
    source: str = "archive"
    license: str | None = None
    language: str | None = None
    languages: tuple[str, ...] = LANGUAGES
    repositories: tuple[str, ...] = ()
    is_prose: bool = False
    max_bytes: int = MAX_FILE_BYTES
    blobs: BlobStore | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The local folders among the paths."""
        return tuple(Path(path) for path in self.paths if "://" not in path and Path(path).is_dir())

    def units(self, scratch: Path) -> Iterator[WorkUnit]:
        """Parts of tables, and whole archives.

        Raises MissingFileError if there is no file, InvalidFileError if the first Parquet file is damaged or lacks a column,
        and ConfigError if nothing decides the language of rows.
        """
        files = find_data_files(self.paths)
        tables = [file for file in files if file.format in ("parquet", "jsonl")]
        if tables and self.languages and not (self.language or self.columns.language or self.columns.path):
            raise ConfigError(
                f"{tables[0].location}: nothing decides the language of its rows: name the column `path` or `language`, or set"
                ' `language`, such as language="Text"'
            )
        for part in record_parts(tables, self.columns.names()):
            yield TablePart(part, self)
        for file in files:
            if file.format in ("tar", "zip"):
                yield PackedFiles(file, self)

    def fingerprint(self) -> dict[str, Any]:
        """Paths, and a hash of the names, sizes, and times or etags of the files."""
        return {"paths": list(self.paths)} | fingerprint_of(find_data_files(self.paths))

    @property
    def max_line_bytes(self) -> int:
        return _JSON_FACTOR * self.max_bytes + _JSON_OTHER_BYTES

    def make_file(
        self, repository: str, path: str, size: int, read: Reader, problem: str | None = None, **declared: Any
    ) -> SourceFile:
        """A file with what all files of this source have. Names that are too long are cut, and are a problem."""
        if len(repository) > MAX_NAME_CHARACTERS or len(path) > MAX_NAME_CHARACTERS:
            repository, path = repository[:MAX_NAME_CHARACTERS], path[:MAX_NAME_CHARACTERS]
            problem = problem or LONG_NAME
        values = {"revision": "-", "license": UNKNOWN, "language": self.language} | declared
        if self.license is not None:
            values["license"] = self.license
        return SourceFile(
            source=self.source,
            repository=repository,
            path=path,
            size=size,
            read=CannotRead() if problem is not None else read,
            problem=problem,
            languages=self.languages if self.language is None else (),
            max_bytes=self.max_bytes,
            is_license_given=self.license is not None,
            is_prose=self.is_prose,
            **values,
        )

    def wants(self, path: str | None, language: str | None) -> bool:
        """Whether a file may be in one of the languages, by its column or its name; the content may decide."""
        if not self.languages or self.language is not None:
            return True
        return language in self.languages if language is not None else path is not None and may_be(path, self.languages)


@dataclass(frozen=True)
class TablePart:
    """The documents in a part of a table."""

    part: RecordPart
    source: Archives

    @property
    def n_bytes(self) -> int:
        return self.part.n_bytes

    def files(self) -> Iterator[SourceFile]:
        for record in self.part.records(self.source.columns.names(), self.source.max_line_bytes):
            number_path = f"{self.part.file.stem}/{record.number}"
            if self.source.columns.files is None or record.problem is not None:
                rows = [(number_path, record)]
            else:
                rows = [
                    (f"{number_path}/{k}", each) for k, each in enumerate(_listed(record, self.source.columns.files))
                ]
            for path, row in rows:
                if (file := self._file(row, path)) is not None:
                    yield file

    def _file(self, record: Record, number_path: str) -> SourceFile | None:
        """The document of a record, which has the path `number_path` without another; None if the source does not want it."""
        source, columns, stem = self.source, self.source.columns, self.part.file.stem
        if record.problem is not None:
            return source.make_file(stem, number_path, record.n_bytes, CannotRead(), record.problem)

        def value(name: str | None) -> Any:
            return value_at(record.values, name) if name is not None else None

        repository = _text(value(columns.repository)) or stem
        path, language = _text(value(columns.path)), _text(value(columns.language))
        language = known_language(language) if language is not None else None
        if not source.wants(path, language) or (source.repositories and repository not in source.repositories):
            return None
        found = value(columns.text)
        content, problem = _content(found)
        if source.blobs is not None:
            size = _count(value(columns.size)) or 0
        else:
            size = utf8_bytes(found) if problem is None else record.n_bytes
        reader: Reader = HeldContent(content)
        if source.blobs is not None and problem is None:
            reader, problem = source.blobs.reader(content, _text(value(columns.encoding)), source.max_bytes)
        return source.make_file(
            repository,
            (path or "").lstrip("/") or number_path,
            size,
            reader,
            problem,
            revision=_text(value(columns.revision)) or "-",
            license=license_of(value(columns.license)),
            language=source.language or language,
            stars=_count(value(columns.stars)),
        )


@dataclass(frozen=True)
class PackedFiles:
    """The members of an archive."""

    file: DataFile
    source: Archives

    @property
    def n_bytes(self) -> int:
        return self.file.n_bytes

    def files(self) -> Iterator[SourceFile]:
        """Reads the archive twice if the license is in it, because license files may come last; and a third time if a
        pyproject.toml names a file that says nothing by its own name."""
        source = self.source
        declared = self._read_licenses() if source.license is None else {}
        nearest = NearestLicense(PurePosixPath(), declared.get)
        last = None  # the repository of the member before
        for number, member in enumerate(self._members(self._is_wanted, source.max_bytes)):
            repository, path = self._place(member.name)
            if source.repositories and repository not in source.repositories:
                continue
            if repository != last:
                last, nearest = repository, NearestLicense(PurePosixPath(), declared.get)
            license = UNKNOWN
            if len(member.name) <= MAX_NAME_CHARACTERS and not is_unsafe(member.name):
                license = nearest.of(PurePosixPath(repository, path).parent) or UNKNOWN
            problem = member.problem
            if member.name and is_unsafe(member.name):
                problem = UNSAFE_NAME
            elif problem is None and any(map(is_vendored, path.split("/")[:-1])):
                problem = VENDORED_REASON
            yield source.make_file(
                repository,
                path or f"{self.file.stem}/{number}",
                member.size,
                HeldContent(member.content) if member.content is not None else CannotRead(),
                problem,
                license=license,
            )

    def _members(self, is_wanted: Any, max_bytes: int) -> Iterator[Member]:
        members = zip_members if self.file.format == "zip" else tar_members
        return members(self.file, max_bytes, is_wanted)

    def _is_wanted(self, name: str) -> bool:
        if is_unsafe(name):
            return True
        path = clean_name(name)
        return self.source.wants(path, None) and not any(part.startswith(".") for part in path.split("/"))

    def _place(self, name: str) -> tuple[str, str]:
        """Repository and path of a member."""
        if is_unsafe(name):
            return self.file.stem, name
        repository, _, path = clean_name(name).partition("/")
        return (repository, path) if path else (self.file.stem, repository)

    def _read_licenses(self, named: Set[PurePosixPath] = frozenset()) -> dict[PurePosixPath, str]:
        """What folders declare, by repository and folder. The texts of one repository are in memory at a time.

        Of a folder whose files are in several places of the archive and do not agree, the license is unknown. `named` are the
        places of license files that only a pyproject.toml names.
        """

        def is_wanted(name: str) -> bool:
            if is_unsafe(name) or len(name) > MAX_NAME_CHARACTERS:
                return False
            *folders, last = clean_name(name).split("/")
            is_declaration = declares_license(last) or PurePosixPath(*self._place(name)) in named
            return is_declaration and not any(map(is_vendored, folders))

        texts = (
            (PurePosixPath(*self._place(member.name)), member.content.decode("utf-8-sig", "replace"))
            for member in self._members(is_wanted, MAX_LICENSE_BYTES)
            if member.content is not None
        )
        found: dict[PurePosixPath, str] = {}
        unread: set[PurePosixPath] = set()
        for _, files in itertools.groupby(texts, key=lambda file: file[0].parts[0]):
            folders: dict[PurePosixPath, dict[str, str]] = {}
            for place, text in files:
                folders.setdefault(place.parent, {})[place.name] = text
            for folder, known in folders.items():
                name = named_license_file(known.get("pyproject.toml", ""))
                if name is not None and not declares_license(name):
                    unread.add(folder / name)
                declared = license_of_texts(known)
                if declared is not None:
                    found[folder] = declared if found.get(folder, declared) == declared else UNKNOWN
        return self._read_licenses(unread) if unread and not named else found


def _listed(record: Record, column: str) -> Iterator[Record]:
    """A record for each entry of the list in a column, with the entry in the place of the list."""
    entries = record.values.get(column)
    if not isinstance(entries, list):
        yield Record(record.number, {}, record.n_bytes, NO_TEXT if entries is None else OTHER_TYPE)
        return
    for entry in entries:
        yield Record(record.number, record.values | {column: entry}, record.n_bytes // len(entries))


def license_of(value: Any) -> str:
    """The SPDX expression of a column: a name in any spelling, or a list of names, all of which apply. `UNKNOWN` for others."""
    if isinstance(value, str):
        return _known_license(value)
    if isinstance(value, list) and value:
        return join_licenses({license_of(name) if isinstance(name, str) else UNKNOWN for name in value})
    return UNKNOWN


@lru_cache(maxsize=4096)
def _known_license(name: str) -> str:
    return declared_license(name, name, []) if len(name) <= MAX_NAME_CHARACTERS else UNKNOWN


def _content(value: Any) -> tuple[bytes | str, str | None]:
    """The content of a row, and its problem or None. Text has no byte order mark, as in files that are decoded."""
    if value is None:
        return "", NO_TEXT
    if isinstance(value, str):
        return value.removeprefix("\ufeff"), None
    return (value, None) if isinstance(value, bytes) else ("", OTHER_TYPE)


def utf8_bytes(content: bytes | str) -> int:
    """The bytes of a content, as UTF-8."""
    if isinstance(content, bytes) or content.isascii():
        return len(content)
    return len(content.encode(errors="surrogatepass"))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    """A number of at least 0 that fits into 64 bits; tables also hold them as floating point."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return None
    return int(value)
