"""Runs the command as if some packages were not installed: run_without.py PACKAGE,PACKAGE ARGUMENT..."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Blocker(MetaPathFinder):
    """Makes the import of modules fail as if they were not installed."""

    def __init__(self, blocked: Sequence[str]) -> None:
        self._blocked = blocked

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(name + ".") for name in self._blocked):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


sys.meta_path.insert(0, Blocker(sys.argv[1].split(",")))
sys.argv[1:] = sys.argv[2:]

from codekiln.cli import main  # noqa: E402 - after the imports are blocked

main()
