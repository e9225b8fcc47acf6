"""Which files of a repository are not read: hidden ones, code of others, and what .gitignore names."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from codekiln.extras import import_optional

# Folders with code of others, or generated code, which is not under the license of the repository.
VENDORED = frozenset(
    {"venv", "env", "virtualenv", "node_modules", "bower_components", "site-packages", "__pycache__", "build", "dist"}
    | {"third_party", "third-party", "thirdparty", "vendor", "vendored"}
)
VENDORED_REASON = "vendored or generated folder"


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden."""
    return name.startswith(".")


def is_vendored(name: str) -> bool:
    """Whether a folder of this name holds code of others, or generated code."""
    return name in VENDORED or name.endswith(".egg-info")


def parse_gitignore(text: str) -> Any:
    """The patterns of a .gitignore; None if it has one that git does not know either."""
    pathspec = import_optional("pathspec", "corpus")
    try:
        return pathspec.GitIgnoreSpec.from_lines(text.splitlines())
    except ValueError:
        return None


def is_ignored(path: PurePath, is_folder: bool, ignored: Sequence[tuple[PurePath, Any]]) -> bool:
    """Whether the .gitignore files of the folders above leave the path out: the one that is nearest to it decides."""
    for folder, spec in reversed(ignored):
        name = path.relative_to(folder).as_posix() + "/" * is_folder
        if (is_included := spec.check_file(name).include) is not None:
            return bool(is_included)
    return False
