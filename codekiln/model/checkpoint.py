"""A checkpoint: weights and moments as safetensors, the step and what it was made from as JSON."""

import errno
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from codekiln.files import Record, check_seal, first_difference, read_record, replacing, seal, write_record

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
N_KEPT = 2
_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: dict[str, Tensor], made_from: Record) -> Path:
    """Writes `step-00000123`, whole or not at all, then removes all but the last `N_KEPT`."""
    path = folder / f"step-{step:08}"
    with replacing(path) as draft:
        draft.mkdir()
        write_tensors(draft / WEIGHTS, weights_of(model))
        write_tensors(draft / OPTIMIZER, {name: value.contiguous() for name, value in optimizer.items()})
        seals = {name: seal(draft / name) for name in (WEIGHTS, OPTIMIZER)}
        write_record(draft / STATE, {"step": step, "made_from": made_from, "files": seals})
    kept = checkpoints(folder)[-N_KEPT:]
    for entry in folder.iterdir():  # older ones, and what a killed process left of one
        if entry not in kept:
            shutil.rmtree(entry)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name) and (path / STATE).is_file())


def load_checkpoint(path: Path, model: nn.Module, made_from: Record) -> tuple[int, dict[str, Tensor]]:
    """Puts the weights into `model`; the step and the optimizer's tensors.

    Raises ValueError if the checkpoint was made from something else than `made_from`, naming the field, or is corrupt.
    """
    state = read_record(path / STATE)
    if difference := first_difference(state["made_from"], made_from):
        raise ValueError(
            f"{path} is a checkpoint of another recipe ({difference}): go on with that recipe or name another --out"
        )
    for name, sealed in state["files"].items():
        check_seal(path / name, sealed, folder=path)
    load_weights(model, read_tensors(path / WEIGHTS))
    return int(state["step"]), read_tensors(path / OPTIMIZER)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights by name, a tied one once."""
    return {name: weight.detach().contiguous() for name, weight in model.named_parameters()}


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies tensors into the model. Raises ValueError that names all missing, extra and wrongly shaped ones."""
    wanted = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    if faults := misfits(wanted, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        raise ValueError(f"the weights do not fit the model: {faults}")
    for name, weight in model.named_parameters():
        weight.data.copy_(tensors[name])


def misfits(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """All missing, extra and wrongly shaped tensors in words; nothing if the shapes by name are the same."""
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is not of this model" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {found[name]} and must be {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return "; ".join(sorted(faults))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file. Raises OSError, also for what the library calls by another name."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.ENOSPC, f"cannot write {path} ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises OSError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name a run or a model folder that holds it")
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def open_tensors(path: Path) -> safe_open:
    """A safetensors file whose tensors are read one by one. Raises ValueError naming a file that is none."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): make or copy it again") from None
