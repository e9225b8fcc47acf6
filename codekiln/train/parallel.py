"""Distributed training by PyTorch: FSDP2 and tensor parallelism, started by torchrun.

The mesh has two axes. Over `data`, weights, gradients and optimizer state are sharded, and every rank reads its sequences of
the same global batch. Over `tensor`, attention heads and feed-forward channels are split. A single process has no mesh.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from codekiln.errors import ConfigError, RankError
from codekiln.model.configs import Lfm2Config, ModelConfig
from codekiln.model.transformer import Transformer

# A rank that waits this long in a collective gives up. torchrun notices a rank that died at once.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# How long ranks wait for a command while rank 0 builds a corpus or evaluates.
CONTROL_TIMEOUT = timedelta(days=7)
GLOO_EXIT_SECONDS = 0.2

CPU = torch.device("cpu")
EXIT = "exit"  # the command that ends `World.serve_commands`


@dataclass(frozen=True)
class World:
    """The process group as one rank sees it. `mesh` is None in a single process; matrix products are computed in `dtype`."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    mesh: DeviceMesh | None = None
    control_group: dist.ProcessGroup | None = None  # for commands, with a long timeout
    checkpoint_group: dist.ProcessGroup | None = None  # for checkpoints, which are written in the background

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dp_size(self) -> int:
        """Data-parallel ranks: those that read different sequences."""
        return 1 if self.mesh is None else self.mesh["data"].size()

    @property
    def dp_rank(self) -> int:
        return 0 if self.mesh is None else self.mesh["data"].get_local_rank()

    def autocast(self) -> torch.autocast:
        """Computes matrix products in `dtype`. Has no effect where FSDP casts the weights itself."""
        enabled = self.dtype != torch.float32 and self.mesh is None
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def all_reduce_sum(self, values: Iterable[float]) -> list[float]:
        """Sums over the data-parallel ranks, bit-identical on all ranks.

        Tensor-parallel ranks have equal losses. Values that differ between them, like signal counts, are averaged.
        """
        sums = torch.tensor(list(values), dtype=torch.float64)
        if self.mesh is not None:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
            sums /= self.mesh["tensor"].size()
        found: list[float] = sums.tolist()
        return found

    def broadcast_object(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        received = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(received, src=0, group=self.control_group)
        return received[0]

    def send_command(self, command: str, argument: Any = None) -> None:
        """Sends a command from rank 0 to the ranks that `serve_commands`."""
        self.broadcast_object((command, argument))

    def serve_commands(self, handlers: dict[str, Callable[[Any], object]]) -> None:
        """Executes commands from rank 0 until it sends EXIT. Raises RankError if rank 0 is gone."""
        while True:
            try:
                command, argument = self.broadcast_object(None)
            except RuntimeError:
                raise RankError(f"rank {self.rank} stopped because rank 0 failed; see the log of rank 0") from None
            if command == EXIT:
                return
            handlers[command](argument)


SINGLE_PROCESS = World()
_n_worlds = itertools.count()  # process groups that this process has joined


@contextmanager
def init_distributed(device: str, *, tensor_parallel: int = 1) -> Iterator[World]:
    """Joins the process group that torchrun made, for the block. Without torchrun it is a single process.

    Raises ConfigError if the device is missing, if the ranks cannot be split into groups of `tensor_parallel`, or if a
    restart of several nodes could not work.
    """
    if device == "cuda":
        _require_cuda()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        if tensor_parallel > 1:
            raise ConfigError(f"--tensor-parallel {tensor_parallel} needs several processes: start them with torchrun")
        yield World(device=torch.device(device), dtype=dtype)
        return
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    dp_size = dp_size_of(world_size, tensor_parallel)
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store, rank = _fresh_store()
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield World(
            rank=dist.get_rank(),
            world_size=world_size,
            device=torch.device(device, local_rank) if device == "cuda" else torch.device(device),
            dtype=dtype,
            mesh=init_device_mesh(device, (dp_size, tensor_parallel), mesh_dim_names=("data", "tensor")),
            control_group=dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT),
            checkpoint_group=dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT),
        )
    finally:
        dist.destroy_process_group()
        # Gloo's threads live longer and need the interpreter to release their last message: at its end they would abort.
        time.sleep(GLOO_EXIT_SECONDS)


def _require_cuda() -> None:
    if not torch.cuda.is_available():
        raise ConfigError("PyTorch finds no CUDA device: omit --device, or install PyTorch's build for CUDA")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{torch.cuda.get_device_name()} has no bfloat16: training on CUDA needs an A100 or newer")


def _fresh_store() -> tuple[Store, int]:
    """A store without entries of an earlier process group or of ranks that died, and the rank of this process in it."""
    # torchrun's own store survives a restart, and with it the addresses of dead ranks. On one node, the restart count
    # separates attempts. On several nodes each counts for itself, so every attempt needs a store of its own.
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if is_shared and int(os.environ["GROUP_WORLD_SIZE"]) > 1 and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0:
        raise ConfigError(
            "--max-restarts on several nodes needs a new store for each attempt: "
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, and use --rdzv-backend c10d"
        )
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if is_shared else ""
    store, rank = _torchrun_store()
    return PrefixStore(f"{attempt}/{next(_n_worlds)}", store), rank


@cache
def _torchrun_store() -> tuple[Store, int]:
    """The store that torchrun provides, and the rank of this process in it."""
    store, rank, _ = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
    return store, rank


def dp_size_of(world_size: int, tensor_parallel: int) -> int:
    """The number of data-parallel ranks. Raises ConfigError if ranks cannot be split into groups of `tensor_parallel`."""
    if world_size % tensor_parallel:
        raise ConfigError(f"{world_size} ranks cannot be split into tensor-parallel groups of {tensor_parallel}")
    return world_size // tensor_parallel


def parallelize_model(model: Transformer, world: World) -> None:
    """Shards a model over the mesh in place, on whatever device its weights are.

    Raises ConfigError if heads or channels do not divide over the tensor-parallel ranks.
    """
    mesh, config = world.mesh, model.config
    if mesh is None:
        return
    n_tensor = mesh["tensor"].size()
    if n_tensor > 1:
        if isinstance(config, Lfm2Config):
            raise ConfigError("the layers of lfm2 cannot be split over tensor-parallel ranks: use --tensor-parallel 1")
        for name in ("n_heads", "n_kv_heads", "d_ff"):
            if getattr(config, name) % n_tensor:
                raise ConfigError(
                    f"model.{name} is {getattr(config, name)}: it is not a multiple of the tensor-parallel size {n_tensor}"
                )
        plan = _tensor_plan(config)
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"], plan)
    policy = MixedPrecisionPolicy(world.dtype, torch.float32)
    outer_modules: list[nn.Module] = [model.embedding, model.lm_head]
    outer_groups = [outer_modules] if config.tie_embeddings else [outer_modules[:1], outer_modules[1:]]
    # Resharded after each pass, the outermost group too: checkpoints are saved between passes, from float32 shards.
    groups: list[list[nn.Module]] = [*([block] for block in model.blocks), *outer_groups, [model]]
    for group in groups:
        fully_shard(group, mesh=mesh["data"], mp_policy=policy, reshard_after_forward=True)


def build_sharded_model(config: ModelConfig, world: World, *, activation_checkpointing: bool) -> Transformer:
    """A model sharded over the ranks, on the meta device. `to_empty` and `tie_weights` give it weights to fill."""
    with torch.device("meta"):
        model = Transformer(config)
    model.activation_checkpointing = activation_checkpointing
    parallelize_model(model, world)
    return model


def reshard(model: nn.Module) -> None:
    """Reshards weights that FSDP left gathered after a forward pass without a backward pass: a tied output layer."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _tensor_plan(config: ModelConfig) -> dict[str, ParallelStyle]:
    """Splits heads and channels over ranks. Norms see whole heads, and the residual stream is replicated."""
    # Inputs are marked as replicated once per layer, so that the backward pass has one all-reduce per layer, not per
    # projection.
    plan: dict[str, ParallelStyle] = {
        name: PrepareModuleInput(
            input_layouts=(Replicate(), *others), desired_input_layouts=(Replicate(), *others), use_local_output=False
        )
        for name, others in (("attention", (None, None, None, None)), ("mlp", ()))
    }
    plan |= {name: ColwiseParallel() for name in ("attention.q", "attention.k", "attention.v", "mlp.up")}
    plan |= {name: RowwiseParallel() for name in ("attention.out", "mlp.down")}
    if config.activation == "silu_gated":
        plan["mlp.gate"] = ColwiseParallel()
    if config.qk_norm:
        plan |= {
            name: SequenceParallel(sequence_dim=2, use_local_output=True)
            for name in ("attention.q_norm", "attention.k_norm")
        }
    return plan


def total_grad_norm(model: nn.Module, world: World) -> Tensor:
    """The norm of all gradients together, a float64 scalar, bit-identical on all ranks."""
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for weight in model.parameters():
        if weight.grad is not None:
            norm = torch.linalg.vector_norm(local_tensor(weight.grad), dtype=torch.float32)
            total += norm.double().square() / _replication(weight.grad, world)
    if world.mesh is not None:
        dist.all_reduce(total)
    return total.sqrt()


def scale_grads(model: nn.Module, factor: float) -> None:
    """Multiplies all gradients by a factor."""
    gradients = [local_tensor(weight.grad) for weight in model.parameters() if weight.grad is not None]
    torch._foreach_mul_(gradients, factor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor without sharding. All ranks of its mesh must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def iter_full_tensors(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Full weights, one at a time. All ranks must iterate together."""
    for name, weight in weights.items():
        yield name, full_tensor(weight)


def distribute_like(target: Tensor, source: Tensor) -> Tensor:
    """A full tensor, which is equal on every rank, sharded like `target`. Needs no communication."""
    if not isinstance(target, DTensor):
        return source
    return distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def copy_full_(target: Tensor, source: Tensor) -> None:
    """Copies a full tensor, which is equal on every rank, into one that may be sharded."""
    target.copy_(distribute_like(target, source))


def apply_on_owner_rank(work: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """Applies `work` (N, R, C) -> (N, R, C) to full matrices of one shape (R, C), and returns this rank's shard of each.

    If rows are sharded over ranks, each matrix is sent to one owner rank, processed there and sent back: two all-to-alls,
    each of which moves every number once, for any number of ranks. If columns or a second axis are sharded too, every rank
    processes all matrices.
    """
    first = matrices[0]
    if not isinstance(first, DTensor):
        return list(work(torch.stack(list(matrices))))
    mesh = first.device_mesh
    if mesh.ndim > 1 or first.placements != (Shard(0),):
        done = work(torch.stack([full_tensor(matrix) for matrix in matrices]))
        return [local_tensor(distribute_like(matrix, part)) for matrix, part in zip(matrices, done, strict=True)]
    n, rank, (R, C) = mesh.size(), mesh.get_local_rank(), first.shape
    rows_per_rank = -(-R // n)  # as DTensor shards them: the last ranks may have fewer
    rows = [max(0, min(rows_per_rank, R - r * rows_per_rank)) for r in range(n)]
    owned = [range(r, len(matrices), n) for r in range(n)]  # the matrices of each owner
    to_owners = [len(numbers) * rows[rank] * C for numbers in owned]  # numbers that this rank sends to each owner
    from_ranks = [len(owned[rank]) * n_rows * C for n_rows in rows]  # numbers that this owner receives from each rank
    shards = [local_tensor(matrix).reshape(-1) for matrix in matrices]  # each (rows[rank] * C,)
    sent = torch.cat([shards[k] for numbers in owned for k in numbers])
    received = sent.new_empty(sum(from_ranks))
    dist.all_to_all_single(received, sent, from_ranks, to_owners, group=mesh.get_group())
    n_owned = len(owned[rank])
    if n_owned:
        parts = [part.view(n_owned, -1, C) for part in torch.split(received, from_ranks)]  # per rank (n_owned, rows, C)
        done = work(torch.cat(parts, dim=1))  # (n_owned, R, C)
        received = torch.cat([part.reshape(-1) for part in torch.split(done, rows, dim=1)])
    returned = torch.empty_like(sent)
    dist.all_to_all_single(returned, received, to_owners, from_ranks, group=mesh.get_group())
    results = list(matrices)
    for numbers, part in zip(owned, torch.split(returned, to_owners), strict=True):
        for k, result in zip(numbers, part.view(len(numbers), rows[rank], C), strict=True):
            results[k] = result
    return results


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _replication(tensor: Tensor, world: World) -> int:
    """The number of ranks that hold each element of a tensor."""
    if not isinstance(tensor, DTensor):
        return world.world_size
    mesh = tensor.device_mesh
    parts = 1
    for axis, placement in enumerate(tensor.placements):
        parts *= 1 if isinstance(placement, Replicate) else mesh.size(axis)
    return world.world_size // parts
