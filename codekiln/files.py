"""Files that are whole or absent: atomic writes, records, checksums, room on the disk."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codekiln.errors import InvalidFileError, MissingFileError

JsonObject = dict[str, Any]

# What temporary names end with. A name that ends so was made by this module, and is removed when it was left behind.
_TEMP, _BACKUP = ".codekiln-temp", ".codekiln-backup"
TEMPORARY = (_TEMP, _BACKUP)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or folder at; it takes `path`'s place when the block ends without an error.

    Whatever interrupts the block, `path` is the old state or the new one. What a killed process left is removed by the
    next one that writes the same path. A folder takes another's place by two renames; if the process is killed between
    them, the next writer puts the old one back first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_path, backup_path = temp_path_of(path), path.with_name(f".{path.name}{_BACKUP}")
    if backup_path.exists() and not path.exists():
        backup_path.rename(path)
    _remove(temp_path)
    _remove(backup_path)
    try:
        yield temp_path
        _fsync(*temp_path.rglob("*"), temp_path)
        if temp_path.is_dir() and path.exists():
            path.rename(backup_path)
        temp_path.replace(path)
        _fsync(path.parent)
    except BaseException as error:
        _remove(temp_path)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise OSError(
                error.errno, f"no room on the disk to write {path}: free some space, then run again"
            ) from error
        raise
    _remove(backup_path)


def temp_path_of(path: Path) -> Path:
    """Where `atomic_write` lets a file or folder be written before it takes the place of `path`."""
    return path.with_name(f".{path.name}{_TEMP}")


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left temporary in `folder`."""
    for path in folder.iterdir():
        if path.name.endswith(TEMPORARY):
            _remove(path)


def write_json(path: Path, record: JsonObject) -> None:
    """Writes plain JSON, whole or not at all."""
    with atomic_write(path) as temp_path:
        temp_path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> JsonObject:
    """The JSON object in `path`. Raises OSError where it is missing and ValueError where it is not a JSON object."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidFileError(
            f"{path} is not readable JSON ({error}): remove it and run the stage that makes it again"
        ) from None
    if not isinstance(record, dict):
        raise InvalidFileError(
            f"{path} holds a {type(record).__name__}, not a JSON object: remove it and make it again"
        )
    return record


def first_difference(found: Any, wanted: Any, field: str = "") -> str | None:
    """Where two records differ first, as `field: found X, wanted Y`; None where they are equal."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{field}.{key}" if field else key
            if difference := first_difference(found.get(key), wanted.get(key), inner):
                return difference
        return None
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{field}[{i}]"))), None)
    return None if found == wanted else f"{field}: found {_short(found)}, wanted {_short(wanted)}"


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


def checksum(path: Path) -> JsonObject:
    """What `verify_checksum` needs to know the file again."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def verify_checksum(path: Path, recorded: JsonObject, *, folder: Path) -> None:
    """Raises OSError where the file is missing and ValueError where it is not the sealed one, byte for byte.

    `folder` is what to remove to have it made again.
    """
    remedy = f"remove {folder} and run the same command again"
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: {remedy}")
    found = path.stat().st_size
    if found != recorded["bytes"]:
        raise InvalidFileError(f"{path} is corrupt, {found} bytes where {recorded['bytes']} were written: {remedy}")
    if sha256_of(path) != recorded["sha256"]:
        raise InvalidFileError(f"{path} is corrupt, its SHA-256 is not the one recorded when it was written: {remedy}")


def require_free_space(folder: Path, min_free_bytes: int) -> None:
    """Raises OSError if the disk of `folder` has less than `min_free_bytes` free."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < min_free_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{existing} has {free / 1e6:.0f} MB free and this run needs about {min_free_bytes / 1e6:.0f} MB: "
            "free some space or name another folder with --out",
        )


def _fsync(*paths: Path) -> None:
    """Waits until the files are on the disk, and of the folders what they list."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
