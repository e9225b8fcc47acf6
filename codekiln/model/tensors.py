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


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, a tied one once."""
    return {name: weight.detach().contiguous() for name, weight in model.named_parameters()}


def shape_mismatches(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """All missing, extra and wrongly shaped tensors in words; nothing if the shapes by name are the same."""
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is not of this model" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {found[name]} and must be {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return "; ".join(sorted(faults))


def save_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file. Raises OSError, also for what the library calls by another name."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def open_safetensors(path: Path) -> safe_open:
    """A safetensors file whose tensors are read one by one. Raises ValueError naming a file that is none."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise InvalidFileError(f"{path} is not a whole safetensors file ({error}): make or copy it again") from None
