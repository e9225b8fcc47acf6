"""Files of benchmarks: where each can be had, its checksum, and its rows. Nothing is downloaded."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from codekiln.errors import ConfigError, InvalidFileError
from codekiln.files import JsonObject, read_json, sha256_of, shorten

LOCK = Path(__file__).with_name("benchmarks.json")
MAX_BYTES = 1_000_000_000  # of a file, also after it is decompressed


@dataclass(frozen=True, kw_only=True)
class LockedFile:
    """An entry of the lock. `sha256` is None for data that is not published as one file, `n_problems` if it depends on it."""

    name: str
    file: str
    address: str
    license: str
    sha256: str | None
    n_problems: int | None
    user_supplied: str


@dataclass(frozen=True)
class Row:
    """A JSON object of a file, and where it is, for messages."""

    values: JsonObject
    where: str

    def text(self, name: str) -> str:
        """A field with a string. Raises InvalidFileError."""
        found: str = self._field(name, str)
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """A field with a list of strings."""
        found = self.items(name)
        if not all(isinstance(item, str) for item in found):
            raise InvalidFileError(f"{self.where}: {name} must be a list of strings")
        return tuple(found)

    def items(self, name: str) -> list[Any]:
        """A field with a list."""
        found: list[Any] = self._field(name, list)
        return found

    def integer(self, name: str) -> int:
        """A field with an integer."""
        found = self._field(name, int)
        if isinstance(found, bool):
            raise InvalidFileError(f"{self.where}: {name} must be an integer (got {found})")
        return int(found)

    def _field(self, name: str, kind: type) -> Any:
        if name not in self.values:
            raise InvalidFileError(f"{self.where}: the field {name} is missing")
        found = self.values[name]
        if not isinstance(found, kind):
            words = {str: "a string", list: "a list", int: "an integer"}
            raise InvalidFileError(f"{self.where}: {name} must be {words[kind]} (got {shorten(found)})")
        return found


@dataclass(frozen=True)
class BenchmarkFile:
    """A verified file. `sha256` is that of its bytes."""

    path: Path
    sha256: str
    rows: tuple[Row, ...]


@lru_cache(maxsize=1)
def locked_files() -> dict[str, LockedFile]:
    """The entries of the lock by the name of the benchmark."""
    return {
        each["name"]: LockedFile(n_problems=each["problems"], **{k: v for k, v in each.items() if k != "problems"})
        for each in read_json(LOCK)["files"]
    }


def locked_file(name: str) -> LockedFile:
    """The entry of a benchmark. Raises ConfigError that lists the known names."""
    files = locked_files()
    if name not in files:
        raise ConfigError(f"unknown benchmark {name!r}: choose one of {', '.join(sorted(files))}")
    return files[name]


def read_benchmark(name: str, place: Path) -> BenchmarkFile:
    """The rows of a benchmark from a file, or from a folder that has the file under its published name.

    Raises ConfigError if the file is missing, with the address where it can be had, or if its checksum is not that of the
    lock, and InvalidFileError if it is not readable.
    """
    entry = locked_file(name)
    path = place / entry.file if place.is_dir() else place
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: download {entry.file} from {entry.address} (license: {entry.license}), "
            "then give its path or that of its folder"
        )
    found = sha256_of(path)
    if entry.sha256 is not None and found != entry.sha256:
        raise ConfigError(
            f"{path} is not the published file of {name}: its SHA-256 is {found}, and {entry.sha256} is needed. "
            f"Download it again from {entry.address}"
        )
    return BenchmarkFile(path, found, read_rows(path))


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of `iter_rows`."""
    return tuple(iter_rows(path))


def iter_rows(path: Path) -> Iterator[Row]:
    """The JSON objects of a .jsonl, .jsonl.gz or .json file, with or without a byte order mark. A .json file holds a list.

    Lines are read one at a time. Raises InvalidFileError that names the line, or for a list the item, both counted from 1.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        for number, line in enumerate(_lines(path), 1):
            where = f"{path}, line {number}"
            if line.strip():
                yield _row(_parse(_decode(line, path, number), where), where)
    elif name.endswith(".json"):
        data = b"".join(_lines(path))
        found = _parse(_decode(data, path, 1), str(path))
        if not isinstance(found, list):
            raise InvalidFileError(f"{path} must hold a list of JSON objects (got {type(found).__name__})")
        for number, value in enumerate(found, 1):
            yield _row(value, f"{path}, item {number}")
    else:
        raise InvalidFileError(f"{path} must be a .jsonl, .jsonl.gz or .json file")


def require_unique(task_ids: Sequence[str], path: Path) -> None:
    """Raises InvalidFileError if two problems have the same id."""
    seen: set[str] = set()
    for task_id in task_ids:
        if task_id in seen:
            raise InvalidFileError(f"{path}: two problems have the id {task_id}")
        seen.add(task_id)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without its byte order mark. Strings in them may have other characters that end lines."""
    n_bytes = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_BYTES + 1 - n_bytes):
                is_first = not n_bytes
                n_bytes += len(line)
                if n_bytes > MAX_BYTES:
                    raise InvalidFileError(f"{path} is larger than {MAX_BYTES:,} bytes, which no benchmark is")
                yield line.removeprefix(codecs.BOM_UTF8) if is_first else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidFileError(f"{path} is not a complete gzip file ({error})") from None


def _decode(data: bytes, path: Path, first_line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise InvalidFileError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{where}: not readable JSON ({shorten(str(error))})") from None


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise InvalidFileError(f"{where}: not a JSON object (got {shorten(value)})")
    return Row(value, where)
