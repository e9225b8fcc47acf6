"""Atomic files, JSON records, checksums, free disk space."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codekiln.errors import CorruptFileError, InvalidFileError, MissingFileError

JsonObject = dict[str, Any]

# Suffixes of temporary names. Files with them were made by this module; those of a killed process are removed.
_TEMP, _BACKUP, _MODE = ".codekiln-temp", ".codekiln-backup", ".codekiln-mode"
TEMPORARY = (_TEMP, _BACKUP, _MODE)
_PRIVATE = 0o600
_RECORD_CHECKSUM = "record_sha256"
MAX_JSON_BYTES = 500_000_000
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which replaces `path` when the block ends without an error.

    Whatever interrupts the block, `path` is the old state or the new one. Temporary files of a killed process are removed by
    the next one that writes the same path. A folder is replaced by two renames; if the process is killed between them, the
    next writer restores the old one first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path, backup_path = temp_path_of(path), path.with_name(f".{path.name}{_BACKUP}")
    if backup_path.exists() and not path.exists():
        backup_path.rename(path)
    _remove(temp_path)
    _remove(backup_path)
    try:
        yield temp_path
        written = [*temp_path.rglob("*"), temp_path]
        _share(written)
        _fsync(*written)
        if temp_path.is_dir() and path.exists():
            path.rename(backup_path)
        temp_path.replace(path)
        _fsync(path.parent)
    except BaseException as error:
        _remove(temp_path)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise OSError(error.errno, f"disk full while writing {path}: free some space, then run again") from error
        raise
    _remove(backup_path)


def temp_path_of(path: Path) -> Path:
    """The temporary path of `atomic_write(path)`."""
    return path.with_name(f".{path.name}{_TEMP}")


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed processes in `folder`."""
    for path in folder.iterdir():
        if path.name.endswith(TEMPORARY):
            _remove(path)


def write_json(path: Path, record: JsonObject) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as temp_path:
        temp_path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`. Raises MissingFileError, or InvalidFileError if it is not a JSON object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InvalidFileError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes, which no file of this kind is")
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except InvalidFileError:
        raise
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deeply, or an endless number
        raise InvalidFileError(f"{path} is damaged: it is not readable JSON ({shorten(str(error))})") from None
    if not isinstance(record, dict):
        raise InvalidFileError(f"{path} is damaged: it holds a {type(record).__name__}, not a JSON object")
    return record


def write_record(path: Path, record: JsonObject) -> None:
    """Writes a JSON file with a checksum of its own fields, for `read_record`."""
    write_json(path, record | {_RECORD_CHECKSUM: _record_checksum(record)})


def read_record(path: Path) -> JsonObject:
    """The record in `path` without its checksum. Raises what `read_json` raises, and CorruptFileError if it was changed.

    Records of older versions have no checksum.
    """
    record = read_json(path)
    if _RECORD_CHECKSUM in record and record.pop(_RECORD_CHECKSUM) != _record_checksum(record):
        raise CorruptFileError(
            f"{path} is damaged: it is not the record that was written; restore it, or remove it and run the same command again"
        )
    return record


def _record_checksum(record: JsonObject) -> str:
    """Hexadecimal SHA-256 of the fields as JSON with sorted keys."""
    fields = {key: value for key, value in record.items() if key != _RECORD_CHECKSUM}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def to_record(value: Any) -> Any:
    """A configuration as plain JSON, for example a recipe. Dataclasses carry the name of their class as `kind`.

    Raises TypeError for a dataclass with a field of that name.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_record(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if "kind" in fields:
            raise TypeError(f"{type(value).__name__} has a field kind, which is the name of its class in records")
        return {"kind": type(value).__name__} | fields
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [to_record(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def first_difference(found: Any, wanted: Any, field: str = "") -> str | None:
    """The first difference of two records, as `field: found X, wanted Y`; None if they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{field}.{key}" if field else key
            if difference := first_difference(found.get(key), wanted.get(key), inner):
                return difference
        return None
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{field}[{i}]"))), None)
    return None if found == wanted else f"{field}: found {_quote(found)}, wanted {_quote(wanted)}"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value by their dotted paths. A list of plain values is one leaf."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from flatten(item, f"{path}[{i}]")
    else:
        yield path, value


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class RecordedFile:
    """A file, and the SHA-256 that a record has of it."""

    path: Path
    sha256: str

    def verify(self, remedy: str) -> None:
        """Raises CorruptFileError if the file is not the recorded one, and MissingFileError if it does not exist."""
        if not self.path.is_file():
            raise MissingFileError(f"{self.path} does not exist: {remedy}")
        if sha256_of(self.path) != self.sha256:
            raise CorruptFileError(f"checksum mismatch: {self.path} is corrupt; {remedy}")


def recorded_files(folder: Path, files: object, record: Path) -> list[RecordedFile]:
    """The files of a folder by their names, with the checksums of `checksum`. Raises InvalidFileError that names the record."""
    found: list[RecordedFile] = []
    for name, entry in (files if isinstance(files, dict) else {"": None}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise InvalidFileError(f"{record} is damaged (field files)")
        found.append(RecordedFile(folder / Path(name).name, entry["sha256"]))
    return found


def checksum(path: Path) -> JsonObject:
    """The size and the SHA-256 of a file, for `verify_checksum`."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def verify_checksum(path: Path, recorded: JsonObject, *, folder: Path) -> None:
    """Raises CorruptFileError if the file differs from the recorded one, and MissingFileError if it does not exist.

    `folder` is what the user must remove so that it is built again.
    """
    remedy = f"remove {folder} and run the same command again"
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: {remedy}")
    found = path.stat().st_size
    if found != recorded["bytes"]:
        raise CorruptFileError(
            f"{path} is corrupt: it has {found} bytes, and {recorded['bytes']} were written; {remedy}"
        )
    RecordedFile(path, recorded["sha256"]).verify(remedy)


def require_free_space(folder: Path, min_free_bytes: int) -> None:
    """Raises OSError if the disk of `folder` has less than `min_free_bytes` of free space."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < min_free_bytes:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space in {existing}: {free / 1e6:.0f} MB free, about {min_free_bytes / 1e6:.0f} MB needed. "
            "Free some space, or choose another folder with --out",
        )


def _fsync(*paths: Path) -> None:
    """Waits until files and the entries of folders are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _share(paths: list[Path]) -> None:
    """Gives files that only their owner may read the mode of other new files. The library of safetensors writes such files."""
    private = [path for path in paths if path.is_file() and stat.S_IMODE(path.stat().st_mode) == _PRIVATE]
    if not private:
        return
    probe = private[0].with_name(f".{private[0].name}{_MODE}")
    _remove(probe)
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in private:
        path.chmod(mode)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shorten(value: Any, max_characters: int = 80) -> str:
    """A value in an error message, which never fills a screen."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= max_characters else text[: max_characters - 3] + "…"


def _quote(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False))
