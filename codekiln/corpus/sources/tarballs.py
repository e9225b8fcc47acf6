"""Repositories in .tar.gz archives, read as a stream: nothing is extracted to the disk.

An archive is read twice: first the files that declare licenses and the .gitignore files, then the content. Hostile archives
cannot fill the memory: no read is larger than `MAX_READ_BYTES`, and an archive that expands too far is not read to its end.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from codekiln.corpus.declared import MAX_BYTES as MAX_DECLARATION_BYTES
from codekiln.corpus.declared import NearestLicense, declares_license, license_of_texts, named_license_file
from codekiln.corpus.languages import may_be
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.files import MAX_FILE_BYTES, CannotRead, Reader, SourceFile
from codekiln.corpus.sources.ignored import VENDORED_REASON, is_hidden, is_ignored, is_vendored, parse_gitignore
from codekiln.errors import MissingFileError

DAMAGED = "damaged archive"
TOO_LARGE = "archive expands too far"
TOO_MANY = "archive with too many files"
BAD_PATH = "path leaves the repository or is too long"
REPEATED = "second file of the same name"
MAX_RATIO = 20  # of expanded to compressed bytes, for archives that expand to more than MAX_EXPANDED_BYTES
MAX_EXPANDED_BYTES = 10**9
MAX_READ_BYTES = 2**20  # a file, or a header
MAX_DECLARED_BYTES = 50 * 2**20  # of all files that declare licenses, which are in memory
MAX_MEMBERS = 1_000_000
MAX_PATH_CHARACTERS, MAX_PATH_PARTS = 1024, 128
_BLOCK = 512
_END = bytes(_BLOCK)  # a tar archive ends with blocks of zeros
_GITIGNORE = ".gitignore"
_ROOT = PurePosixPath()
_CANNOT_READ = CannotRead()
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError, RecursionError)


class ArchiveError(Exception):
    """An archive that is not read to its end; the argument is the reason."""


@dataclass(frozen=True)
class Archive:
    """A .tar.gz of one commit of a repository, with everything in one top folder, as GitHub and GitLab make them.

    `license` is what the forge declares for the repository; None leaves it to the files of the archive.
    """

    location: Path
    n_bytes: int  # compressed
    source: str
    repository: str
    revision: str
    license: str | None
    stars: int
    languages: tuple[str, ...]


@dataclass(frozen=True)
class ArchiveUnit:
    """A work unit: the files of archives, in their order."""

    archives: tuple[Archive, ...]

    @property
    def n_bytes(self) -> int:
        return sum(archive.n_bytes for archive in self.archives)

    def files(self) -> Iterator[SourceFile]:
        """Files as `LocalRepositories` lists them. An archive that cannot be read to its end has a file "." with the reason.

        Raises MissingFileError if an archive is gone.
        """
        for archive in self.archives:
            try:
                yield from _list(archive)
            except ArchiveError as error:
                yield _source_file(archive, ".", 0, problem=str(error))
            except FileNotFoundError:
                raise MissingFileError(
                    f"{archive.location} was removed while the corpus was built: run again to fetch it"
                ) from None


@dataclass(frozen=True)
class Content:
    """The reader of a file that is in memory, because its archive has been read past it."""

    data: bytes = field(repr=False)

    def __call__(self) -> bytes:
        return self.data


def verify_archive(location: Path) -> None:
    """Raises ArchiveError if a .tar.gz ends too early, or expands too far."""
    with _Stream(location) as stream:
        try:
            while stream.read(MAX_READ_BYTES):
                pass
        except _DAMAGE:
            raise ArchiveError(DAMAGED) from None
        if stream.tell() == 0:  # an empty file is no error to gzip
            raise ArchiveError(DAMAGED)


def _list(archive: Archive) -> Iterator[SourceFile]:
    rules = _read_rules(archive)
    seen: set[str] = set()
    for member, tar in _members(archive.location):
        path = _path_in_repository(member.name)
        if path is None:
            yield _source_file(archive, member.name[:MAX_PATH_CHARACTERS], member.size, problem=BAD_PATH)
            continue
        skip = rules.skip(path, is_folder=member.isdir())
        if skip is not None:
            if skip.reason is not None and skip.path not in seen:
                seen.add(skip.path)
                yield _source_file(archive, skip.path, 0, problem=skip.reason)
            continue
        if not _is_regular(member) or not may_be(path.name, archive.languages):
            continue
        license = rules.license_of(path.parent)
        if str(path) in seen:
            yield _source_file(archive, str(path), member.size, problem=REPEATED)
            continue
        seen.add(str(path))
        read: Reader = CannotRead() if member.size > MAX_FILE_BYTES else Content(_read_member(tar, member))
        yield _source_file(archive, str(path), member.size, read=read, license=license)


def _source_file(
    archive: Archive,
    path: str,
    size: int,
    *,
    read: Reader = _CANNOT_READ,
    license: str | None = None,
    problem: str | None = None,
) -> SourceFile:
    return SourceFile(
        source=archive.source,
        repository=archive.repository,
        revision=archive.revision,
        license=license or archive.license or UNKNOWN,
        path=path,
        size=size,
        read=read,
        problem=problem,
        stars=archive.stars,
        languages=archive.languages,
    )


# Members


def _members(location: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members of an archive, in order. Raises ArchiveError where it cannot be read further."""
    try:
        with _Stream(location) as stream, tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as tar:
            n_members = 0
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all of them otherwise
                n_members += 1
                if n_members > MAX_MEMBERS:
                    raise ArchiveError(TOO_MANY)
                if member.size < 0:
                    raise ArchiveError(DAMAGED)
                yield member, tar
            # tarfile takes a damaged header for the end.
            if stream.last_read != _END:
                raise ArchiveError(DAMAGED)
    except _DAMAGE:
        raise ArchiveError(DAMAGED) from None


def _is_regular(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file with content: no link, folder, device, or file with holes."""
    return member.isreg() and not member.issparse()


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a regular file of at most `MAX_READ_BYTES`."""
    try:
        file = tar.extractfile(member)
        content = file.read() if file is not None else b""
    except _DAMAGE:
        raise ArchiveError(DAMAGED) from None
    if len(content) != member.size:
        raise ArchiveError(DAMAGED)
    return content


def _path_in_repository(name: str) -> PurePosixPath | None:
    """The path of a member below the top folder of its archive; None if it leaves that folder, or is too long."""
    parts = name.split("/")
    if (
        len(name) > MAX_PATH_CHARACTERS
        or len(parts) > MAX_PATH_PARTS
        or not all(parts)
        or {".", ".."}.intersection(parts)
        or "\0" in name
    ):
        return None
    return PurePosixPath(*parts[1:])


class _Stream(io.RawIOBase):
    """The expanded bytes of a .tar.gz, forward only. Raises ArchiveError instead of reading more than the limits."""

    def __init__(self, location: Path) -> None:
        self._file = gzip.open(location)  # noqa: SIM115 - closed with the stream
        self._limit = max(MAX_EXPANDED_BYTES, MAX_RATIO * location.stat().st_size)
        self._position = 0
        self.last_read = b""

    def close(self) -> None:
        self._file.close()
        super().close()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise ArchiveError(DAMAGED)
        if offset > self._limit:
            raise ArchiveError(TOO_LARGE)
        while self._position < offset:
            if not self.read(min(offset - self._position, MAX_READ_BYTES)):
                break
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise ArchiveError(DAMAGED)
        self.last_read = self._file.read(size)
        self._position += len(self.last_read)
        if self._position > self._limit:
            raise ArchiveError(TOO_LARGE)
        return self.last_read


# Rules of the repository


@dataclass(frozen=True)
class _Skip:
    """A folder or file that is not listed. With a reason, it is counted once as a drop."""

    path: str
    reason: str | None


class _Rules:
    """What the files of a repository say about its files: which license they have, and which are ignored."""

    def __init__(self, archive: Archive, texts: dict[PurePosixPath, dict[str, str]]) -> None:
        self._texts = texts  # of folders, by name
        self._archive = archive
        self._nearest = NearestLicense(_ROOT, self._read_license)
        self._skipped: dict[PurePosixPath, _Skip | None] = {_ROOT: None}
        self._ignored: dict[PurePosixPath, tuple[tuple[PurePath, Any], ...]] = {}

    def license_of(self, folder: PurePosixPath) -> str | None:
        """What the nearest folder declares that declares anything; for the whole repository, what the forge knows counts."""
        return self._nearest.of(folder)

    def _read_license(self, folder: PurePosixPath) -> str | None:
        if folder == _ROOT and self._archive.license is not None:
            return self._archive.license
        return license_of_texts(self._texts.get(folder, {}))

    def skip(self, path: PurePosixPath, *, is_folder: bool) -> _Skip | None:
        """Why a path is not listed; None if it is."""
        return self._skip_folder(path) if is_folder or path == _ROOT else self._skip(path, is_folder=False)

    def _skip_folder(self, folder: PurePosixPath) -> _Skip | None:
        if folder not in self._skipped:
            self._skipped[folder] = self._skip(folder, is_folder=True)
        return self._skipped[folder]

    def _skip(self, path: PurePosixPath, *, is_folder: bool) -> _Skip | None:
        above = self._skip_folder(path.parent)
        if above is not None:
            return above
        if is_hidden(path.name) or is_ignored(path, is_folder, self._gitignores(path.parent)):
            return _Skip(str(path), None)
        return _Skip(str(path), VENDORED_REASON) if is_folder and is_vendored(path.name) else None

    def _gitignores(self, folder: PurePosixPath) -> tuple[tuple[PurePath, Any], ...]:
        """The .gitignore files that apply in a folder, the nearest last."""
        if folder not in self._ignored:
            above = () if folder == _ROOT else self._gitignores(folder.parent)
            text = self._texts.get(folder, {}).get(_GITIGNORE)
            spec = parse_gitignore(text) if text is not None else None
            self._ignored[folder] = above if spec is None else (*above, (folder, spec))
        return self._ignored[folder]


def _read_rules(archive: Archive) -> _Rules:
    """Reads the files that declare something. A pyproject.toml may name another file, which needs a second look."""
    texts: dict[PurePosixPath, dict[str, str]] = {}
    n_bytes = 0

    def collect(wanted: Callable[[PurePosixPath], bool]) -> None:
        nonlocal n_bytes
        for member, tar in _members(archive.location):
            path = _path_in_repository(member.name)
            if path is None or not _is_regular(member) or member.size > MAX_DECLARATION_BYTES or not wanted(path):
                continue
            known = texts.setdefault(path.parent, {})
            if path.name in known:
                continue
            n_bytes += member.size
            if n_bytes > MAX_DECLARED_BYTES:
                raise ArchiveError(TOO_MANY)
            known[path.name] = _read_member(tar, member).decode("utf-8-sig", errors="replace")

    collect(_is_declaration)
    named = {
        folder / name
        for folder, known in texts.items()
        if (name := named_license_file(known.get("pyproject.toml", ""))) and name not in known
    }
    if named:
        collect(lambda path: path in named)
    return _Rules(archive, texts)


def _is_declaration(path: PurePosixPath) -> bool:
    is_listed = not any(is_hidden(name) or is_vendored(name) for name in path.parts[:-1])
    return is_listed and (path.name == _GITIGNORE or declares_license(path.name))
