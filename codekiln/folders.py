"""Folders that Codekiln made: the mark they carry, and what may be written, replaced or removed in them.

Nothing is removed that the mark of a folder does not list, and symbolic links are never followed.
"""

import fcntl
import fnmatch
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from codekiln.errors import ConfigError, OutputExistsError
from codekiln.files import TEMPORARY, JsonObject, atomic_write, write_json

MARK = ".codekiln.json"
FORMAT = 1
FolderKind = Literal[
    "run",
    "staged run",
    "corpus",
    "index",
    "checkpoint",
    "model",
    "tokenizer",
    "partitions",
    "repositories",
    "backend",
    "evaluation",
]
_N_NAMED = 3  # files that an error names


def claim_folder(folder: Path, kind: FolderKind) -> None:
    """Creates `folder` with a mark, marks it if it is empty, or accepts it if Codekiln made it as `kind`.

    Raises OutputExistsError that names what is in the way.
    """
    if (folder.is_symlink() and not folder.is_dir()) or (folder.exists() and not folder.is_dir()):
        raise OutputExistsError(f"{folder} exists and is not a folder: choose a new or empty folder")
    if folder.is_dir():
        if (mark := _read_mark(folder)) is not None:
            _require_kind(folder, mark, kind)
            return
        _require_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARK, {"format": FORMAT, "kind": kind})


def require_made(folder: Path, kind: FolderKind) -> None:
    """Raises OutputExistsError unless Codekiln made `folder` as `kind`."""
    mark = _read_mark(folder)
    if mark is None:
        raise OutputExistsError(f"{folder} was not made by this version of Codekiln: it has no {MARK}")
    _require_kind(folder, mark, kind)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Locks a folder for this process. The lock ends with the process, however that ends."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder} is in use by another process: wait for it, or use another --out") from None
        yield


@contextmanager
def atomic_folder(folder: Path, kind: FolderKind) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `folder` when the block ends without an error, with a mark that
    lists its files.

    Raises OutputExistsError before the block if `folder` holds anything that Codekiln did not write as `kind`.
    """
    require_replaceable(folder, kind)
    with atomic_write(folder) as temp_path:
        temp_path.mkdir()
        yield temp_path
        (temp_path / MARK).write_text(_mark(temp_path, kind), encoding="utf-8")


def _mark(folder: Path, kind: FolderKind) -> str:
    """The mark of a folder that is complete, with its files, as JSON in ASCII: names of files may not be UTF-8."""
    files = sorted(set(_files(folder)) - {MARK})
    return json.dumps({"format": FORMAT, "kind": kind, "files": files}, indent=1) + "\n"


def replace_folder(made: Path, folder: Path, kind: FolderKind) -> None:
    """Puts a folder that was made under another name in the place of `folder`, with a mark that lists its files.

    Raises OutputExistsError if `folder` holds anything that Codekiln did not write as `kind`.
    """
    require_replaceable(folder, kind)
    require_made(made, kind)
    mark = _mark(made, kind)
    with atomic_write(made / MARK) as temp_path:
        temp_path.write_text(mark, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)


def remove_folder(folder: Path, kind: FolderKind) -> None:
    """Removes the files that the mark of `folder` lists, and then the folder if nothing else is in it.

    Does nothing to a folder that has no mark or is of another kind.
    """
    mark = _read_mark(folder) if folder.is_dir() and not folder.is_symlink() else None
    if mark is None or mark["kind"] != kind:
        return
    listed = set(mark.get("files") or ())
    # Last names first: a checkpoint without its state.json is not taken for a complete one.
    for name in sorted(listed.intersection(_files(folder)), reverse=True):
        (folder / name).unlink()
    if not _entries(folder, hidden=MARK):
        (folder / MARK).unlink()
        folder.rmdir()


def clear_folder(folder: Path, kind: FolderKind, patterns: Iterable[str]) -> None:
    """Removes the files of a marked folder whose relative paths match a pattern, and folders that are empty then.

    Raises OutputExistsError, before anything is removed, if there is a file that matches none.
    """
    require_made(folder, kind)
    refuse_links(folder)
    files = [name for name in _files(folder) if name != MARK]
    others = [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if others:
        raise OutputExistsError(f"{folder} holds {_named(others)}, which Codekiln did not write: move it away")
    for name in files:
        (folder / name).unlink()
    for root, _, _ in os.walk(folder, topdown=False):
        if root != str(folder):
            Path(root).rmdir()


def listed_files(folder: Path) -> list[str]:
    """Relative paths of the files that were written together with the mark of a folder. Raises OutputExistsError."""
    files = (_read_mark(folder) or {}).get("files")
    return [name for name in files if isinstance(name, str)] if isinstance(files, list) else []


def refuse_links(folder: Path, *, ignored: frozenset[str] = frozenset()) -> None:
    """Raises OutputExistsError for a symbolic link anywhere in `folder`, except below its folders named in `ignored`."""
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            _refuse_link(Path(root, name))
        if Path(root) == folder:
            folders[:] = [name for name in folders if name not in ignored]


def require_replaceable(folder: Path, kind: FolderKind) -> None:
    """Raises OutputExistsError unless `folder` is new, empty, or holds only what `atomic_folder` wrote as `kind`."""
    _refuse_link(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputExistsError(f"{folder} exists and is not a folder: choose a new or empty folder")
    mark = _read_mark(folder)
    if mark is None:
        _require_empty(folder)
        return
    _require_kind(folder, mark, kind)
    refuse_links(folder)
    listed = mark.get("files")
    others = sorted(set(_files(folder)) - set(listed if isinstance(listed, list) else ()) - {MARK})
    if others:
        raise OutputExistsError(
            f"{folder} holds {_named(others)}, which Codekiln did not write: move it away or choose another folder"
        )


def require_separate(out: Path, source: Path) -> None:
    """Raises ConfigError if one of two folders contains the other, so that output never mixes with what is read."""
    first, second = out.resolve(), source.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise ConfigError(
            f"the output folder {out} and the input folder {source} contain each other: choose an output folder elsewhere"
        )


def require_replaceable_file(path: Path, *, is_ours: bool, force: bool) -> None:
    """Raises OutputExistsError if `path` exists and Codekiln did not write it, unless `force` is set."""
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder: name a file")
    _refuse_link(path)
    if path.exists() and not is_ours and not force:
        raise OutputExistsError(
            f"{path} exists and Codekiln did not write it: choose another name, or replace it with --force"
        )


def _read_mark(folder: Path) -> JsonObject | None:
    """The mark of a folder. Raises OutputExistsError if it has one that cannot be read: then nothing is certain."""
    path = folder / MARK
    if path.is_symlink() or not path.is_file():
        return None
    try:
        mark = json.loads(path.read_bytes())
        is_known = isinstance(mark, dict) and mark["format"] == FORMAT and isinstance(mark["kind"], str)
    except (ValueError, KeyError, RecursionError):
        is_known = False
    if not is_known:
        raise OutputExistsError(
            f"{path} is damaged or of another version of Codekiln (format {FORMAT} is needed): choose another folder"
        )
    return dict(mark)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise OutputExistsError(f"{path} is a symbolic link, and Codekiln does not write through links: remove it")


def _require_empty(folder: Path) -> None:
    """Raises OutputExistsError for a folder without a mark that holds anything."""
    if others := _entries(folder):
        raise OutputExistsError(
            f"{folder} was not made by this version of Codekiln: it has no {MARK} and holds {_named(others)}. "
            "Choose a new or empty folder; nothing was changed"
        )


def _require_kind(folder: Path, mark: JsonObject, kind: FolderKind) -> None:
    found = mark["kind"]
    if found != kind:
        raise OutputExistsError(f"{folder} is a {found} of Codekiln, not a {kind}: choose another folder")


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of all files, links included and not followed, but for what a killed process left temporary."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        folders[:] = [name for name in folders if not name.endswith(TEMPORARY)]
        for name in (*names, *links):
            if not name.endswith(TEMPORARY):
                yield Path(root, name).relative_to(folder).as_posix()


def _entries(folder: Path, *, hidden: str = "") -> list[str]:
    return sorted(e.name for e in folder.iterdir() if not e.name.endswith(TEMPORARY) and e.name != hidden)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more
