"""A folder of source code: each folder in it is a repository. Files directly in it are one repository named "."."""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.languages import LANGUAGES, language_of
from codekiln.corpus.licenses import UNKNOWN, declared_license
from codekiln.corpus.sources.files import SourceFile
from codekiln.errors import ConfigError, MissingFileError


@dataclass(frozen=True, kw_only=True)
class LocalRepositories:
    """Files in `folder`. `license` is the SPDX expression for all of it; None reads each repository's pyproject.toml.

    Hidden files, hidden folders and symbolic links are ignored.
    """

    folder: Path
    license: str | None = None
    languages: tuple[str, ...] = LANGUAGES

    def files(self) -> Iterator[SourceFile]:
        """In the order of paths. Raises MissingFileError for a missing folder and ConfigError if it has no source file."""
        if not self.folder.is_dir():
            raise MissingFileError(f"{self.folder} is not a folder: name a folder with source code")
        licenses: dict[str, str] = {}
        n_files = 0
        for location in _walk(self.folder):
            path = location.relative_to(self.folder)
            if language_of(path.name) not in self.languages:
                continue
            repository = path.parts[0] if len(path.parts) > 1 else "."
            root = self.folder / repository
            if repository not in licenses:
                licenses[repository] = self.license or _pyproject_license(root)
            n_files += 1
            inside = location.relative_to(root).as_posix()
            yield SourceFile("tree", repository, "-", licenses[repository], inside, location)
        if not n_files:
            known = ", ".join(self.languages)
            raise ConfigError(f"{self.folder} has no source file: name a folder with files of these languages: {known}")


def _walk(folder: Path) -> Iterator[Path]:
    """Files in `folder` in the order of their paths, without hidden ones and without following links."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def _pyproject_license(root: Path) -> str:
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        project = None
    if not isinstance(project, dict):
        return UNKNOWN
    declared, classifiers = project.get("license"), project.get("classifiers")
    text = declared.get("text") if isinstance(declared, dict) else declared
    text = text if isinstance(text, str) else None
    return declared_license(text, text, [str(c) for c in classifiers] if isinstance(classifiers, list) else [])
