"""Repositories in .tar.gz archives, read as a stream: nothing is extracted to the disk.

An archive is read twice: first the files that declare licenses and the .gitignore files, then the content; and once more if a
pyproject.toml names another file. Hostile archives cannot fill the memory (`tar_members.py`, `streams.py`), and are read up to
`MAX_EXPANDED_BYTES`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from codekiln.corpus.declared import MAX_BYTES as MAX_DECLARATION_BYTES
from codekiln.corpus.declared import NearestLicense, declares_license, license_of_texts, named_license_file
from codekiln.corpus.languages import may_be
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.data_files import DataFile
from codekiln.corpus.sources.files import MAX_FILE_BYTES, CannotRead, HeldContent, Reader, SourceFile
from codekiln.corpus.sources.ignored import VENDORED_REASON, is_hidden, is_ignored, is_vendored, parse_gitignore
from codekiln.corpus.sources.members import LINK, Member
from codekiln.corpus.sources.streams import DAMAGED, Stream, StreamError
from codekiln.corpus.sources.tar_members import tar_members
from codekiln.errors import MissingFileError

TOO_MANY = "archive with too many files"
BAD_PATH = "path leaves the repository or is too long"
REPEATED = "second file of the same name"
MAX_EXPANDED_BYTES = 10 * 10**9
MAX_DECLARED_BYTES = 50 * 2**20  # of all files that declare licenses, which are in memory
MAX_MEMBERS = 1_000_000
MAX_PATH_CHARACTERS, MAX_PATH_PARTS = 1024, 128
_GITIGNORE = ".gitignore"
_ROOT = PurePosixPath()
_CANNOT_READ = CannotRead()


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


def verify_archive(location: Path) -> None:
    """Raises ArchiveError if a .tar.gz ends too early, or expands too far."""
    with closing(Stream(_data_file(location), max_bytes=MAX_EXPANDED_BYTES)) as stream:
        try:
            while stream.read_block():
                pass
        except StreamError as error:
            raise ArchiveError(str(error)) from None
        if stream.offset == 0:  # an empty file is no error to gzip
            raise ArchiveError(DAMAGED)


def _list(archive: Archive) -> Iterator[SourceFile]:
    rules = _read_rules(archive)
    seen: set[str] = set()

    def is_wanted(name: str) -> bool:
        path = _path_in_repository(name)
        if path is None:
            return True
        skip = rules.skip(path)
        if skip is not None:
            return skip.reason is not None and skip.path not in seen
        return may_be(path.name, archive.languages)

    for member in _members(archive.location, MAX_FILE_BYTES, is_wanted):
        path = _path_in_repository(member.name)
        if path is None:
            yield _source_file(archive, member.name[:MAX_PATH_CHARACTERS], member.size, problem=BAD_PATH)
            continue
        skip = rules.skip(path)
        if skip is not None:
            seen.add(skip.path)
            yield _source_file(archive, skip.path, 0, problem=skip.reason)
            continue
        license = rules.license_of(path.parent)
        if str(path) in seen:
            yield _source_file(archive, str(path), member.size, problem=REPEATED)
            continue
        seen.add(str(path))
        read: Reader = CannotRead() if member.content is None else HeldContent(member.content)
        yield _source_file(archive, str(path), member.size, read=read, license=license, problem=member.problem)


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


def _data_file(location: Path) -> DataFile:
    return DataFile("archive.tar.gz", str(location), location.stat().st_size, "")


def _members(location: Path, max_bytes: int, is_wanted: Callable[[str], bool]) -> Iterator[Member]:
    """The files of an archive whose names are wanted, in order, without links. Those of more than `max_bytes`, and those with a
    problem, have no content. Raises ArchiveError where the archive cannot be read further."""
    members = tar_members(_data_file(location), max_bytes, is_wanted, max_stream_bytes=MAX_EXPANDED_BYTES)
    for n_members, member in enumerate(members):
        if not member.name:
            raise ArchiveError(member.problem or DAMAGED)
        if n_members >= MAX_MEMBERS:
            raise ArchiveError(TOO_MANY)
        if member.problem is None or (member.problem != LINK and is_wanted(member.name)):
            yield member


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

    def skip(self, path: PurePosixPath) -> _Skip | None:
        """Why a file is not listed; None if it is."""
        return self._skip_folder(path) if path == _ROOT else self._skip(path, is_folder=False)

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

        def is_wanted(name: str) -> bool:
            path = _path_in_repository(name)
            return path is not None and wanted(path)

        for member in _members(archive.location, MAX_DECLARATION_BYTES, is_wanted):
            path = _path_in_repository(member.name)
            assert path is not None
            known = texts.setdefault(path.parent, {})
            if path.name in known or member.content is None:
                continue
            n_bytes += member.size
            if n_bytes > MAX_DECLARED_BYTES:
                raise ArchiveError(TOO_MANY)
            known[path.name] = member.content.decode("utf-8-sig", errors="replace")

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
