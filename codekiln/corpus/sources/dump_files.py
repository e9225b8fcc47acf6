"""Reads a file of a dump in blocks: XML as it is, or one member of a 7z archive. Nothing is extracted to the disk."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from codekiln.errors import CodekilnError, InvalidFileError
from codekiln.extras import import_optional

BLOCK_BYTES = 2**20
# The list of files of a 7z archive, compressed. Dumps have some hundred bytes; the limit bounds the memory of a hostile one.
_MAX_HEADER_BYTES = 64 * 2**10
# Of a member to its whole archive. Dumps have a ratio of 4 to 10.
_MAX_RATIO = 200
_SIGNATURE = struct.Struct("<6sxxIQQI")  # magic, checksum, then offset, size and checksum of the list of files

Feed = Callable[[bytes], None]


class DumpFile(Protocol):
    """A file that is read as a stream. `path` is on the disk, `n_bytes` is the uncompressed size."""

    @property
    def path(self) -> Path: ...

    @property
    def n_bytes(self) -> int: ...

    def read(self, feed: Feed, start: int = 0) -> None:
        """Passes all bytes from `start` on to `feed` in order, in blocks. Raises InvalidFileError for a damaged archive."""
        ...


@dataclass(frozen=True)
class PlainFile:
    path: Path

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    def read(self, feed: Feed, start: int = 0) -> None:
        with self.path.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                feed(block)


@dataclass(frozen=True)
class ArchiveMember:
    """The file called `name` in a 7z archive, in any folder of it."""

    path: Path
    name: str

    @property
    def n_bytes(self) -> int:
        return int(self._with_archive(lambda archive: self._find(archive).uncompressed))

    def read(self, feed: Feed, start: int = 0) -> None:
        def extract(archive: Any) -> None:
            member = self._find(archive)
            stream = _Stream(self, int(member.uncompressed), feed, start)
            archive.extract(targets=[member.filename], factory=stream)
            if stream.n_bytes != member.uncompressed:
                raise self.damaged(f"{self.name} ends after {stream.n_bytes:,} of {member.uncompressed:,} bytes")

        self._with_archive(extract)

    def _with_archive(self, use: Callable[[Any], Any]) -> Any:
        library = import_optional("py7zr", "stackexchange")
        self._check_header()
        try:
            # An open file instead of a path: the library then reads in this thread only.
            with self.path.open("rb") as file, library.SevenZipFile(file) as archive:
                return use(archive)
        except (CodekilnError, OSError):
            raise
        except Exception as error:  # the library raises what its parsers happen to raise
            raise self.damaged(str(error) or type(error).__name__) from error

    def _check_header(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(_SIGNATURE.size)
        if len(head) < _SIGNATURE.size or not head.startswith(b"7z\xbc\xaf\x27\x1c"):
            raise self.damaged("it does not begin like a 7z archive")
        _, _, offset, size, _ = _SIGNATURE.unpack(head)
        if size > _MAX_HEADER_BYTES:
            raise self.damaged(
                f"its list of files has {size:,} bytes, and that of a dump at most {_MAX_HEADER_BYTES:,}"
            )
        if _SIGNATURE.size + offset + size > self.path.stat().st_size:
            raise self.damaged("it is truncated")

    def _find(self, archive: Any) -> Any:
        """The member. Raises InvalidFileError if there is not exactly one, or if its size cannot be true."""
        found = [
            entry for entry in archive.list() if PurePosixPath(entry.filename.replace("\\", "/")).name == self.name
        ]
        if len(found) != 1:
            raise self.damaged(f"it has {len(found)} files {self.name}, and one is needed")
        if found[0].is_symlink or not found[0].is_file:
            raise self.damaged(f"{self.name} is a link or a folder")
        if found[0].uncompressed > _MAX_RATIO * self.path.stat().st_size:
            raise self.damaged(
                f"{self.name} would have {found[0].uncompressed:,} bytes, more than {_MAX_RATIO} times those of the archive"
            )
        return found[0]

    def damaged(self, why: str) -> InvalidFileError:
        return InvalidFileError(f"{self.path} cannot be read: {why}: download it again")


class _Stream:
    """What py7zr writes a member to: it passes the bytes from `start` on to `feed`, and no more than declared."""

    def __init__(self, member: ArchiveMember, declared_bytes: int, feed: Feed, start: int) -> None:
        self._member, self._declared_bytes, self._feed, self._start = member, declared_bytes, feed, start
        self.n_bytes = 0

    def create(self, name: str) -> "_Stream":
        """py7zr asks a factory for the stream of each member; there is one member."""
        return self

    def write(self, data: bytes) -> int:
        n_before = self.n_bytes
        self.n_bytes += len(data)
        if self.n_bytes > self._declared_bytes:
            raise self._member.damaged(f"{self._member.name} has more than the declared {self._declared_bytes:,} bytes")
        if self.n_bytes > self._start:
            self._feed(bytes(data[max(0, self._start - n_before) :]))
        return len(data)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def size(self) -> int:
        return self.n_bytes
