"""Files of a data set: on the disk, or at a URL of fsspec. They are listed in a fixed order and opened for reading only."""

import glob
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from codekiln.errors import ConfigError, InvalidFileError, MissingFileError, MissingPackageError
from codekiln.extras import import_optional

Format = Literal["parquet", "jsonl", "tar", "zip"]
Compression = Literal["gzip", "zstd"]
_NAME = re.compile(r"(?P<stem>.+?)\.(?:(?P<whole>parquet|zip)|(?P<stream>jsonl|json|tar)(?:\.(?P<packed>gz|zst))?)")
_COMPRESSIONS: dict[str, Compression] = {"gz": "gzip", "zst": "zstd"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")  # of file systems of fsspec


@dataclass(frozen=True)
class DataFile:
    """`name` is relative to the folder that was searched. `stamp` changes with the content: an etag, or a time.

    `n_bytes` is 0 if the file system does not know it.
    """

    name: str
    location: str  # an absolute path, or a URL
    n_bytes: int
    stamp: str

    @property
    def stem(self) -> str:
        """The name without the extensions of the format."""
        match = _NAME.fullmatch(self.name)
        return match["stem"] if match is not None else self.name

    @property
    def format(self) -> Format:
        found = format_of(self.name)
        assert found is not None
        return found

    @property
    def compression(self) -> Compression | None:
        match = _NAME.fullmatch(self.name.lower())
        return _COMPRESSIONS.get(match["packed"] or "") if match is not None else None

    def open(self) -> "RawFile":
        """Raises OSError, also if it is not a regular file, and InvalidFileError for what a remote file system raises."""
        if _URL.match(self.location):
            return RawFile(_open_remote(self.location), self.location)
        descriptor = os.open(self.location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        file = open(descriptor, "rb")  # noqa: PTH123, SIM115 - a descriptor; the caller closes it
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            file.close()
            raise OSError(f"{self.location} is not a regular file")
        return RawFile(file, self.location)


class RawFile:
    """An open file. `n_read` are the bytes read, and `error` is what the file system raised.

    A library that reads from it raises the same exceptions for a damaged file and for a network that fails. `error` tells
    them apart: the first is counted, the second stops the corpus, which can then resume.
    """

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file, self._location = file, location
        self.n_read = 0
        self.error: Exception | None = None

    def read(self, n_bytes: int = -1) -> bytes:
        try:
            data = self._file.read(n_bytes)
        except Exception as error:  # each file system has its own exceptions
            self.error = error if isinstance(error, OSError) else _unreachable(self._location, error)
            raise self.error from error
        self.n_read += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def __enter__(self) -> "RawFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def format_of(name: str) -> Format | None:
    """The format of a file by its extensions, in upper or lower case; None for others."""
    match = _NAME.fullmatch(name.lower())
    if match is None:
        return None
    kind = match["whole"] or match["stream"]
    return "jsonl" if kind == "json" else kind  # type: ignore[return-value]  # the expression has these only


def find_data_files(paths: Iterable[str]) -> list[DataFile]:
    """The files of some paths, folders, globs and URLs: in the order of `paths`, each in the order of names.

    Hidden files are ignored. A link in a folder is followed to a file in the same folder, or to the `blobs` of a snapshot in
    the cache of Hugging Face. Raises MissingFileError if a path has no file, and ConfigError for one in an unknown format.
    """
    found: dict[str, DataFile] = {}
    for path in paths:
        listed = list(_find_remote(path) if _URL.match(path) else _find_local(path))
        if not listed:
            raise MissingFileError(
                f"{path} has no file of a data set: Parquet, JSONL (.jsonl or .json, also .gz and .zst), tar (also .gz and"
                " .zst) and zip are read"
            )
        for file in listed:
            found.setdefault(file.location, file)
    return list(found.values())


def fingerprint_of(files: Iterable[DataFile]) -> dict[str, Any]:
    """The number of files, their bytes, and a hash of their names, sizes and stamps."""
    digest, n_files, n_bytes = hashlib.sha256(), 0, 0
    for file in files:
        digest.update(f"{file.location}\0{file.n_bytes}\0{file.stamp}\0".encode(errors="surrogateescape"))
        n_files += 1
        n_bytes += file.n_bytes
    return {"files": n_files, "bytes": n_bytes, "sha256": digest.hexdigest()}


def require_format(path: str) -> None:
    """Raises ConfigError for a file in an unknown format."""
    if format_of(path) is None:
        raise ConfigError(
            f"{path} is in an unknown format: Parquet, JSONL (.jsonl or .json, also .gz and .zst), tar (also .gz and .zst)"
            " and zip are read"
        )


def _find_local(path: str) -> Iterator[DataFile]:
    location = Path(path)
    if location.is_dir():
        yield from _walk(location.resolve())
    elif location.exists():
        require_format(path)
        yield _local_file(location.name, location)
    elif glob.has_magic(path):
        for name in sorted(glob.glob(path, recursive=True)):  # noqa: PTH207 - the path may be absolute
            if Path(name).is_file() and format_of(name) is not None:
                yield _local_file(Path(name).name, Path(name))
    else:
        raise MissingFileError(f"{path} does not exist: name a file, a folder, a glob or a URL")


def _walk(folder: Path) -> Iterator[DataFile]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            location = Path(root, name)
            if name.startswith(".") or format_of(name) is None or not location.is_file():
                continue
            if location.is_symlink() and not _is_inside(location.resolve(), folder):
                continue
            found.append(_local_file(location.relative_to(folder).as_posix(), location))
    yield from sorted(found, key=lambda file: file.name)


def _is_inside(target: Path, folder: Path) -> bool:
    """Whether the target of a link belongs to a folder. In Hugging Face's cache, `snapshots/REVISION` links to `blobs`."""
    blobs = folder.parent.parent / "blobs"
    return target.is_relative_to(folder) or (folder.parent.name == "snapshots" and target.is_relative_to(blobs))


def _local_file(name: str, location: Path) -> DataFile:
    location = location.resolve()
    status = location.stat()
    return DataFile(name, str(location), status.st_size, str(status.st_mtime_ns))


def _find_remote(url: str) -> Iterator[DataFile]:
    library = import_optional("fsspec", "corpus")
    try:
        system, path = library.core.url_to_fs(url)
        if glob.has_magic(path):
            found, folder = system.glob(path, detail=True), path[: re.search(r"[*?\[]", path).start()]  # type: ignore[union-attr]
            folder = folder.rpartition("/")[0]
        elif format_of(path) is not None:
            found, folder = {path: system.info(path)}, path.rpartition("/")[0]
        else:
            found, folder = system.find(path, detail=True), path
    except FileNotFoundError as error:
        if _is_network_failure(error):
            raise _unreachable(url, error) from error
        raise MissingFileError(f"{url} does not exist: name a file, a folder or a glob") from None
    except ImportError as error:
        raise MissingPackageError(f"{url} needs another package: {error}") from None
    except Exception as error:  # each file system has its own exceptions
        raise _unreachable(url, error) from error
    for name, information in sorted(found.items()):
        relative = name.removeprefix(folder).lstrip("/")
        is_hidden = any(part.startswith(".") for part in relative.split("/"))
        if information.get("type") == "directory" or is_hidden or format_of(name) is None:
            continue
        stamp = next((information[key] for key in _STAMPS if information.get(key)), "")
        yield DataFile(relative, system.unstrip_protocol(name), int(information.get("size") or 0), str(stamp))


def _open_remote(url: str) -> BinaryIO:
    library = import_optional("fsspec", "corpus")
    try:
        system, path = library.core.url_to_fs(url)
        file: BinaryIO = system.open(path, "rb")
    except OSError as error:
        if _is_network_failure(error):
            raise _unreachable(url, error) from error
        raise
    except Exception as error:  # each file system has its own exceptions
        raise _unreachable(url, error) from error
    return file


def read_remote(url: str, max_bytes: int) -> bytes:
    """The first bytes of a file, at most `max_bytes`. Raises FileNotFoundError, and InvalidFileError if the read fails."""
    try:
        with RawFile(_open_remote(url), url) as file:
            return file.read(max_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreachable(url, error) from error


def _is_network_failure(error: OSError) -> bool:
    """Whether a file was reported missing because its server cannot be reached, as fsspec does for HTTP."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _unreachable(location: str, error: Exception) -> InvalidFileError:
    return InvalidFileError(
        f"{location} cannot be read ({type(error).__name__}: {error}): check the network and the credentials, then run again"
    )
