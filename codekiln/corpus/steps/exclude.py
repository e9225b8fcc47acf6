"""Drops repositories by name: those of evaluation sets, as InCoder did (section 3.1), and those of people who object."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from codekiln.corpus.sources.files import SourceFile
from codekiln.corpus.steps.step import Drop, Step
from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import sha256_of

MAX_LIST_BYTES = 1_000_000_000
_NAME = re.compile(r"[^\s/]+(/[^\s/]+)*")


@dataclass(frozen=True, kw_only=True)
class RepositoryList:
    """A file with a repository in each line: `owner/name`, a URL, or `owner/*` for all of an owner. # begins a comment."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ExcludedRepositories(Step):
    """Drops the files of repositories in `lists`. Upper and lower case are the same."""

    lists: tuple[RepositoryList, ...]

    def check_file(self, file: SourceFile) -> Drop | None:
        name = file.repository.lower()
        for path, names in self._names:
            if name in names or f"{name.rpartition('/')[0]}/*" in names:
                return Drop(excluded_by(path))
        return None

    @cached_property
    def _names(self) -> list[tuple[str, frozenset[str]]]:
        return [(each.path.name, frozenset(read_names(each.path))) for each in self.lists]


def excluded_by(file: str) -> str:
    """The reason to drop a file of a repository in a list."""
    return f"repository excluded by {file}"


def exclude(paths: list[Path]) -> ExcludedRepositories:
    """The step for some files. Raises CodekilnError that names a file that is missing or has no repository."""
    for path in paths:
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file: name a file with a repository in each line")
        if not read_names(path):
            raise InvalidFileError(f"{path} names no repository: write one in each line, for example owner/name")
    return ExcludedRepositories(
        lists=tuple(RepositoryList(path=path.absolute(), sha256=sha256_of(path)) for path in paths)
    )


def read_names(path: Path) -> list[str]:
    """The names in a list, in lower case. Raises InvalidFileError that names a line that is none."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise InvalidFileError(f"{path} is larger than {MAX_LIST_BYTES:,} bytes: name a list of repositories")
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        text = line.decode("utf-8-sig", errors="replace").partition("#")[0].strip().lower()
        name = re.sub(r"^(https?://[^/]+/|git@[^:]+:)", "", text).removesuffix(".git").strip("/")
        if not name:
            continue
        if not _NAME.fullmatch(name) or "\ufffd" in name:
            raise InvalidFileError(f"{path}, line {number}: {text[:100]!r} is not a repository such as owner/name")
        found.append(name)
    return found
