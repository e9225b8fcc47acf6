"""Packages that only some commands need, imported when they are used."""

import importlib
from types import ModuleType

from codekiln.errors import MissingPackageError


def import_optional(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package. Raises MissingPackageError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        package = (missing.name or module).partition(".")[0]
        if package == "codekiln":
            raise
        raise MissingPackageError(f"{package} is not installed: pip install 'codekiln[{extra}]'") from None
