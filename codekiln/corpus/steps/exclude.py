"""Drops repositories by name: those of evaluation sets, as InCoder did (section 3.1), and those of people who object."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from codekiln.corpus.repository_names import RepositoryNames, read_names
from codekiln.corpus.sources.files import SourceFile
from codekiln.corpus.steps.step import Drop, Step
from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import sha256_of


@dataclass(frozen=True, kw_only=True)
class RepositoryList:
    """A file with a repository in each line: `owner/name`, a URL, or `owner/*` for all below; `#` begins a comment."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ExcludedRepositories(Step):
    """Drops the files of repositories in `lists`."""

    lists: tuple[RepositoryList, ...]

    def check_file(self, file: SourceFile) -> Drop | None:
        for path, names in self._names:
            if file.repository in names:
                return Drop(excluded_by(path))
        return None

    @cached_property
    def _names(self) -> list[tuple[str, RepositoryNames]]:
        return [(each.path.name, read_names(each.path)) for each in self.lists]


def excluded_by(file: str) -> str:
    """The reason to drop a file of a repository in a list."""
    return f"repository excluded by {file}"


def exclude(paths: list[Path]) -> ExcludedRepositories:
    """The step for some files. Raises CodekilnError that names a file that is missing or has no repository."""
    for path in paths:
        if not path.is_file():
            raise MissingFileError(f"{path} is not a file: name a file with a repository in each line")
        if not read_names(path).entries:
            raise InvalidFileError(f"{path} names no repository: write one in each line, for example owner/name")
    return ExcludedRepositories(
        lists=tuple(RepositoryList(path=path.absolute(), sha256=sha256_of(path)) for path in paths)
    )
