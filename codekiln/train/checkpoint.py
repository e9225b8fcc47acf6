"""Checkpointer: weights and moments as PyTorch's distributed checkpoints in safetensors, the rest as JSON.

Written by any number of ranks, each its own file, while training goes on; read by any other number.
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

from codekiln.files import (
    JsonObject,
    checksum,
    first_difference,
    read_json,
    remove_leftovers,
    temp_path_of,
    verify_checksum,
    write_json,
)
from codekiln.folders import atomic_folder, remove_folder
from codekiln.model.tensors import save_safetensors, shape_mismatches
from codekiln.train.parallel import World

STATE = "state.json"
WEIGHT, OPTIMIZER = "weight:", "moment:"  # what names in a checkpoint begin with
KEEP_LATEST = 2
_ONE_FILE = "shard-00001-model-00001-of-00001.safetensors"  # as the first of several ranks names its own
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class _PendingSave:
    """A checkpoint that is being written."""

    future: Future[Any]
    stack: ExitStack  # puts the draft in its place
    temp_path: Path
    step: int


class Checkpointer:
    """The checkpoints of a run. One at a time is written beside training; `wait` waits for it.

    The last `KEEP_LATEST` are kept, and for good those of every step that `keep_every` divides, if it is not 0.
    """

    def __init__(self, folder: Path, world: World, inputs: JsonObject, *, keep_every: int = 0) -> None:
        self._folder, self._world, self._made_from, self._keep_every = folder, world, inputs, keep_every
        self._pending: _PendingSave | None = None
        self._writer = ThreadPoolExecutor(1)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Keeps what is being written also where training failed; many ranks cannot wait for each other then."""
        if error is None or self._world.world_size == 1:
            self.wait()

    @property
    def is_done(self) -> bool:
        """Whether this rank's part of a checkpoint is on the disk and waits for `wait`."""
        return self._pending is not None and self._pending.future.done()

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Copies the state and begins to write `step-00000123`, which is there whole or not at all."""
        self.wait()
        path = self._folder / f"step-{step:08}"
        stack = ExitStack()
        temp_path = temp_path_of(path)
        if self._world.is_main:
            stack.enter_context(atomic_folder(path, "checkpoint"))
        self._barrier()
        future: Future[Any]
        if self._world.world_size == 1:
            copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
            future = self._writer.submit(save_safetensors, temp_path / _ONE_FILE, copied)
        else:
            writer = HuggingFaceStorageWriter(str(temp_path), save_distributed=True)
            begun = async_save(state, storage_writer=writer, process_group=self._world.checkpoint_group)
            assert isinstance(begun, Future)
            future = begun
        self._pending = _PendingSave(future, stack, temp_path, step)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, seals it, and removes those that are not kept.

        Raises OSError where it cannot be written; the ones before it stay.
        """
        if self._pending is None:
            return
        work, self._pending = self._pending, None
        with work.stack:
            try:
                work.future.result()
            except CheckpointException as failed:
                raise next(iter(failed.failures.values()))[0] from None
            files = self._checksums(work.temp_path)
            if self._world.is_main:
                record = {"step": work.step, "inputs": self._made_from, "files": files}
                write_json(work.temp_path / STATE, record)
        if self._world.is_main:
            for entry in set(self._folder.iterdir()) - self._kept():
                if _NAME.fullmatch(entry.name):
                    remove_folder(entry, "checkpoint")
            remove_leftovers(self._folder)
        self._barrier()

    def load(self, path: Path, weights: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """Fills the weights in place; the step, and the moments by name, each laid out as the weight it belongs to.

        Raises ValueError if the checkpoint was made from something else, naming the field, or is corrupt.
        """
        state = read_json(path / STATE)
        if difference := first_difference(state["inputs"], self._made_from):
            raise ValueError(
                f"{path} is a checkpoint of another recipe ({difference}): go on with that recipe or name another --out"
            )
        for name in sorted(state["files"])[self._world.rank :: self._world.world_size]:
            verify_checksum(path / name, state["files"][name], folder=path)
        reader = HuggingFaceStorageReader(str(path))
        entries = reader.read_metadata().state_dict_metadata.items()
        found = {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        stored = {name.removeprefix(WEIGHT): shape for name, shape in found.items() if name.startswith(WEIGHT)}
        if faults := shape_mismatches(shapes, stored):
            raise ValueError(f"{path}: the weights do not fit the model: {faults}")
        wanted = {f"{WEIGHT}{name}": weight for name, weight in weights.items()}
        optimizer_state = {}
        for name, shape in found.items():
            if name.startswith(OPTIMIZER):
                owner = weights[name.removeprefix(OPTIMIZER).rpartition(".")[0]]
                optimizer_state[name] = torch.zeros_like(owner) if shape == tuple(owner.shape) else torch.zeros(shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is meant
            load(wanted | optimizer_state, storage_reader=reader, process_group=self._world.checkpoint_group)
        return int(state["step"]), {name.removeprefix(OPTIMIZER): value for name, value in optimizer_state.items()}

    def _kept(self) -> set[Path]:
        found = list_checkpoints(self._folder)
        for_good = [path for path in found if self._keep_every and int(path.name[5:]) % self._keep_every == 0]
        return {*found[-KEEP_LATEST:], *for_good}

    def _checksums(self, temp_path: Path) -> JsonObject:
        """Sizes and checksums of all ranks' files, each taken by the rank that wrote it."""
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
    """What a checkpoint holds, by name."""
    return {f"{WEIGHT}{name}": weight for name, weight in weights.items()} | {
        f"{OPTIMIZER}{name}": moment for name, moment in optimizer_state.items()
    }


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name) and (path / STATE).is_file())
