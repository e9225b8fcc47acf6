"""Many ranks as one: PyTorch's own engine (FSDP2, tensor parallel by DTensor), started by torchrun.

A mesh has two axes: over `data` weights, gradients and moments are sharded and every rank reads its rows of the same global
batch; over `tensor` heads and feed-forward channels are split. One process alone is a world of one rank without a mesh.
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

from codekiln.errors import ConfigError
from codekiln.model.configs import ModelConfig
from codekiln.model.transformer import Transformer

# A rank that waits this long for another gives up; torchrun sees one that died at once.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# How long ranks wait while the first one builds a corpus or measures.
CONTROL_TIMEOUT = timedelta(days=7)
GLOO_EXIT_SECONDS = 0.2  # seconds


CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The world as one rank sees it. `mesh` is None for a process alone; products are computed in `dtype`."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    mesh: DeviceMesh | None = None
    control_group: dist.ProcessGroup | None = None  # for what takes long
    checkpoint_group: dist.ProcessGroup | None = None  # for checkpoints, which are written beside training

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dp_size(self) -> int:
        """Ranks that read different rows."""
        return 1 if self.mesh is None else self.mesh["data"].size()

    @property
    def dp_rank(self) -> int:
        return 0 if self.mesh is None else self.mesh["data"].get_local_rank()

    def all_reduce_sum(self, values: Iterable[float]) -> list[float]:
        """Sums over the ranks that read different rows, the same on every rank to the bit.

        Ranks that share a layer have the same sums over rows; what differs there, as a signal does, is their mean.
        """
        sums = torch.tensor(list(values), dtype=torch.float64)
        if self.mesh is not None:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
            sums /= self.mesh["tensor"].size()
        found: list[float] = sums.tolist()
        return found

    def autocast(self) -> torch.autocast:
        """Computes matrix products in `dtype`. Has no effect where FSDP casts the weights itself."""
        enabled = self.dtype != torch.float32 and self.mesh is None
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def broadcast_object(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        received = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(received, src=0, group=self.control_group)
        return received[0]

    def send_command(self, command: str, message: Any = None) -> None:
        """Tells the ranks that `serve_commands` what to do now, and with what."""
        self.broadcast_object((command, message))

    def serve_commands(self, work: dict[str, Callable[[Any], object]]) -> None:
        """Does what the first rank leads in, with what it tells, until it tells the end.

        Raises ValueError where the first rank is gone.
        """
        while True:
            try:
                command, message = self.broadcast_object(None)
            except RuntimeError:
                raise ConfigError(f"rank {self.rank} ends, for the first one did, which tells why") from None
            if command == EXIT:
                return
            work[command](message)


SINGLE_PROCESS = World()
_worlds = itertools.count()  # that this process has joined
EXIT = "end"


@contextmanager
def init_distributed(device: str, *, tensor_parallel: int = 1) -> Iterator[World]:
    """The world that torchrun made, joined for the block; a process that it did not start is alone.

    Raises ValueError where the world does not divide into `tensor_parallel`, or could not start again.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        if tensor_parallel > 1:
            raise ConfigError(
                f"{tensor_parallel} ranks are to share a layer and this process is alone: start it with torchrun"
            )
        yield World(device=torch.device(device), dtype=dtype)
        return
    size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    n_data = dp_size_of(size, tensor_parallel)
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store, rank = _fresh_store()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    try:
        mesh = init_device_mesh(device, (n_data, tensor_parallel), mesh_dim_names=("data", "tensor"))
        here = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
        quiet = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        beside = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        yield World(dist.get_rank(), size, here, dtype, mesh, quiet, beside)
    finally:
        dist.destroy_process_group()
        # Gloo's threads outlive it, and need the interpreter to let go of what they sent last: at its end they would abort.
        time.sleep(GLOO_EXIT_SECONDS)


def _fresh_store() -> tuple[Store, int]:
    """A store that knows nothing of a world before this one, nor of ranks that died, and this process' rank in it."""
    # torchrun's own store outlives a restart, and with it the addresses of the dead. How often a node was restarted tells
    # worlds apart on one node; on several each counts for itself.
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if is_shared and int(os.environ["GROUP_WORLD_SIZE"]) > 1 and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0:
        raise ConfigError(
            "ranks of several nodes that are to start again need a store of their own each time: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started, with --rdzv-backend c10d"
        )
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if is_shared else ""
    store, rank = _torchrun_store()
    return PrefixStore(f"{attempt}/{next(_worlds)}", store), rank


@cache
def _torchrun_store() -> tuple[Store, int]:
    """The store that torchrun names, and this process' rank in it."""
    store, rank, _ = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
    return store, rank


def dp_size_of(size: int, tensor_parallel: int) -> int:
    """How many of `size` ranks read different rows. Raises ValueError where they do not divide into `tensor_parallel`."""
    if size % tensor_parallel:
        raise ConfigError(f"{size} ranks do not divide into groups of {tensor_parallel} that share a layer")
    return size // tensor_parallel


def parallelize_model(model: Transformer, world: World) -> None:
    """Spreads a model, on whatever device its weights are, over the mesh in place.

    Raises ValueError where heads or channels do not divide over the ranks that share a layer.
    """
    mesh, config = world.mesh, model.config
    if mesh is None:
        return
    n_tensor = mesh["tensor"].size()
    if n_tensor > 1:
        for name in ("n_heads", "n_kv_heads", "d_ff"):
            if getattr(config, name) % n_tensor:
                raise ConfigError(f"model.{name} is {getattr(config, name)}: it does not divide over {n_tensor} ranks")
        plan = _tensor_plan(config)
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"], plan)
    policy = MixedPrecisionPolicy(world.dtype, torch.float32)
    outer_modules: list[nn.Module] = [model.embedding, model.lm_head]
    together = [outer_modules] if config.tie_embeddings else [outer_modules[:1], outer_modules[1:]]
    # Put away after each pass, the outermost too: a checkpoint takes the weights between passes, spread and in float32.
    groups: list[list[nn.Module]] = [*([block] for block in model.blocks), *together, [model]]
    for group in groups:
        fully_shard(group, mesh=mesh["data"], mp_policy=policy, reshard_after_forward=True)


def build_sharded_model(config: ModelConfig, world: World, *, activation_checkpointing: bool) -> Transformer:
    """A model over the ranks, on the meta device: `to_empty` and `tie` make it one with weights to fill."""
    with torch.device("meta"):
        model = Transformer(config)
    model.activation_checkpointing = activation_checkpointing
    parallelize_model(model, world)
    return model


def reshard(model: nn.Module) -> None:
    """Spreads what a forward pass left whole that no backward pass followed: a tied head."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _tensor_plan(config: ModelConfig) -> dict[str, ParallelStyle]:
    """Heads and channels split over ranks; their norms see whole heads, and the residual stream is whole everywhere."""
    # Told to be whole once a layer, so that what comes back through its projections is summed once.
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
    """The norm of all gradients together, the same on every rank to the bit."""
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    for weight in model.parameters():
        if weight.grad is not None:
            norm = torch.linalg.vector_norm(local_tensor(weight.grad), dtype=torch.float32)
            total += norm.double().square() / _replication(weight.grad, world)
    if world.mesh is not None:
        dist.all_reduce(total)
    return total.sqrt()


def scale_grads(model: nn.Module, factor: float) -> None:
    """Multiplies all gradients."""
    gradients = [local_tensor(weight.grad) for weight in model.parameters() if weight.grad is not None]
    torch._foreach_mul_(gradients, factor)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor as one process has it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def iter_full_tensors(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every weight whole, one at a time; all ranks go through them together."""
    for name, weight in weights.items():
        yield name, full_tensor(weight)


def distribute_like(target: Tensor, source: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, spread as `target` is; nothing is sent."""
    if not isinstance(target, DTensor):
        return source
    return distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def copy_full_(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor, the same on every rank, into one that may be spread."""
    target.copy_(distribute_like(target, source))


def apply_on_owner_rank(work: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """What `work` makes of matrices of one shape (R, C), stacked (N, R, C): of each the part that is on this rank.

    Where rows are spread over ranks, each takes its share of the matrices whole, works, and gives rows back: every number
    travels twice, whatever the number of ranks. Where columns or a second axis are spread too, every rank works on all.
    """
    first = matrices[0]
    if not isinstance(first, DTensor):
        return list(work(torch.stack(list(matrices))))
    mesh = first.device_mesh
    if mesh.ndim > 1 or first.placements != (Shard(0),):
        done = work(torch.stack([full_tensor(matrix) for matrix in matrices]))
        return [local_tensor(distribute_like(matrix, part)) for matrix, part in zip(matrices, done, strict=True)]
    n, rank, (R, C) = mesh.size(), mesh.get_local_rank(), first.shape
    per_rank = -(-R // n)
    rows = [max(0, min(per_rank, R - r * per_rank)) for r in range(n)]  # of each rank
    owned = [range(r, len(matrices), n) for r in range(n)]
    to_owners = [len(numbers) * rows[rank] * C for numbers in owned]
    from_ranks = [len(owned[rank]) * n_rows * C for n_rows in rows]
    parts = [local_tensor(matrix).reshape(-1) for matrix in matrices]
    sent = torch.cat([parts[k] for numbers in owned for k in numbers])
    received = sent.new_empty(sum(from_ranks))
    dist.all_to_all_single(received, sent, from_ranks, to_owners, group=mesh.get_group())
    n_owned = len(owned[rank])
    if n_owned:
        parts = [part.view(n_owned, -1, C) for part in torch.split(received, from_ranks)]
        done = work(torch.cat(parts, dim=1))
        received = torch.cat([part.reshape(-1) for part in torch.split(done, rows, dim=1)])
    back = torch.empty_like(sent)
    dist.all_to_all_single(back, received, to_owners, from_ranks, group=mesh.get_group())
    made = list(matrices)
    for numbers, part in zip(owned, torch.split(back, to_owners), strict=True):
        for k, update in zip(numbers, part.view(len(numbers), rows[rank], C), strict=True):
            made[k] = update
    return made


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor that is on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _replication(tensor: Tensor, world: World) -> int:
    """On how many ranks each part of a tensor is."""
    if not isinstance(tensor, DTensor):
        return world.world_size
    mesh = tensor.device_mesh
    parts = 1
    for axis, placement in enumerate(tensor.placements):
        parts *= 1 if isinstance(placement, Replicate) else mesh.size(axis)
    return world.world_size // parts
