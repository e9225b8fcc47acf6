"""What this machine has."""

import os
import shutil
from pathlib import Path


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_cxx_compiler() -> str | None:
    """The path of the compiler with which torch.compile builds code for this CPU; None if there is none."""
    found = (shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return next((path for path in found if path), None)


def memory_bytes() -> int | None:
    """The memory of this machine, or of the container (cgroup version 2) if it has less; None if the system has no number."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
