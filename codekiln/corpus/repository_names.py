"""Lists of repositories that must not be used: those of evaluation sets, and those of people who object."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import shorten

MAX_LIST_BYTES = 1_000_000_000
_NAME = re.compile(r"([^\s/*]+/)*(\*|[^\s/*]+)")


@dataclass(frozen=True)
class RepositoryNames:
    """`entries` are `owner/name`, or `owner/*` for all below. Letter case does not matter, as on the forges."""

    entries: frozenset[str]

    def __contains__(self, name: str) -> bool:
        name = name.lower()
        owners = name.split("/")[:-1]
        return name in self.entries or any(
            "/".join(owners[:n]) + "/*" in self.entries for n in range(1, len(owners) + 1)
        )

    def __or__(self, other: "RepositoryNames") -> "RepositoryNames":
        return RepositoryNames(self.entries | other.entries)


def parse_names(lines: Iterable[str], origin: str) -> RepositoryNames:
    """The repositories in lines: `owner/name`, a URL, or `owner/*` for all below; `#` begins a comment.

    Raises InvalidFileError that names the origin and a line that is none of these.
    """
    found = set()
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name = re.sub(r"^(https?://[^/]+/|git@[^:]+:)", "", text.lower()).strip("/").removesuffix(".git")
        if not _NAME.fullmatch(name) or name == "*" or "\ufffd" in name:
            raise InvalidFileError(f"{origin}, line {number}: {shorten(text)!r} is not a repository such as owner/name")
        found.add(name)
    return RepositoryNames(frozenset(found))


def read_names(path: Path) -> RepositoryNames:
    """The repositories in a file, one in each line. Raises CodekilnError that names the file, and a line that is none."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise InvalidFileError(f"{path} is larger than {MAX_LIST_BYTES:,} bytes: name a list of repositories")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise MissingFileError(
            f"{path} cannot be read ({error.strerror}): name a file with a repository in each line"
        ) from None
    return parse_names((line.decode("utf-8-sig", errors="replace") for line in lines), str(path))
