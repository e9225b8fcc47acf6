"""Files of benchmarks: where each can be had, its checksum, and its rows. Nothing is downloaded."""

import gzip
import json
import zlib
from collections.abc import Sequence
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
    """The JSON objects of a .jsonl, .jsonl.gz or .json file. A .json file holds a list of them.

    Raises InvalidFileError that names the line, or for a list the number of the item, both from 1.
    """
    text = _read_text(path)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        # Strings may have other characters that end lines, such as U+2028.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return tuple(_row(_parse(line, f"{path}, line {number}"), f"{path}, line {number}") for number, line in lines)
    if not path.name.removesuffix(".gz").endswith(".json"):
        raise InvalidFileError(f"{path} must be a .jsonl, .jsonl.gz or .json file")
    found = _parse(text, str(path))
    if not isinstance(found, list):
        raise InvalidFileError(f"{path} must hold a list of JSON objects (got {type(found).__name__})")
    return tuple(_row(value, f"{path}, item {number}") for number, value in enumerate(found, 1))


def require_unique(task_ids: Sequence[str], path: Path) -> None:
    """Raises InvalidFileError if two problems have the same id."""
    seen: set[str] = set()
    for task_id in task_ids:
        if task_id in seen:
            raise InvalidFileError(f"{path}: two problems have the id {task_id}")
        seen.add(task_id)


def _read_text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidFileError(f"{path} is not a complete gzip file ({error})") from None
    if len(data) > MAX_BYTES:
        raise InvalidFileError(f"{path} is larger than {MAX_BYTES:,} bytes, which no benchmark is")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
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
