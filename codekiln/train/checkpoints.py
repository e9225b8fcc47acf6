"""Checkpoints: weights and moments as PyTorch's distributed checkpoints in safetensors, the rest as JSON.

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
    Record,
    check_seal,
    first_difference,
    read_record,
    remove_leftovers,
    seal,
    temp_path_of,
    write_record,
)
from codekiln.folders import atomic_folder, remove_folder
from codekiln.model.tensors import misfits, write_tensors
from codekiln.train.parallel import Ranks

STATE = "state.json"
WEIGHT, MOMENT = "weight:", "moment:"  # what names in a checkpoint begin with
N_KEPT = 2
_ONE_FILE = "shard-00001-model-00001-of-00001.safetensors"  # as the first of several ranks names its own
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class _UnderWay:
    """A checkpoint that is being written."""

    future: Future[Any]
    stack: ExitStack  # puts the draft in its place
    draft: Path
    step: int


class Checkpoints:
    """The checkpoints of a run. One at a time is written beside training; `finish` waits for it.

    The last `N_KEPT` are kept, and for good those of every step that `keep_every` divides, if it is not 0.
    """

    def __init__(self, folder: Path, ranks: Ranks, made_from: Record, *, keep_every: int = 0) -> None:
        self._folder, self._ranks, self._made_from, self._keep_every = folder, ranks, made_from, keep_every
        self._under_way: _UnderWay | None = None
        self._writer = ThreadPoolExecutor(1)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Keeps what is being written also where training failed; many ranks cannot wait for each other then."""
        if error is None or self._ranks.size == 1:
            self.finish()

    @property
    def is_written(self) -> bool:
        """Whether this rank's part of a checkpoint is on the disk and waits for `finish`."""
        return self._under_way is not None and self._under_way.future.done()

    def save(self, step: int, state: dict[str, Tensor]) -> None:
        """Copies the state and begins to write `step-00000123`, which is there whole or not at all."""
        self.finish()
        path = self._folder / f"step-{step:08}"
        stack = ExitStack()
        draft = temp_path_of(path)
        if self._ranks.is_first:
            stack.enter_context(atomic_folder(path, "checkpoint"))
        self._wait()
        future: Future[Any]
        if self._ranks.size == 1:
            copied = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
            future = self._writer.submit(write_tensors, draft / _ONE_FILE, copied)
        else:
            writer = HuggingFaceStorageWriter(str(draft), save_distributed=True)
            begun = async_save(state, storage_writer=writer, process_group=self._ranks.checkpoint_group)
            assert isinstance(begun, Future)
            future = begun
        self._under_way = _UnderWay(future, stack, draft, step)

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, seals it, and removes those that are not kept.

        Raises OSError where it cannot be written; the ones before it stay.
        """
        if self._under_way is None:
            return
        work, self._under_way = self._under_way, None
        with work.stack:
            try:
                work.future.result()
            except CheckpointException as failed:
                raise next(iter(failed.failures.values()))[0] from None
            files = self._sealed(work.draft)
            if self._ranks.is_first:
                record = {"step": work.step, "made_from": self._made_from, "files": files}
                write_record(work.draft / STATE, record)
        if self._ranks.is_first:
            for entry in set(self._folder.iterdir()) - self._kept():
                if _NAME.fullmatch(entry.name):
                    remove_folder(entry, "checkpoint")
            remove_leftovers(self._folder)
        self._wait()

    def load(self, path: Path, weights: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """Fills the weights in place; the step, and the moments by name, each laid out as the weight it belongs to.

        Raises ValueError if the checkpoint was made from something else, naming the field, or is corrupt.
        """
        state = read_record(path / STATE)
        if difference := first_difference(state["made_from"], self._made_from):
            raise ValueError(
                f"{path} is a checkpoint of another recipe ({difference}): go on with that recipe or name another --out"
            )
        for name in sorted(state["files"])[self._ranks.rank :: self._ranks.size]:
            check_seal(path / name, state["files"][name], folder=path)
        reader = HuggingFaceStorageReader(str(path))
        entries = reader.read_metadata().state_dict_metadata.items()
        found = {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        stored = {name.removeprefix(WEIGHT): shape for name, shape in found.items() if name.startswith(WEIGHT)}
        if faults := misfits(shapes, stored):
            raise ValueError(f"{path}: the weights do not fit the model: {faults}")
        wanted = {f"{WEIGHT}{name}": weight for name, weight in weights.items()}
        moments = {}
        for name, shape in found.items():
            if name.startswith(MOMENT):
                owner = weights[name.removeprefix(MOMENT).rpartition(".")[0]]
                moments[name] = torch.zeros_like(owner) if shape == tuple(owner.shape) else torch.zeros(shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is meant
            load(wanted | moments, storage_reader=reader, process_group=self._ranks.checkpoint_group)
        return int(state["step"]), {name.removeprefix(MOMENT): value for name, value in moments.items()}

    def _kept(self) -> set[Path]:
        found = checkpoints(self._folder)
        for_good = [path for path in found if self._keep_every and int(path.name[5:]) % self._keep_every == 0]
        return {*found[-N_KEPT:], *for_good}

    def _sealed(self, draft: Path) -> Record:
        """Sizes and checksums of all ranks' files, each taken by the rank that wrote it."""
        own = {path.name: seal(path) for path in sorted(draft.glob(f"shard-{self._ranks.rank + 1:05}-*"))}
        if self._ranks.size == 1:
            return own
        parts: list[Record] = [{} for _ in range(self._ranks.size)]
        dist.all_gather_object(parts, own, group=self._ranks.checkpoint_group)
        return {name: entry for part in parts for name, entry in part.items()}

    def _wait(self) -> None:
        if self._ranks.size > 1:
            dist.barrier(group=self._ranks.checkpoint_group)


def checkpoint_state(weights: dict[str, Tensor], moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint holds, by name."""
    return {f"{WEIGHT}{name}": weight for name, weight in weights.items()} | {
        f"{MOMENT}{name}": moment for name, moment in moments.items()
    }


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _NAME.fullmatch(path.name) and (path / STATE).is_file())
