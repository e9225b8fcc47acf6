"""Tensors by name in safetensors files."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from codekiln.errors import InvalidFileError

MAX_NAMED, MAX_FAULT_CHARACTERS = 8, 200  # tensors that an error names, and characters of each


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name. A tied weight appears once."""
    return {name: weight.detach().contiguous() for name, weight in model.named_parameters()}


def shape_mismatches(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Missing, extra and wrongly shaped tensors as text, at most `MAX_NAMED` of them; empty if all shapes agree."""
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is not part of this model" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {found[name]} and must be {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    shown = [fault[:MAX_FAULT_CHARACTERS] for fault in sorted(faults)[:MAX_NAMED]]
    return "; ".join(shown) + (f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else "")


def save_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file. Raises OSError, also for errors of the system that the library reports as its own."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def open_safetensors(path: Path) -> safe_open:
    """A safetensors file whose tensors are read one by one. Raises InvalidFileError if it is not complete."""
    path.open("rb").close()  # the library says of a file that may not be read that it does not exist
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise InvalidFileError(f"{path} is truncated or damaged ({error}): copy or download it again") from None
