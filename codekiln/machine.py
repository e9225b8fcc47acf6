"""What this machine has."""

import os
import shutil


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_cxx_compiler() -> str | None:
    """The path of the compiler with which torch.compile builds code for this CPU; None if there is none."""
    found = (shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return next((path for path in found if path), None)
