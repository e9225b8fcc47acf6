"""A training step planned: the real step on fake tensors and a fake world, its memory, traffic and time on accelerators.

What runs is the code that trains, on tensors without data and a process group of any size that sends nothing. Memory is that
of PyTorch's own tracker. Time is a model, told in `Accelerator` and the numbers below it; its error against real
runs and published ones is measured by benchmarks/plan_errors.py.
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
from codekiln.train.loop import TrainConfig, forward_backward, with_autocast
from codekiln.train.optimizer import OptimizerGroup
from codekiln.train.parallel import CPU, World, build_sharded_model, dp_size_of, scale_grads, total_grad_norm


@dataclass(frozen=True)
class Accelerator:
    """One device, by its data sheet: dense FLOP/s in the precision that training uses there, bytes, bytes a second one way.

    `matmul_efficiency` is what matrix products reach of the peak over a long time, set by the published runs that
    benchmarks/plan_errors.py names. `node_network` is what a node of `node_size` devices sends to others; `price` is dollars
    an hour, assumed. Training runs as it is planned where `is_supported`: on CUDA devices that have bfloat16.
    """

    peak: float
    matmul_efficiency: float
    dtype: torch.dtype
    memory: float
    memory_bandwidth: float
    node_size: int
    link_bandwidth: float
    node_network: float
    price: float
    is_supported: bool = True


ACCELERATORS = {
    "h100": Accelerator(989e12, 0.53, torch.bfloat16, 80e9, 3.35e12, 8, 450e9, 400e9, 3.0),
    "a100": Accelerator(312e12, 0.7, torch.bfloat16, 80e9, 2.04e12, 8, 300e9, 200e9, 1.8),
    # It has no bfloat16, and training here knows no other short format.
    "v100": Accelerator(15.7e12, 0.8, torch.float32, 32e9, 0.9e12, 8, 150e9, 50e9, 0.9, is_supported=False),
    # Links of a torus instead of nodes.
    "tpu-v4-like": Accelerator(275e12, 0.7, torch.bfloat16, 32e9, 1.2e12, 4096, 270e9, 270e9, 3.2, is_supported=False),
}

BANDWIDTH_EFFICIENCY = 0.8  # of a bandwidth, that traffic reaches
FUSED_TRAFFIC_FRACTION = 0.4  # of the traffic between products, that is left where blocks are compiled
LINK_LATENCY_SECONDS = 2e-6  # of a collective, for each rank it passes
RESERVED_BYTES = 4e9  # of a device: its context, buffers of collectives
FRAGMENTATION = 0.06  # of what is held, that lies unused between

DATA, TENSOR = "data", "tensor"
FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
KINDS = ("weights", "gradients", "moments", "activations")


@dataclass
class Phase:
    """What a rank does in one part of a step. Collectives are [count, bytes] by what they are and whom they are with."""

    name: str
    flops: float = 0.0
    product_seconds: float = 0.0
    other_bytes: float = 0.0
    collectives: dict[tuple[str, str], list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ParallelSettings:
    """How a step is run: rows that go through the model at once, and the rest as in `RuntimeConfig`."""

    n_ranks: int
    micro_rows: int
    tensor_parallel: int = 1
    activation_checkpointing: bool = False
    compile: bool = True


@dataclass(frozen=True)
class StepEstimate:
    """Bytes by kind at the moment of the peak, FLOPs and collectives of a rank, and seconds of the whole step."""

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
        """Of the peak, by the model's own operations: what is computed twice counts once."""
        return self.model_flops / self.seconds / accelerator.peak


def _usable_bytes(accelerator: Accelerator) -> float:
    """Bytes that tensors can take."""
    return (accelerator.memory - RESERVED_BYTES) / (1 + FRAGMENTATION)


def estimate_step(
    config: TrainConfig, model_config: ModelConfig, accelerator: Accelerator, settings: ParallelSettings
) -> StepEstimate:
    """Runs a step as the first of `n_ranks` ranks would. Raises ValueError where rows or layers do not divide over them."""
    rows = config.sequences_per_rank(dp_size_of(settings.n_ranks, settings.tensor_parallel))
    context = config.seq_len(model_config)
    micro_rows = min(settings.micro_rows, rows)
    n_micro = -(-rows // micro_rows)
    with fake_process_group(settings, accelerator.dtype) as world:
        recorder = _Recorder(accelerator, world)
        memory = _record(config, model_config, world, recorder, (micro_rows, context), min(n_micro, 2), settings)
    phases = recorder.phases
    seconds = [_seconds(phase, accelerator, settings, model_config.n_layers) for phase in phases]
    # Two micro-batches were recorded, forward and backward, and the update; all but the first are as the second is.
    times = [1, 1, n_micro - 1, n_micro - 1, 1] if n_micro > 1 else [1, 1, 1]
    collectives: dict[tuple[str, str], list[float]] = {}
    for n, phase in zip(times, phases, strict=True):
        for what, (count, n_bytes) in phase.collectives.items():
            total = collectives.setdefault(what, [0.0, 0.0])
            total[0] += n * count
            total[1] += n * n_bytes
    tokens = config.global_batch_size * context
    return StepEstimate(
        settings,
        memory,
        sum(n * phase.flops for n, phase in zip(times, phases, strict=True)),
        tokens * model_config.training_flops(context) / settings.n_ranks,
        collectives,
        sum(n * compute for n, (compute, _) in zip(times, seconds, strict=True)),
        sum(n * exposed for n, (_, exposed) in zip(times, seconds, strict=True)),
        tokens,
    )


def search_settings(
    config: TrainConfig, model_config: ModelConfig, accelerator: Accelerator, n_ranks: int, tensor_parallel: int
) -> Iterator[StepEstimate]:
    """Steps with and without activations computed anew, with micro-batches of the two smallest sizes that divide a rank's
    rows, and of the largest that fits.

    Memory grows by the same with every row, or more; how many fit is told from the first two and run to be sure. Raises
    ValueError where rows or layers do not divide over the ranks.
    """
    rows = config.sequences_per_rank(dp_size_of(n_ranks, tensor_parallel))
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    for activation_checkpointing in (False, True):

        def run(size: int, activation_checkpointing: bool = activation_checkpointing) -> StepEstimate:
            return estimate_step(
                config,
                model_config,
                accelerator,
                ParallelSettings(n_ranks, size, tensor_parallel, activation_checkpointing),
            )

        seen = []
        for size in sizes[:2]:
            seen.append(run(size))
            yield seen[-1]
        if len(seen) < 2:
            continue
        first, second = (step.peak_bytes for step in seen)
        a_row = (second - first) / (sizes[1] - 1)
        for size in reversed(sizes[2:]):
            if first + (size - 1) * a_row <= _usable_bytes(accelerator):
                step = run(size)
                yield step
                if step.fits(accelerator):
                    break


@contextmanager
def fake_process_group(settings: ParallelSettings, dtype: torch.dtype) -> Iterator[World]:
    """A world that sends nothing, in which this process is the first rank."""
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
    """Runs a step to have moments, then one that is recorded; its peak of memory by kind."""
    model = build_sharded_model(model_config, world, activation_checkpointing=settings.activation_checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device=CPU)
        model.tie_weights()
        optimizers = OptimizerGroup(model, config.optimizer)
        ids = torch.zeros(shape, dtype=torch.long)
        micro = (ids, ids, torch.ones(shape), ids if config.packing == "packed" else None)

        plain = with_autocast(model, world)
        tracker: MemTracker | None = None

        def loss_fn(*tensors: Tensor | None, with_z_loss: bool = False) -> tuple[Tensor, Tensor]:
            if tracker is not None:
                tracker.reset_mod_stats()  # it takes a module's second forward pass for a fault
            recorder.begin(FORWARD)
            return plain(*tensors, with_z_loss=with_z_loss)

        def step(n_micro: int) -> None:
            forward_backward(model, loss_fn, [micro] * n_micro, config.z_loss, 1.0)
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


# As the trackers call them; moments are told to them as inputs and others. What is none of these is activations.
_KIND_OF = {
    "Sharded Param": "weights",
    "Unsharded Param": "weights",
    "Parameter": "weights",
    "All Gather": "weights",
    "Sharded Grad": "gradients",
    "Unsharded Grad": "gradients",
    "Gradient": "gradients",
    "Reduce Scatter": "gradients",
    "Inputs": "moments",
    "Other": "moments",
}


def _by_kind(snapshot: dict[Any, int]) -> dict[str, float]:
    """A tracker's snapshot by our kinds."""
    found = dict.fromkeys(KINDS, 0.0)
    for kind, n_bytes in snapshot.items():
        name = getattr(kind, "value", kind)
        if name != "Total":
            found[_KIND_OF.get(name, "activations")] += n_bytes
    return found


def _seconds(phase: Phase, accelerator: Accelerator, settings: ParallelSettings, n_layers: int) -> tuple[float, float]:
    """Seconds of computing, and those of collectives that nothing hides.

    Over `data` layers are gathered and scattered while others compute, but the first and the last; over `tensor` a layer
    waits, and so does everything in the update.
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
    """A ring's: every byte but a rank's own passes its slowest link, twice where sums are sent to all."""
    n = settings.tensor_parallel if axis == TENSOR else settings.n_ranks // settings.tensor_parallel
    reach = settings.tensor_parallel if axis == TENSOR else settings.n_ranks
    bandwidth = accelerator.link_bandwidth
    if reach > accelerator.node_size:
        # As many groups share a node's network as it has ranks of one layer; where each rank sends what is its own, all do.
        sharing = 1 if axis == TENSOR else min(settings.tensor_parallel, accelerator.node_size)
        sharing = accelerator.node_size if what == "all_to_all" else sharing
        bandwidth = min(bandwidth, accelerator.node_network / sharing)
    passes = 2 if what == "all_reduce" else 1
    return passes * (
        n_bytes * (n - 1) / n / (bandwidth * BANDWIDTH_EFFICIENCY) + count * (n - 1) * LINK_LATENCY_SECONDS
    )


# Attention of rows that are one document, which PyTorch's counter does not know.
_SAME_OPERATIONS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.codekiln.document_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: torch.ops.codekiln.document_attention_backward,
}
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh"}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what passes: operations, bytes moved outside of matrix products, collectives; by micro-batch and phase."""

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
            return NotImplemented  # its parts pass one by one
        found = func(*args, **(kwargs or {}))
        # Spread tensors find their shapes in a mode of their own, and nothing is computed there.
        if active_fake_mode() is self._fake_mode:
            self._count(func, args, kwargs or {}, found)
        return found

    def begin(self, phase: str) -> None:
        """What passes from here on is a micro-batch's forward pass, and then its backward pass, or the update."""
        self.phases.append(Phase(phase))

    def _phase(self) -> Phase:
        if not self.phases:
            return Phase(FORWARD)  # of a few numbers before the first micro-batch
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
