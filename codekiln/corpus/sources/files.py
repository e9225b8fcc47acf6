"""What a source is: work units, each of which reads files with what their repository declares."""

import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

UNREADABLE_FOLDER = "unreadable folder"  # the problem of a folder that cannot be listed
UNREADABLE = "unreadable"
STACK_EXCHANGE = "stackexchange"  # the source of threads
MAX_FILE_BYTES = 1_000_000  # larger files are data, not code
# A work unit of files on the disk. Small ones keep all processors busy and little in memory.
UNIT_BYTES = 16 * 2**20
UNIT_FILES = 10_000


class Reader(Protocol):
    """Reads the content of a file: bytes to decode, or text that needs no decoding.

    Raises OSError, or UndecodableError for bytes in another encoding than their source declares.
    """

    def __call__(self) -> bytes | str: ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file before it is read, and what its repository declares. `path` is relative to the repository, with slashes.

    `license` is an SPDX expression or "unknown". If `is_license_given`, the user decided it, and headers do not change it.
    Filters of code do not apply to prose.
    `languages` are those that its source wants; all if it is empty. `language` is None where the name and the content decide.
    `problem` is why it cannot be read. It is counted as the reason of a drop.
    """

    source: str
    repository: str
    revision: str
    license: str
    path: str
    size: int  # bytes
    read: Reader
    problem: str | None = None
    stars: int | None = None  # of its repository
    language: str | None = None
    languages: tuple[str, ...] = ()
    max_bytes: int = MAX_FILE_BYTES
    is_license_given: bool = False
    is_prose: bool = False


class WorkUnit(Protocol):
    """A part of a source that one worker reads, on any machine. It lists the same files in the same order each time."""

    @property
    def n_bytes(self) -> int:
        """Bytes of input, for progress."""
        ...

    def files(self) -> Iterator[SourceFile]: ...


class Source(Protocol):
    """Where documents come from. The same input gives the same work units in the same order."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders on this disk that are read, or where the source keeps what it has fetched. A run is never in one."""
        ...

    def units(self, scratch: Path) -> Iterator[WorkUnit]:
        """Raises CodekilnError if there is no such source, or nothing in it.

        `scratch` is a path for what the source itself writes. It stays until the corpus is complete.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON that differs if the input has changed since the corpus was built."""
        ...


@dataclass(frozen=True, slots=True)
class ReadFile:
    """Reads a regular file. Nothing else is opened, and no link is followed: the file may have changed since it was listed."""

    location: str  # takes less memory than a path, of which a corpus may have millions
    modified_ns: int

    def __call__(self) -> bytes:
        descriptor = os.open(self.location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{self.location} is not a regular file")
            return file.read()


@dataclass(frozen=True)
class HeldContent:
    """The reader of content that is in memory."""

    content: bytes | str = field(repr=False)

    def __call__(self) -> bytes | str:
        return self.content


@dataclass(frozen=True, slots=True)
class CannotRead:
    """The reader of a file that has a problem."""

    def __call__(self) -> bytes:
        raise OSError("this file was listed with a problem")


@dataclass(frozen=True)
class FileList:
    """A work unit of files on a disk that all workers see.

    `compressed` is their list as JSON: about 20 bytes per file, because a corpus may have millions.
    """

    n_bytes: int
    n_files: int
    compressed: bytes

    @classmethod
    def of(cls, files: list[SourceFile]) -> "FileList":
        """A list of files whose readers are ReadFile or CannotRead."""
        rows = [(*_listed_fields(file), _place(file.read)) for file in files]
        compressed = zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), level=1)
        return cls(sum(file.size for file in files), len(files), compressed)

    def files(self) -> Iterator[SourceFile]:
        for *values, place in json.loads(zlib.decompress(self.compressed)):
            listed: dict[str, Any] = dict(zip(_LISTED_FIELDS, values, strict=True))
            listed["languages"] = tuple(listed["languages"])
            yield SourceFile(**listed, read=CannotRead() if place is None else ReadFile(*place))


_LISTED_FIELDS = [field.name for field in fields(SourceFile) if field.name != "read"]
_listed_fields = attrgetter(*_LISTED_FIELDS)


def _place(reader: Reader) -> tuple[str, int] | None:
    """The fields of a ReadFile, None for a CannotRead."""
    if isinstance(reader, CannotRead):
        return None
    assert isinstance(reader, ReadFile)
    return reader.location, reader.modified_ns


def local_file(location: str | Path) -> tuple[int, Reader, str | None]:
    """Size, reader, and problem or None, of a listed file."""
    try:
        status = os.lstat(location)
    except OSError:
        return 0, CannotRead(), UNREADABLE
    return status.st_size, ReadFile(str(location), status.st_mtime_ns), None


def file_lists(files: Iterable[SourceFile]) -> Iterator[FileList]:
    """Files in work units of about `UNIT_BYTES`."""
    listed: list[SourceFile] = []
    n_bytes = 0
    for file in files:
        listed.append(file)
        n_bytes += file.size
        if n_bytes >= UNIT_BYTES or len(listed) >= UNIT_FILES:
            yield FileList.of(listed)
            listed, n_bytes = [], 0
    if listed:
        yield FileList.of(listed)
