"""A file that a source lists, before it is read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

UNREADABLE_FOLDER = "unreadable folder"  # the problem of a folder that cannot be listed


@dataclass(frozen=True)
class SourceFile:
    """The location of a file and what its repository declares. `path` is relative to the repository, with slashes."""

    source: str
    repository: str
    revision: str
    license: str
    path: str
    location: Path = Path()
    problem: str | None = None  # why it cannot be read, for example the reason of a folder without permission
    size: int = 0
    read: Callable[[], bytes | str] = bytes


class Source(Protocol):
    """Lists files in a fixed order: the same disk gives the same list."""

    def files(self) -> Iterator[SourceFile]: ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON that differs if the files have changed since the corpus was built."""
        ...
