"""Checkpoints: weights and optimizer state in PyTorch's distributed format with safetensors files, the rest as JSON.

Each rank writes its own file in the background. Any number of ranks can load a checkpoint.
"""

import re
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from codekiln.errors import ConfigError, CorruptFileError
from codekiln.files import (
    JsonObject,
    RecordedFile,
    checksum,
    first_difference,
    read_record,
    recorded_files,
    remove_leftovers,
    temp_path_of,
    verify_checksum,
    write_record,
)
from codekiln.folders import atomic_folder, remove_folder
from codekiln.model.tensors import save_safetensors, shape_mismatches
from codekiln.train.parallel import World

STATE = "state.json"
FORMAT = 1
WEIGHT, OPTIMIZER = "weight:", "optimizer:"  # prefixes of tensor names in a checkpoint
KEEP_LATEST = 2
_ONE_FILE = "shard-00001-model-00001-of-00001.safetensors"  # the name that PyTorch uses for rank 0
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """`step` is the next one; `optimizer_state` is by name, sharded as the weights; `training_state` is what was saved."""

    step: int
    optimizer_state: dict[str, Tensor]
    training_state: JsonObject


@dataclass(frozen=True)
class _PendingSave:
    """A checkpoint that is being written."""

    future: Future[Any]
    stack: ExitStack  # its exit moves the temporary folder to its place
    temp_path: Path
    step: int
    training_state: JsonObject


class Checkpointer:
    """Saves and loads the checkpoints of a run. One save at a time runs in the background; `wait` completes it.

    Keeps the newest `KEEP_LATEST` checkpoints, and those of every step that `keep_every` divides if it is not 0.
    """

    def __init__(self, folder: Path, world: World, inputs: JsonObject, *, keep_every: int = 0) -> None:
        self._folder, self._world, self._inputs, self._keep_every = folder, world, inputs, keep_every
        self._pending: _PendingSave | None = None
        self._writer = ThreadPoolExecutor(1)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Completes a pending save also after an error, except with several ranks, where waiting could deadlock."""
        if error is None or self._world.world_size == 1:
            self.wait()

    @property
    def is_done(self) -> bool:
        """Whether this rank has written its part of the pending checkpoint."""
        return self._pending is not None and self._pending.future.done()

    def save(self, step: int, tensors: dict[str, Tensor], training_state: JsonObject) -> None:
        """Copies the tensors and starts to write the folder `step-00000123`, which is complete or does not exist."""
        self.wait()
        path = self._folder / f"step-{step:08}"
        stack = ExitStack()
        temp_path = temp_path_of(path)
        if self._world.is_main:
            stack.enter_context(atomic_folder(path, "checkpoint"))
        self._barrier()
        future: Future[Any]
        if self._world.world_size == 1:
            copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
            future = self._writer.submit(save_safetensors, temp_path / _ONE_FILE, copies)
        else:
            writer = HuggingFaceStorageWriter(str(temp_path), save_distributed=True)
            saving = async_save(tensors, storage_writer=writer, process_group=self._world.checkpoint_group)
            assert isinstance(saving, Future)
            future = saving
        self._pending = _PendingSave(future, stack, temp_path, step, training_state)

    def wait(self) -> None:
        """Completes the pending save: waits, records checksums, moves the folder to its place, removes old checkpoints.

        Raises OSError if it could not be written; earlier checkpoints stay.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with pending.stack:
            try:
                pending.future.result()
            except CheckpointException as failed:
                raise next(iter(failed.failures.values()))[0] from None
            files = self._checksums(pending.temp_path)
            if self._world.is_main:
                record = {
                    "format": FORMAT,
                    "step": pending.step,
                    "inputs": self._inputs,
                    "training_state": pending.training_state,
                    "files": files,
                }
                write_record(pending.temp_path / STATE, record)
        if self._world.is_main:
            for entry in set(self._folder.iterdir()) - self._kept():
                if _NAME.fullmatch(entry.name):
                    remove_folder(entry, "checkpoint")
            remove_leftovers(self._folder)
        self._barrier()

    def load(self, path: Path, weights: dict[str, Tensor]) -> LoadedCheckpoint:
        """Fills the weights in place and returns the rest.

        Raises ConfigError if the checkpoint was made from other inputs, naming the field, and CorruptFileError if it is
        damaged.
        """
        state = _read_state(path)
        if difference := first_difference(state["inputs"], self._inputs):
            raise ConfigError(
                f"{path} is a checkpoint of another recipe ({difference}): use the same recipe, or another --out"
            )
        for name in sorted(state["files"])[self._world.rank :: self._world.world_size]:
            verify_checksum(path / name, state["files"][name], folder=path)
        reader = HuggingFaceStorageReader(str(path))
        entries = reader.read_metadata().state_dict_metadata.items()
        found = {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        stored = {name.removeprefix(WEIGHT): shape for name, shape in found.items() if name.startswith(WEIGHT)}
        if mismatches := shape_mismatches(shapes, stored):
            raise ConfigError(f"{path}: the weights do not fit the model: {mismatches}")
        wanted = {f"{WEIGHT}{name}": weight for name, weight in weights.items()}
        optimizer_state = {}
        for name, shape in found.items():
            if name.startswith(OPTIMIZER):
                owner = weights[name.removeprefix(OPTIMIZER).rpartition(".")[0]]
                optimizer_state[name] = torch.zeros_like(owner) if shape == tuple(owner.shape) else torch.zeros(shape)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="torch.distributed is disabled"
            )  # true in one process, and intended
            load(wanted | optimizer_state, storage_reader=reader, process_group=self._world.checkpoint_group)
        return LoadedCheckpoint(
            step=int(state["step"]),
            optimizer_state={name.removeprefix(OPTIMIZER): value for name, value in optimizer_state.items()},
            training_state=state["training_state"],
        )

    def _kept(self) -> set[Path]:
        found = list_checkpoints(self._folder)
        permanent = [path for path in found if self._keep_every and int(path.name[5:]) % self._keep_every == 0]
        return {*found[-KEEP_LATEST:], *permanent}

    def _checksums(self, temp_path: Path) -> JsonObject:
        """Sizes and checksums of all ranks' files, each computed by the rank that wrote it."""
        own = {path.name: checksum(path) for path in sorted(temp_path.glob(f"shard-{self._world.rank + 1:05}-*"))}
        if self._world.world_size == 1:
            return own
        parts: list[JsonObject] = [{} for _ in range(self._world.world_size)]
        dist.all_gather_object(parts, own, group=self._world.checkpoint_group)
        return {name: entry for part in parts for name, entry in part.items()}

    def _barrier(self) -> None:
        if self._world.world_size > 1:
            dist.barrier(group=self._world.checkpoint_group)


def checkpoint_state_dict(weights: dict[str, Tensor], optimizer_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name."""
    return {f"{WEIGHT}{name}": weight for name, weight in weights.items()} | {
        f"{OPTIMIZER}{name}": tensor for name, tensor in optimizer_state.items()
    }


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return [path for path in checkpoint_folders(folder) if (path / STATE).is_file()]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Those of checkpoints in a folder, oldest first, also of damaged ones without their state."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name))


def checkpoint_files(path: Path) -> list[RecordedFile]:
    """The files of a checkpoint, with their checksums. Raises CorruptFileError or MissingFileError for its state."""
    return recorded_files(path, _read_state(path)["files"], path / STATE)


def _read_state(path: Path) -> JsonObject:
    """state.json of a checkpoint. Raises CorruptFileError if it is damaged or of another format."""
    state = read_record(path / STATE)
    if state.get("format") != FORMAT:
        raise CorruptFileError(
            f"{path / STATE} is damaged or of another version of Codekiln (format {FORMAT} is needed): remove {path}"
        )
    kinds = {"step": int, "inputs": dict, "training_state": dict, "files": dict}
    if damaged := [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]:
        raise CorruptFileError(f"{path / STATE} is damaged (field {damaged[0]}): remove {path}, then run again")
    return state
