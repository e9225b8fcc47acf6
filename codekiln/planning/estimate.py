"""Estimates a training step by running it on fake tensors and a fake process group, as rank 0 of N.

What runs is the code that trains: model, sharding, loss, optimizer. Memory is measured by PyTorch's own tracker, and FLOPs
and collectives are counted as they are executed. Time comes from a roofline model: see `Accelerator` and the constants
below it. benchmarks/plan_errors.py measures the errors against real and published runs.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from codekiln.model.configs import ModelConfig
from codekiln.model.transformer import Losses
from codekiln.train.config import TrainConfig
from codekiln.train.loop import forward_backward
from codekiln.train.optimizer import OptimizerGroup
from codekiln.train.parallel import CPU, World, build_sharded_model, dp_size_of, scale_grads, total_grad_norm


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device, by its data sheet: FLOP/s, bytes, and bytes per second in one direction."""

    peak: float  # dense FLOP/s in the precision that training uses on it
    # Fraction of the peak that matrix products reach, from the published runs that benchmarks/plan_errors.py names.
    matmul_efficiency: float
    dtype: torch.dtype
    memory: float
    memory_bandwidth: float
    node_size: int
    link_bandwidth: float  # between devices of a node
    node_network: float  # from all devices of a node together to other nodes
    price: float  # dollars per hour, an assumption
    # Whether Codekiln trains on it: CUDA devices with bfloat16.
    is_supported: bool = True


ACCELERATORS = {
    "h100": Accelerator(
        peak=989e12,
        matmul_efficiency=0.53,
        dtype=torch.bfloat16,
        memory=80e9,
        memory_bandwidth=3.35e12,
        node_size=8,
        link_bandwidth=450e9,
        node_network=400e9,
        price=3.0,
    ),
    "a100": Accelerator(
        peak=312e12,
        matmul_efficiency=0.7,
        dtype=torch.bfloat16,
        memory=80e9,
        memory_bandwidth=2.04e12,
        node_size=8,
        link_bandwidth=300e9,
        node_network=200e9,
        price=1.8,
    ),
    # It has no bfloat16, and Codekiln trains in no other short format.
    "v100": Accelerator(
        peak=15.7e12,
        matmul_efficiency=0.8,
        dtype=torch.float32,
        memory=32e9,
        memory_bandwidth=0.9e12,
        node_size=8,
        link_bandwidth=150e9,
        node_network=50e9,
        price=0.9,
        is_supported=False,
    ),
    # The links form a torus instead of nodes.
    "tpu-v4-like": Accelerator(
        peak=275e12,
        matmul_efficiency=0.7,
        dtype=torch.bfloat16,
        memory=32e9,
        memory_bandwidth=1.2e12,
        node_size=4096,
        link_bandwidth=270e9,
        node_network=270e9,
        price=3.2,
        is_supported=False,
    ),
}

BANDWIDTH_EFFICIENCY = 0.8  # fraction of a bandwidth that transfers reach
FUSED_TRAFFIC_FRACTION = 0.4  # memory traffic between matrix products that is left in compiled blocks
LINK_LATENCY_SECONDS = 2e-6  # per rank that a collective passes
RESERVED_BYTES = 4e9  # per device: its context, and buffers of collectives
FRAGMENTATION = 0.06  # of the allocated memory: unused space between allocations

DATA, TENSOR = "data", "tensor"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
KINDS = ("weights", "gradients", "optimizer_state", "activations")


@dataclass
class Phase:
    """The work of a rank in one part of a step. Collectives are [count, bytes] by operation and mesh axis."""

    name: str
    flops: float = 0.0
    product_seconds: float = 0.0
    other_bytes: float = 0.0
    collectives: dict[tuple[str, str], list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """How a step is run: the micro-batch size in sequences, and the rest as in `RuntimeConfig`."""

    n_ranks: int
    micro_batch_size: int
    tensor_parallel: int = 1
    activation_checkpointing: bool = False
    compile: bool = True


@dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """Bytes by kind when memory is at its peak, FLOPs and collectives of one rank, and seconds of the whole step."""

    settings: ParallelSettings
    memory: dict[str, float]
    flops: float
    model_flops: float
    collectives: dict[tuple[str, str], list[float]]
    compute_seconds: float
    exposed_comm_seconds: float
    tokens: int

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.exposed_comm_seconds

    @property
    def peak_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def fits(self, accelerator: Accelerator) -> bool:
        return self.peak_bytes <= _usable_bytes(accelerator)

    def mfu(self, accelerator: Accelerator) -> float:
        """Model FLOPs utilization: recomputed activations do not count."""
        return self.model_flops / self.seconds / accelerator.peak


def _usable_bytes(accelerator: Accelerator) -> float:
    """Bytes that tensors can use."""
    return (accelerator.memory - RESERVED_BYTES) / (1 + FRAGMENTATION)


def estimate_step(
    config: TrainConfig, model_config: ModelConfig, accelerator: Accelerator, settings: ParallelSettings
) -> StepEstimate:
    """Runs a step as rank 0 of `n_ranks`. Raises ConfigError if sequences or layers do not divide over the ranks."""
    rows = config.sequences_per_rank(dp_size_of(settings.n_ranks, settings.tensor_parallel))
    context = config.seq_len(model_config)
    micro_batch_size = min(settings.micro_batch_size, rows)
    n_micro = -(-rows // micro_batch_size)
    with fake_process_group(settings, accelerator.dtype) as world:
        recorder = _Recorder(accelerator, world)
        memory = _record(config, model_config, world, recorder, (micro_batch_size, context), min(n_micro, 2), settings)
    phases = recorder.phases
    seconds = [_seconds(phase, accelerator, settings, model_config.n_layers) for phase in phases]
    # Two micro-batches, forward and backward, and the update were recorded. All others are like the second.
    times = [1, 1, n_micro - 1, n_micro - 1, 1] if n_micro > 1 else [1, 1, 1]
    collectives: dict[tuple[str, str], list[float]] = {}
    for n, phase in zip(times, phases, strict=True):
        for what, (count, n_bytes) in phase.collectives.items():
            total = collectives.setdefault(what, [0.0, 0.0])
            total[0] += n * count
            total[1] += n * n_bytes
    tokens = config.global_batch_size * context
    return StepEstimate(
        settings=settings,
        memory=memory,
        flops=sum(n * phase.flops for n, phase in zip(times, phases, strict=True)),
        model_flops=tokens * model_config.training_flops(context) / settings.n_ranks,
        collectives=collectives,
        compute_seconds=sum(n * compute for n, (compute, _) in zip(times, seconds, strict=True)),
        exposed_comm_seconds=sum(n * exposed for n, (_, exposed) in zip(times, seconds, strict=True)),
        tokens=tokens,
    )


def search_settings(
    config: TrainConfig, model_config: ModelConfig, accelerator: Accelerator, n_ranks: int, tensor_parallel: int
) -> Iterator[StepEstimate]:
    """Estimates for the two smallest micro-batch sizes and the largest that fits, each with and without activation
    checkpointing.

    Memory grows at least linearly with the micro-batch size: the first two estimates predict which sizes fit, and those
    are then run. Raises ConfigError if sequences or layers do not divide over the ranks.
    """
    per_rank = config.sequences_per_rank(dp_size_of(n_ranks, tensor_parallel))
    sizes = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    for activation_checkpointing in (False, True):

        def run(size: int, activation_checkpointing: bool = activation_checkpointing) -> StepEstimate:
            settings = ParallelSettings(
                n_ranks=n_ranks,
                micro_batch_size=size,
                tensor_parallel=tensor_parallel,
                activation_checkpointing=activation_checkpointing,
            )
            return estimate_step(config, model_config, accelerator, settings)

        seen = []
        for size in sizes[:2]:
            seen.append(run(size))
            yield seen[-1]
        if len(seen) < 2:
            continue
        first, second = (step.peak_bytes for step in seen)
        bytes_per_sequence = (second - first) / (sizes[1] - 1)
        for size in reversed(sizes[2:]):
            if first + (size - 1) * bytes_per_sequence <= _usable_bytes(accelerator):
                step = run(size)
                yield step
                if step.fits(accelerator):
                    break


@contextmanager
def fake_process_group(settings: ParallelSettings, dtype: torch.dtype) -> Iterator[World]:
    """A process group that sends nothing, in which this process is rank 0."""
    if settings.n_ranks == 1:
        yield World(dtype=dtype)
        return
    logging.getLogger("torch.distributed.fsdp").setLevel(logging.ERROR)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=settings.n_ranks)
    try:
        shape = (settings.n_ranks // settings.tensor_parallel, settings.tensor_parallel)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=(DATA, TENSOR))
        yield World(0, settings.n_ranks, CPU, dtype, mesh)
    finally:
        dist.destroy_process_group()


def _record(
    config: TrainConfig,
    model_config: ModelConfig,
    world: World,
    recorder: "_Recorder",
    shape: tuple[int, int],
    n_micro: int,
    settings: ParallelSettings,
) -> dict[str, float]:
    """Runs one step, so that there is optimizer state, and records a second one. Returns its peak memory by kind."""
    model = build_sharded_model(model_config, world, activation_checkpointing=settings.activation_checkpointing)
    # Kernels of GPUs drop weights of attention without storing them, so they are not part of the estimate.
    model.set_dropout(config.dropout, 0.0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=CPU)
        model.tie_weights()
        optimizers = OptimizerGroup(model, config.optimizer)
        ids = torch.zeros(shape, dtype=torch.long)
        micro = (ids, ids, torch.ones(shape), ids if config.packing == "packed" else None)

        tracker: MemTracker | None = None

        def loss_fn(
            ids: Tensor, targets: Tensor, loss_weights: Tensor, document_ids: Tensor | None, *, with_z_loss: bool
        ) -> Losses:
            if tracker is not None:
                tracker.reset_mod_stats()  # it would report the second forward pass of a module as an error
            recorder.begin(FORWARD)
            return model.loss(ids, targets, loss_weights, document_ids, with_z_loss=with_z_loss)

        def step(n_micro: int) -> None:
            forward_backward(loss_fn, [micro] * n_micro, z_loss=config.z_loss, scale=1.0, world=world)
            recorder.begin(UPDATE)
            total_grad_norm(model, world)
            scale_grads(model, 1.0)
            optimizers.step(0, 1)

        step(1)
        recorder.phases.clear()
        optimizer_state = list(optimizers.state_dict().values())
        if world.mesh is None:
            tracker = MemTracker()
            tracker.track_external(model, *optimizer_state)
        else:
            tracker = FSDPMemTracker(model)
            tracker.track_inputs(tuple(optimizer_state))
        with tracker, recorder:
            step(n_micro)
        return _by_kind(next(iter(tracker.get_tracker_snapshot("peak").values())))


# The trackers' names. Optimizer state is registered as inputs or others; every other kind counts as activations.
_KIND_OF = {
    "Sharded Param": "weights",
    "Unsharded Param": "weights",
    "Parameter": "weights",
    "All Gather": "weights",
    "Sharded Grad": "gradients",
    "Unsharded Grad": "gradients",
    "Gradient": "gradients",
    "Reduce Scatter": "gradients",
    "Inputs": "optimizer_state",
    "Other": "optimizer_state",
}


def _by_kind(snapshot: dict[Any, int]) -> dict[str, float]:
    """The snapshot of a tracker by `KINDS`."""
    found = dict.fromkeys(KINDS, 0.0)
    for kind, n_bytes in snapshot.items():
        name = getattr(kind, "value", kind)
        if name != "Total":
            found[_KIND_OF.get(name, "activations")] += n_bytes
    return found


def _seconds(phase: Phase, accelerator: Accelerator, settings: ParallelSettings, n_layers: int) -> tuple[float, float]:
    """Seconds of compute, and seconds of communication that compute does not hide.

    Data-parallel collectives overlap with the compute of other layers, except for the first and the last layer.
    Tensor-parallel collectives do not overlap, and neither do those of the update.
    """
    bandwidth = accelerator.memory_bandwidth * BANDWIDTH_EFFICIENCY
    left = FUSED_TRAFFIC_FRACTION if settings.compile and phase.name != UPDATE else 1.0
    compute = phase.product_seconds + left * phase.other_bytes / bandwidth
    over = {DATA: 0.0, TENSOR: 0.0}
    for (what, axis), (count, n_bytes) in phase.collectives.items():
        over[axis] += _collective_seconds(what, axis, count, n_bytes, accelerator, settings)
    if phase.name == UPDATE:
        return compute, over[DATA] + over[TENSOR]
    return compute, max(over[DATA] - compute, over[DATA] / n_layers) + over[TENSOR]


def _collective_seconds(
    what: str, axis: str, count: float, n_bytes: float, accelerator: Accelerator, settings: ParallelSettings
) -> float:
    """Ring algorithm: all bytes but a rank's own pass its slowest link, twice in an all-reduce."""
    n = settings.tensor_parallel if axis == TENSOR else settings.n_ranks // settings.tensor_parallel
    reach = settings.tensor_parallel if axis == TENSOR else settings.n_ranks
    bandwidth = accelerator.link_bandwidth
    if reach > accelerator.node_size:
        # Groups that share the network of a node: one per tensor-parallel rank; in an all-to-all, every rank sends.
        sharing = 1 if axis == TENSOR else min(settings.tensor_parallel, accelerator.node_size)
        sharing = accelerator.node_size if what == "all_to_all" else sharing
        bandwidth = min(bandwidth, accelerator.node_network / sharing)
    passes = 2 if what == "all_reduce" else 1
    return passes * (
        n_bytes * (n - 1) / n / (bandwidth * BANDWIDTH_EFFICIENCY) + count * (n - 1) * LINK_LATENCY_SECONDS
    )


# Operators that PyTorch's FLOP counter does not know, and those that have the same FLOPs.
_SAME_OPERATIONS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.codekiln.document_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: torch.ops.codekiln.document_attention_backward,
}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts FLOPs, bytes moved outside of matrix products, and collectives, by micro-batch and phase."""

    def __init__(self, accelerator: Accelerator, world: World) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._accelerator = accelerator
        self._tensor_group = None if world.mesh is None else world.mesh[TENSOR].get_group().group_name
        self._fake_mode: Any = None
        self.phases: list[Phase] = []

    def __enter__(self) -> Self:
        self._fake_mode = active_fake_mode()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local tensors are dispatched next
        found = func(*args, **(kwargs or {}))
        # DTensor propagates shapes in a fake mode of its own, where nothing is computed.
        if active_fake_mode() is self._fake_mode:
            self._count(func, args, kwargs or {}, found)
        return found

    def begin(self, phase: str) -> None:
        """Starts a phase: the forward pass of a micro-batch, which its backward pass follows, or the update."""
        self.phases.append(Phase(phase))

    def _phase(self) -> Phase:
        if not self.phases:
            return Phase(FORWARD)  # a few scalars before the first micro-batch
        if self.phases[-1].name == FORWARD and torch._C._current_graph_task_id() != -1:
            self.phases.append(Phase(BACKWARD))
        return self.phases[-1]

    def _count(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        space, _, name = func._overloadpacket._qualified_op_name.partition("::")
        moved = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        if space in ("c10d", "_c10d_functional"):
            self._count_collective(name, max((t.nbytes for t in moved), default=0), args)
        if space not in ("aten", "codekiln") or func.is_view or name in _FREE:
            return
        phase, n_bytes = self._phase(), sum(t.nbytes for t in moved)
        formula = flop_registry.get(_SAME_OPERATIONS.get(func._overloadpacket, func._overloadpacket))
        if formula is not None:
            flops = float(formula(*args, **kwargs, out_val=found))
        else:
            phase.other_bytes += n_bytes
            return
        phase.flops += flops
        accelerator = self._accelerator
        phase.product_seconds += max(
            flops / (accelerator.peak * accelerator.matmul_efficiency),
            n_bytes / (accelerator.memory_bandwidth * BANDWIDTH_EFFICIENCY),
        )

    def _count_collective(self, name: str, n_bytes: int, args: Any) -> None:
        kind = next((kind for kind in _COLLECTIVES if kind in name.replace("_", "")), None)
        if kind is None:
            return
        axis = TENSOR if any(isinstance(a, str) and a == self._tensor_group for a in args) else DATA
        entry = self._phase().collectives.setdefault((_COLLECTIVES[kind], axis), [0.0, 0.0])
        entry[0] += 1
        entry[1] += n_bytes


_COLLECTIVES = {
    "alltoall": "all_to_all",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "allreduce": "all_reduce",
}
