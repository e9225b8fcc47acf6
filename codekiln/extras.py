"""Packages that only some verbs need, each named by the extra that installs it."""

import importlib
from types import ModuleType


def import_optional(module: str, extra: str) -> ModuleType:
    """A module that needs one of the extras. Raises ValueError naming the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        package = (missing.name or module).partition(".")[0]
        if package == "codekiln":
            raise
        raise ValueError(f"{package} is not installed: pip install 'codekiln[{extra}]'") from None
