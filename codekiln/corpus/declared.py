"""The license that a folder declares in its own files."""

import configparser
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar

from codekiln.corpus.licenses import UNKNOWN, declared_license

ReadText = Callable[[str], str]
Folder = TypeVar("Folder", bound=PurePath)

MANIFESTS = ("pyproject.toml", "setup.cfg", "package.json", "Cargo.toml")
MAX_BYTES = 200_000  # of a file that is read for a license
_LICENSE_FILE = re.compile(r"(un)?licen[cs]e([-_.][\w.+-]*)?|copying([-_.][\w.+-]*)?", re.IGNORECASE)
_CODE_FILE = re.compile(r"\.(py|js|ts|go|rs|c|h|java|rb|json|html|css)$", re.IGNORECASE)  # license.py is a program
# Phrases of license texts, lower case, with single spaces. All phrases of a license must occur, and the first match counts.
# Texts that name other licenses, or restrict one, come first: they are unknown.
_TEXTS = (
    (UNKNOWN, ("commons clause",)),
    (UNKNOWN, ("shall be used for good, not evil",)),  # the JSON license
    (UNKNOWN, ("noncommercial",)),
    (UNKNOWN, ("non-commercial",)),
    (UNKNOWN, ("gnu general public license",)),
    (UNKNOWN, ("gnu lesser general public license",)),
    (UNKNOWN, ("gnu affero general public license",)),
    (UNKNOWN, ("mozilla public license",)),
    ("Apache-2.0", ("apache license version 2.0",)),
    (
        "MIT",
        (
            "permission is hereby granted, free of charge, to any person obtaining a copy",
            "the above copyright notice and",
        ),
    ),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "all advertising materials mentioning")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products derived")),
    (
        "BSD-2-Clause",
        ("redistribution and use in source and binary forms", "in the documentation and/or other materials"),
    ),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("Zlib", ("altered source versions must be plainly marked as such",)),
    ("BSL-1.0", ("boost software license - version 1.0",)),
)


def read_license(folder: Path) -> str | None:
    """The SPDX expression that a folder declares, `UNKNOWN` if it declares one that is not recognized, or None."""
    try:
        with os.scandir(folder) as scan:
            names = [entry.name for entry in scan]
    except OSError:
        return None
    return license_of_files(names, lambda name: _read(folder / name))


def license_of_files(names: Iterable[str], read: ReadText) -> str | None:
    """As `read_license`, of a folder that has files of these names. `read` returns the text of one; "" if there is none.

    pyproject.toml has priority, then setup.cfg, package.json, Cargo.toml, and license files. Several of these are joined with
    AND, because they do not say whether one may choose.
    """
    readers: tuple[Callable[[ReadText], str | None], ...] = (
        _pyproject,
        _setup_cfg,
        _package_json,
        _cargo,
        partial(_license_files, names),
    )
    found = None
    for declare in readers:
        declared = declare(read)
        if declared is not None and declared != UNKNOWN:
            return declared
        found = found or declared
    return found


def license_of_texts(texts: Mapping[str, str]) -> str | None:
    """As `read_license`, of a folder with these files, by name."""
    return license_of_files(texts, lambda name: texts.get(name, ""))


class NearestLicense(Generic[Folder]):
    """What the nearest folder declares that declares anything, from a folder up to `top`. Each folder is read once.

    `read` returns what one folder declares, as `read_license` does. Works for folders of any depth.
    """

    def __init__(self, top: Folder, read: Callable[[Folder], str | None]) -> None:
        self._top, self._read = top, read
        self._known: dict[Folder, str | None] = {}

    def of(self, folder: Folder) -> str | None:
        """The license of the files in a folder below `top`, or in it."""
        passed = []
        while folder not in self._known:
            passed.append(folder)
            declared = self._read(folder)
            if declared is not None or folder in (self._top, folder.parent):
                self._known[folder] = declared
            else:
                folder = folder.parent
        found = self._known[folder]
        self._known.update(dict.fromkeys(passed, found))
        return found


def declares_license(name: str) -> bool:
    """Whether a file of this name may declare the license of its folder."""
    return name in MANIFESTS or is_license_file(name)


def named_license_file(pyproject: str) -> str | None:
    """The name of the license file that a pyproject.toml names, without folders; None if it names none."""
    try:
        declared = _table(tomllib.loads(pyproject), "project", "license").get("file")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    return Path(declared).name if isinstance(declared, str) else None


def recognize_license(text: str) -> str:
    """The SPDX id of a license text, or `UNKNOWN`."""
    plain = re.sub(r"[\s,*#=]+", " ", text.lower())
    phrases = ((name, [re.sub(r"[\s,*#=]+", " ", phrase) for phrase in wanted]) for name, wanted in _TEXTS)
    return next((name for name, wanted in phrases if all(phrase in plain for phrase in wanted)), UNKNOWN)


def _pyproject(read: ReadText) -> str | None:
    try:
        record = tomllib.loads(read("pyproject.toml"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    project = _table(record, "project")
    declared, classifiers = project.get("license"), project.get("classifiers")
    if isinstance(declared, dict) and isinstance(name := declared.get("file"), str):
        return recognize_license(read(Path(name).name))
    text = declared.get("text") if isinstance(declared, dict) else declared
    text = text if isinstance(text, str) else None
    named = [str(c) for c in classifiers] if isinstance(classifiers, list) else []
    found = _declared(text, [name for name in named if name.startswith("License ::")])
    return found if found is not None else _from_text(_table(record, "tool", "poetry").get("license"))


def _setup_cfg(read: ReadText) -> str | None:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read("setup.cfg"))
        text = parser.get("metadata", "license", fallback=None)
        classifiers = parser.get("metadata", "classifiers", fallback="").split("\n")
    except configparser.Error:
        return None
    return _declared(text, [line.strip() for line in classifiers if line.strip().startswith("License ::")])


def _package_json(read: ReadText) -> str | None:
    try:
        record = json.loads(read("package.json") or "null")
    except (ValueError, RecursionError):
        return None
    declared = record.get("license") if isinstance(record, dict) else None
    return _from_text(declared.get("type") if isinstance(declared, dict) else declared)


def _cargo(read: ReadText) -> str | None:
    try:
        package = _table(tomllib.loads(read("Cargo.toml")), "package")
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    declared = package.get("license")
    return _from_text(declared.replace("/", " OR ") if isinstance(declared, str) else None)


def _license_files(names: Iterable[str], read: ReadText) -> str | None:
    texts = (read(name) for name in sorted(names) if is_license_file(name))
    found = {recognize_license(text) for text in texts if text}
    return join_licenses(found) if found else None


def is_license_file(name: str) -> bool:
    """Whether a file of this name holds a license: LICENSE, LICENCE.txt, COPYING.LESSER, LICENSE-MIT, and so on."""
    return _LICENSE_FILE.fullmatch(name) is not None and _CODE_FILE.search(name) is None


def join_licenses(found: set[str]) -> str:
    """The expression for code under all of some licenses; `UNKNOWN` if one is unknown."""
    return UNKNOWN if UNKNOWN in found else " AND ".join(sorted(found))


def _declared(text: str | None, classifiers: list[str]) -> str | None:
    return declared_license(text, text, classifiers) if text or classifiers else None


def _from_text(text: object) -> str | None:
    return declared_license(text, text, []) if isinstance(text, str) else None


def _table(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """A table in a TOML record; empty if there is none."""
    found: Any = record
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> str:
    """The text of a small file of the repository; empty if there is none."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            return ""
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except (OSError, ValueError):  # a name with a NUL is a ValueError
        return ""
