"""The Python packages installed on this machine, and the standard library.

Each package is a repository: its metadata has name, version and license.
"""

import importlib.metadata
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codekiln.corpus.languages import may_be
from codekiln.corpus.licenses import declared_license
from codekiln.corpus.sources.files import UNREADABLE_FOLDER, CannotRead, FileList, SourceFile, file_lists, local_file

PYTHON_LICENSE = "PSF-2.0"


@dataclass(frozen=True, kw_only=True)
class InstalledPackages:
    """Packages that this interpreter can import, and the one that its virtual environment was made from."""

    languages: tuple[str, ...] = ("Python",)

    @property
    def folders(self) -> tuple[Path, ...]:
        return ()

    def units(self, scratch: Path) -> Iterator[FileList]:
        return file_lists(self.files())

    def files(self) -> Iterator[SourceFile]:
        """By package name, then path. A package that is installed twice counts once: the one that is imported."""
        found: dict[str, importlib.metadata.Distribution] = {}
        for distribution in importlib.metadata.distributions(path=_import_path()):
            name = distribution.metadata["Name"]
            if name:
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
        yield from self._standard_library()
        for name in sorted(found):
            yield from self._distribution(name, found[name])

    def _distribution(self, name: str, distribution: importlib.metadata.Distribution) -> Iterator[SourceFile]:
        metadata = distribution.metadata
        # a missing field is None, which the library's types do not say
        fields: Mapping[str, Any] = dict(metadata.items())  # type: ignore[attr-defined]
        expression, free_text = fields.get("License-Expression"), fields.get("License")
        declared = declared_license(expression, free_text, metadata.get_all("Classifier") or [])
        root = Path(str(distribution.locate_file("")))
        for path in sorted(entry.as_posix() for entry in distribution.files or []):
            # A RECORD also lists the package's commands, which are outside of its folder.
            if may_be(path, self.languages) and not path.startswith(("/", "../")):
                yield self._file(name, metadata["Version"], declared, path, root / path)

    def _standard_library(self) -> Iterator[SourceFile]:
        root = sysconfig.get_path("stdlib")
        problems: list[OSError] = []
        for folder, folders, names in os.walk(root, onerror=problems.append):
            folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
            for name in sorted(names):
                location = Path(folder, name)
                path = location.relative_to(root).as_posix()
                if may_be(path, self.languages) and not location.is_symlink():
                    yield self._file("cpython", platform.python_version(), PYTHON_LICENSE, path, location)
        for problem in problems:
            path = Path(str(problem.filename)).relative_to(root).as_posix()
            yield SourceFile(
                source="installed",
                repository="cpython",
                revision=platform.python_version(),
                license=PYTHON_LICENSE,
                path=path,
                size=0,
                read=CannotRead(),
                problem=UNREADABLE_FOLDER,
            )

    def _file(self, repository: str, revision: str, license: str, path: str, location: Path) -> SourceFile:
        # Some installers link files to a cache.
        size, read, problem = local_file(location.resolve() if location.is_symlink() else location)
        return SourceFile(
            source="installed",
            repository=repository,
            revision=revision,
            license=license,
            path=path,
            size=size,
            read=read,
            problem=problem,
            languages=self.languages,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Empty: packages come and go on a machine, and a run keeps the corpus that it has built."""
        return {}


def _import_path() -> list[str]:
    """Where packages are searched: the path of this interpreter, then that of the one that its environment was made from."""
    beneath = sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    return list(dict.fromkeys([*(entry for entry in sys.path if entry), beneath]))
