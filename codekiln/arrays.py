"""Arrays in files: several in one, or one that is mapped into memory."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from codekiln.files import atomic_write

Array = npt.NDArray[Any]


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays to one file atomically."""
    # Not in NumPy's format, whose headers are read with `ast`: that fails in several threads at once (seen with CPython 3.11).
    with atomic_write(path) as temp_path:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temp_path)


def load_arrays(path: Path) -> dict[str, Array]:
    """The arrays of `save_arrays`."""
    arrays: dict[str, Array] = load_file(path)
    return arrays


def sorted_unique(values: Array) -> Array:
    """The different values of an array, sorted, (n,). `np.unique` of NumPy 2.4 uses a hash table, which is ten times slower."""
    values = np.sort(values, axis=None)
    is_first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return values[is_first]


def map_array(path: Path, dtype: npt.DTypeLike, *, is_searched: bool = False) -> Array:
    """The bytes of a file as an array that cannot be written, (n,). Several processes share its memory.

    Of an array that `is_searched`, the system reads the page that is needed, and not those after it too.
    """
    if path.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype)
    # Not np.memmap, whose class makes calls of compiled functions slower.
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if is_searched and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)
