"""The license that a repository declares in its own files."""

import configparser
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codekiln.corpus.licenses import UNKNOWN, declared_license

MAX_BYTES = 200_000  # of a file that is read for a license
_LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING", "UNLICENSE")
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


def read_license(root: Path) -> str:
    """The SPDX expression that a repository declares, or `UNKNOWN`.

    pyproject.toml has priority, then setup.cfg, package.json, Cargo.toml, and a LICENSE file.
    """
    readers: tuple[Callable[[Path], str], ...] = (_pyproject, _setup_cfg, _package_json, _cargo, _license_file)
    return next((found for read in readers if (found := read(root)) != UNKNOWN), UNKNOWN)


def recognize_license(text: str) -> str:
    """The SPDX id of a license text, or `UNKNOWN`."""
    plain = re.sub(r"[\s,*#=]+", " ", text.lower())
    phrases = ((name, [re.sub(r"[\s,*#=]+", " ", phrase) for phrase in wanted]) for name, wanted in _TEXTS)
    return next((name for name, wanted in phrases if all(phrase in plain for phrase in wanted)), UNKNOWN)


def _pyproject(root: Path) -> str:
    try:
        record = tomllib.loads(_read(root / "pyproject.toml"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return UNKNOWN
    project = _table(record, "project")
    declared, classifiers = project.get("license"), project.get("classifiers")
    if isinstance(declared, dict) and isinstance(name := declared.get("file"), str):
        return recognize_license(_read(root / Path(name).name))
    text = declared.get("text") if isinstance(declared, dict) else declared
    text = text if isinstance(text, str) else None
    found = declared_license(text, text, [str(c) for c in classifiers] if isinstance(classifiers, list) else [])
    return found if found != UNKNOWN else _from_text(_table(record, "tool", "poetry").get("license"))


def _setup_cfg(root: Path) -> str:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(_read(root / "setup.cfg"))
        text = parser.get("metadata", "license", fallback=None)
        classifiers = parser.get("metadata", "classifiers", fallback="").split("\n")
    except configparser.Error:
        return UNKNOWN
    return declared_license(text, text, [line.strip() for line in classifiers if line.strip()])


def _package_json(root: Path) -> str:
    try:
        record = json.loads(_read(root / "package.json") or "null")
    except (ValueError, RecursionError):
        return UNKNOWN
    declared = record.get("license") if isinstance(record, dict) else None
    return _from_text(declared.get("type") if isinstance(declared, dict) else declared)


def _cargo(root: Path) -> str:
    try:
        package = _table(tomllib.loads(_read(root / "Cargo.toml")), "package")
    except (tomllib.TOMLDecodeError, RecursionError):
        return UNKNOWN
    declared = package.get("license")
    return _from_text(declared.replace("/", " OR ") if isinstance(declared, str) else None)


def _license_file(root: Path) -> str:
    texts = (_read(root / name) for name in _LICENSE_FILES)
    return next((recognize_license(text) for text in texts if text), UNKNOWN)


def _from_text(text: object) -> str:
    return declared_license(text, text, []) if isinstance(text, str) else UNKNOWN


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
    except OSError:
        return ""
