"""A folder of source code: each folder in it is a repository. Files directly in it are one repository named "."."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from codekiln.corpus.declared import NearestLicense, read_license
from codekiln.corpus.languages import LANGUAGES, may_be
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.files import (
    UNREADABLE_FOLDER,
    CannotRead,
    FileList,
    SourceFile,
    file_lists,
    local_file,
)
from codekiln.corpus.sources.ignored import VENDORED_REASON, is_hidden, is_ignored, is_vendored, parse_gitignore
from codekiln.errors import ConfigError, MissingFileError


@dataclass(frozen=True, kw_only=True)
class LocalRepositories:
    """Files in `folder`. `license` is the SPDX expression for all of it; None reads what each repository declares.

    A folder with a `.git` is one repository. A folder in it may declare another license for all below it, for
    example by a LICENSE file. Hidden files and folders, symbolic links, and what .gitignore names are ignored. Folders with
    code of others and folders that cannot be read are counted as drops.
    """

    folder: Path
    license: str | None = None
    languages: tuple[str, ...] = LANGUAGES

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    def units(self, scratch: Path) -> Iterator[FileList]:
        return file_lists(self.files())

    def files(self) -> Iterator[SourceFile]:
        """In the order of paths. Raises MissingFileError for a missing folder and ConfigError if it has no source file."""
        licenses = NearestLicense(self.folder, read_license)
        folder, license = None, UNKNOWN
        for entry, repository, path in self._list():
            size, read, problem = (0, CannotRead(), None) if entry.problem is not None else local_file(entry.location)
            if folder != (folder := entry.location.rpartition("/")[0]):
                license = self.license or licenses.of(Path(folder)) or UNKNOWN
            yield SourceFile(
                source="tree",
                repository=repository,
                revision="-",
                license=license,
                path=path,
                size=size,
                read=read,
                problem=entry.problem or problem,
                languages=self.languages,
                is_license_given=self.license is not None,
            )

    def _list(self) -> Iterator[tuple["Entry", str, str]]:
        """Entry, repository and path in the repository of each file, without reading licenses."""
        if not self.folder.is_dir():
            raise MissingFileError(f"{self.folder} is not a folder: name a folder with source code")
        n_files = 0
        for entry in walk_files(self.folder):
            if entry.problem is None and not may_be(entry.path, self.languages):
                continue
            n_files += entry.problem is None
            repository, separator, path = entry.path.partition("/")
            if (separator or entry.problem is not None) and not self._is_repository:
                yield entry, repository, path or "."
            else:
                yield entry, ".", entry.path
        if not n_files:
            known = ", ".join(self.languages)
            raise ConfigError(f"{self.folder} has no source file: name a folder with files of these languages: {known}")

    def fingerprint(self) -> dict[str, Any]:
        """What changes when a file is added, removed or edited: the number of files, and a hash of paths, sizes and times."""
        digest, n_files = hashlib.sha256(), 0
        for entry, repository, path in self._list():
            try:
                status = os.lstat(entry.location)
            except OSError:
                continue
            n_files += 1
            name = os.fsencode(f"{repository}/{path}")
            digest.update(name + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return {"folder": str(self.folder), "files": n_files, "sha256": digest.hexdigest()}

    @cached_property
    def _is_repository(self) -> bool:
        return (self.folder / ".git").exists()


class Entry(NamedTuple):
    """A file, or a folder with the reason why it is not read. `path` is relative to the folder that is listed."""

    path: str
    location: str
    problem: str | None = None


class _Folder(NamedTuple):
    path: str
    location: str


def walk_files(folder: Path) -> Iterator[Entry]:
    """Files in the order of their paths, and folders that are not read with the reason. Works for folders of any depth."""
    ignored: list[tuple[PurePath, Any]] = []  # the .gitignore files that apply, with their folders
    stack = [_list(_Folder("", str(folder)), ignored)]
    while stack:
        entries, n_ignored = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            del ignored[n_ignored:]
        elif isinstance(entry, Entry):
            yield entry
        else:
            stack.append(_list(entry, ignored))


def _list(folder: _Folder, ignored: list[tuple[PurePath, Any]]) -> tuple[Iterator[Entry | _Folder], int]:
    """The entries of one folder: files, folders to descend into, and how many .gitignore files applied before."""
    n_ignored = len(ignored)
    try:
        with os.scandir(folder.location) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError:
        return iter([Entry(folder.path or ".", folder.location, UNREADABLE_FOLDER)]), n_ignored
    if spec := _read_gitignore(Path(folder.location, ".gitignore")):
        ignored.append((Path(folder.location), spec))
    found: list[Entry | _Folder] = []
    before = f"{folder.path}/" if folder.path else ""
    for entry in entries:
        name, location = entry.name, entry.path
        if is_hidden(name) or entry.is_symlink():
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if ignored and is_ignored(Path(location), is_folder, ignored):
            continue
        if is_folder and is_vendored(name):
            found.append(Entry(before + name, location, VENDORED_REASON))
        elif is_folder:
            found.append(_Folder(before + name, location))
        elif entry.is_file(follow_symlinks=False):
            found.append(Entry(before + name, location))
    return iter(found), n_ignored


def why_not_listed(root: Path, location: Path) -> str | None:
    """Why `LocalRepositories` does not read a file below a folder; None if it does, if the language is among its own."""
    ignored: list[tuple[PurePath, Any]] = []
    folder = root
    for name in location.relative_to(root).parts:
        if spec := _read_gitignore(folder / ".gitignore"):
            ignored.append((folder, spec))
        folder = folder / name
        if is_hidden(name) or folder.is_symlink():
            return "hidden, or a symbolic link"
        if is_ignored(folder, folder.is_dir(), ignored):
            return "named in .gitignore"
        if folder.is_dir() and is_vendored(name):
            return VENDORED_REASON
    return None


def _read_gitignore(path: Path) -> Any:
    """The patterns of a .gitignore; None if there is none or it cannot be read."""
    try:
        return parse_gitignore(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
