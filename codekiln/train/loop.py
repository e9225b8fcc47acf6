"""The training loop: batches in, weights, checkpoints and metrics out. B row, T position, V vocabulary."""

import math
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from codekiln.files import JsonObject
from codekiln.model.configs import ModelConfig
from codekiln.model.huggingface import CheckpointReader, read_config
from codekiln.model.transformer import Transformer, init_weights
from codekiln.progress import progress_bar, sparkline
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.checkpoint import Checkpointer, checkpoint_state_dict, list_checkpoints
from codekiln.train.compile_cache import use_private_compile_cache
from codekiln.train.loader import MIN_CHUNK_TOKENS, Batch, BatchLoader, Packing, target_bytes
from codekiln.train.lora import LoraConfig, inject_lora
from codekiln.train.metrics import MetricSink, MetricsLog, bits_per_byte, measure_peak_flops, read_metrics
from codekiln.train.objectives import NextToken, Objective
from codekiln.train.optimizer import MuonConfig, OptimizerConfig, OptimizerGroup
from codekiln.train.parallel import (
    SINGLE_PROCESS,
    World,
    build_sharded_model,
    copy_full_,
    local_tensor,
    reshard,
    scale_grads,
    total_grad_norm,
)
from codekiln.train.prepare import TokenShards, open_token_shards

LOSS_WINDOW = 20
MIN_NORM_HISTORY = 20  # that are needed to know what is usual
MAX_SKIPPED_IN_A_ROW = 20  # batches in a row, before training stops

MicroBatch = tuple[Tensor | None, ...]  # what `Transformer.loss_fn` takes


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on how many tokens or how many times the corpus over. A step's batch is `global_batch_size` rows of
    `context_length` tokens, or of the model's context where that is None.

    By epochs a step has no more rows than an epoch: the most below that which divide `global_batch_size`. `z_loss` weighs the square
    of the logarithm of the softmax' normalizer, which keeps logits small (CodeGen's code). A batch whose gradient is `max_grad_norm_ratio`
    times the median of the last hundred, or not finite, is left out and recorded. The last two checkpoints are kept, and those
    of steps that `keep_every` divides.
    """

    objective: Objective
    total_tokens: int = 0
    epochs: int = 0
    global_batch_size: int = 16
    context_length: int | None = None
    lora: LoraConfig | None = None
    optimizer: OptimizerConfig = MuonConfig()
    packing: Packing = "packed"
    z_loss: float = 0.0
    max_grad_norm_ratio: float = 30.0
    eval_every: int = 50
    eval_sequences: int = 64
    save_every: int = 50
    keep_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "eval_every", "eval_sequences", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        if self.keep_every < 0 or self.keep_every % self.save_every:
            raise ValueError(
                f"train.keep_every is {self.keep_every}: it must be a multiple of save_every, {self.save_every}"
            )
        if self.seed < 0:
            raise ValueError(f"train.seed is {self.seed}: it must not be negative")
        if self.max_grad_norm_ratio <= 1 or self.z_loss < 0:
            raise ValueError(
                f"train.max_grad_norm_ratio is {self.max_grad_norm_ratio}, z_loss {self.z_loss}: above 1, and not below 0, is needed"
            )
        if (self.total_tokens < 1) == (self.epochs < 1):
            raise ValueError(
                f"train.total_tokens is {self.total_tokens} and train.epochs {self.epochs}: set one of them, the other to 0"
            )
        if self.packing == "concat" and not isinstance(self.objective, NextToken):
            raise ValueError(
                f"train.packing is joined and the objective {type(self.objective).__name__}: "
                "documents that run on can be learned left to right only"
            )

    def seq_len(self, model_config: ModelConfig) -> int:
        """Tokens of a row. Raises ValueError where the model reads fewer."""
        wanted = model_config.context_length if self.context_length is None else self.context_length
        if wanted > model_config.context_length:
            raise ValueError(f"train.context_length is {wanted}: the model reads {model_config.context_length}")
        return wanted

    def sequences_per_rank(self, dp_size: int) -> int:
        """Rows of a step that one of `dp_size` ranks reads. Raises ValueError where they do not divide."""
        if self.global_batch_size % dp_size:
            raise ValueError(
                f"train.global_batch_size is {self.global_batch_size}: it does not divide over {dp_size} ranks that read different rows; "
                "set it to a multiple, or take another number of ranks"
            )
        return self.global_batch_size // dp_size

    def n_permanent_checkpoints(self, model_config: ModelConfig) -> int:
        """Checkpoints that stay beside the last two; of a plan by epochs none is foreseen."""
        n_steps = self.total_tokens // (self.global_batch_size * self.seq_len(model_config))
        return n_steps // self.keep_every if self.keep_every else 0


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how fast. `compile` None means: where a C++ compiler is found.

    `tensor_parallel` share a layer; `activation_checkpointing` computes blocks anew in the backward pass, which takes a third more time and
    keeps one layer's activations instead of all.
    """

    device: str = "cpu"
    micro_batch_tokens: int = 2048
    compile: bool | None = None
    tensor_parallel: int = 1
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"no device is called {self.device!r}: known are cpu and cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("PyTorch finds no CUDA device here: leave --device out, or install its build for CUDA")
        if self.device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"{torch.cuda.get_device_name()} has no bfloat16: training on CUDA needs an A100 or newer")


class Preempted(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), and a checkpoint was saved."""


def train(  # noqa: PLR0912, PLR0915 - one story
    config: TrainConfig,
    model_config: ModelConfig,
    *,
    tokens: Path,
    tokenizer: Tokenizer,
    run: Path,
    runtime: RuntimeConfig,
    inputs: JsonObject,
    init_from: Path | None = None,
    world: World = SINGLE_PROCESS,
    loggers: Sequence[MetricSink] = (),
) -> Transformer:
    """Trains, or goes on from the last whole checkpoint in `run`, and returns the model at its end.

    The weights begin as those of the model directory `start`, or as new ones; moments and steps begin anew in either case.
    Ctrl-C and SIGTERM save a checkpoint after the step under way and raise KeyboardInterrupt and Preempted. The same seed,
    shards and processors give the same weights to the bit, however often the run was interrupted or killed; on GPUs, and on
    another number of ranks, the same batches are read, and sums differ by rounding.
    """
    if config.lora is not None and world.world_size > 1:
        raise ValueError("LoRA learns in one process: start it without torchrun")
    context = config.seq_len(model_config)
    shards = open_token_shards(tokens, "train", (world.rank, world.world_size))
    loader = _loader(config, context, shards, tokenizer)
    if config.epochs and loader.sequences_per_epoch < config.global_batch_size:
        fewer = max(n for n in range(1, loader.sequences_per_epoch + 1) if config.global_batch_size % n == 0)
        config = replace(config, global_batch_size=fewer)
        loader = _loader(config, context, shards, tokenizer)
    config.sequences_per_rank(world.dp_size)
    model = _model(model_config, world, runtime, config, init_from)
    optimizers = OptimizerGroup(model, config.optimizer)
    checkpointer = Checkpointer(run / "checkpoints", world, inputs, keep_every=config.keep_every)
    step = _resume(run, checkpointer, model, optimizers, world)
    n_tokens = config.global_batch_size * context
    # What LoRA leaves as it is has no gradient of its own, which is a third of a step.
    flops = model_config.training_flops(context) * (1 if config.lora is None else 2 / 3)
    if config.epochs:
        n_steps = math.ceil(config.epochs * loader.sequences_per_epoch / config.global_batch_size)
    else:
        n_steps = max(1, round(config.total_tokens / n_tokens))
    if step >= n_steps:
        return model
    micro_rows = max(1, min(config.sequences_per_rank(world.dp_size), runtime.micro_batch_tokens // context))
    valid = _validation_batches(config, context, tokens, tokenizer, micro_rows, world)
    loss_fn = compile_loss(model, world, runtime)
    peak = measure_peak_flops(world.device, world.dtype)
    log = MetricsLog(run / "metrics.jsonl", step=step, loggers=loggers) if world.is_main else None
    past_norms = [row["grad_norm"] for row in read_metrics(run / "metrics.jsonl")[:step] if "skipped" not in row]
    norm_history = deque(world.broadcast_object(past_norms[-100:]), 100)
    seen_loss: list[float] = []
    valid_bits: float | None = None  # the last one found
    n_skipped_in_a_row = 0  # batches, one after the other
    with (
        closing(log) if log is not None else nullcontext(),
        progress_bar("Train", n_steps, done=step) if world.is_main else nullcontext() as progress,
        defer_signals() as signals,
        _deterministic(world.device),
        checkpointer,
        ThreadPoolExecutor(1) as prefetcher,  # makes the next batch while this one is learned
    ):
        next_batch = prefetcher.submit(loader.batch, step, world.data_part)
        while step < n_steps:
            begun = time.perf_counter()
            batch = next_batch.result()
            if step + 1 < n_steps:
                next_batch = prefetcher.submit(loader.batch, step + 1, world.data_part)
            nats, penalty = forward_backward(
                model,
                loss_fn,
                list(_micro_batches(batch, micro_rows, world.device)),
                config.z_loss,
                world.dp_size / n_tokens,
            ).tolist()
            sums = [nats, penalty, float(batch.loss_weights.sum()), float(checkpointer.is_done)]
            total_nats, total_penalty, weight, n_written, *counts = world.all_reduce_sum([*sums, *signals.counts()])
            if n_written == world.dp_size:
                checkpointer.wait()
            grad_scale = n_tokens / max(1.0, weight)
            grad_norm = float(total_grad_norm(model, world)) * grad_scale
            loss = total_nats / max(1.0, weight)
            row: JsonObject = {"step": step, "tokens": (step + 1) * n_tokens, "loss": loss, "grad_norm": grad_norm}
            if reason := _skip_reason(loss, grad_norm, norm_history, config.max_grad_norm_ratio):
                n_skipped_in_a_row += 1
                checkpointer.wait()
                _raise_if_diverged(model, world, run, reason, step, n_skipped_in_a_row)
                optimizers.zero_grad()
                row |= {
                    "skipped": reason,
                    "documents": prefetcher.submit(loader.documents, step).result(),
                    "lr_scale": 0.0,
                }
            else:
                n_skipped_in_a_row = 0
                norm_history.append(grad_norm)
                scale_grads(model, grad_scale * min(1.0, config.optimizer.max_grad_norm / (grad_norm + 1e-6)))
                row["lr_scale"] = optimizers.step(step, n_steps)
            seconds = time.perf_counter() - begun
            row |= {
                "seconds": round(seconds, 4),
                "tokens_per_second": round(n_tokens / seconds, 1),
                "matmul_efficiency": round(n_tokens / seconds * flops / (peak * world.world_size), 4),
            }
            if config.z_loss > 0:
                row["z_loss"] = total_penalty / max(1.0, weight)
            step += 1
            if step % config.eval_every == 0 or step == n_steps:
                # Other work on this machine hides the peak now and then; it is the best seen.
                peak = max(peak, measure_peak_flops(world.device, world.dtype, seconds=0.1))
                valid_bits = row["validation_bits_per_byte"] = _valid_bits_per_byte(loss_fn, valid, world)
                reshard(model)
            if log is not None and progress is not None:
                log.write(row)
                seen_loss += [loss] * ("skipped" not in row)
                progress.advance(note=_note(row, seen_loss, valid_bits))
            is_asked_to_end = sum(counts) > 0
            if step % config.save_every == 0 or step == n_steps or is_asked_to_end:
                if not _is_finite(model, world):
                    checkpointer.wait()
                    raise _diverged_error(run, f"weights are not finite after step {step - 1}")
                checkpointer.save(step, checkpoint_state_dict(_trainable_parameters(model), optimizers.state_dict()))
            if step == n_steps:
                counts = world.all_reduce_sum(signals.counts())  # what came since is not lost
            if sum(counts):
                checkpointer.wait()
                raise KeyboardInterrupt if counts[0] else Preempted
    return model


def forward_backward(
    model: Transformer, loss_fn: "LossFn", micro_batches: Sequence[MicroBatch], z_loss: float, scale: float
) -> Tensor:
    """Adds a step's gradients, micro-batch by micro-batch, and tells the sums of nats and of penalties: (2,) in float64.

    A micro-batch is what `Transformer.loss_fn` takes; over ranks its gradients are summed at once, so that none holds more
    than its share of them. Sums over rows become means by `scale`, as far as it is known.
    """
    total = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    for tensors in micro_batches:
        nats, penalty = loss_fn(*tensors, with_z_loss=z_loss > 0)
        mean_loss: Tensor = (nats + z_loss * penalty) * scale
        mean_loss.backward()  # type: ignore[no-untyped-call]
        total += torch.stack((nats, penalty)).detach().to(total)
    return total


def has_cxx_compiler() -> bool:
    """Whether torch.compile can build code for the CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _loader(config: TrainConfig, context: int, shards: TokenShards, tokenizer: Tokenizer) -> BatchLoader:
    return BatchLoader(
        shards,
        tokenizer,
        config.objective,
        context_length=context,
        rows=config.global_batch_size,
        seed=config.seed,
        packing=config.packing,
    )


def _model(
    model_config: ModelConfig, world: World, runtime: RuntimeConfig, config: TrainConfig, init_from: Path | None
) -> Transformer:
    """A model spread over the ranks, with the weights of a directory or those that one process would draw."""
    model = build_sharded_model(model_config, world, activation_checkpointing=runtime.activation_checkpointing)
    model.to_empty(device=world.device)
    model.tie_weights()
    if init_from is None:
        init_weights(model, torch.Generator().manual_seed(config.seed), copy_full_)
    else:
        layout, found = read_config(init_from)
        if found != model_config:
            raise ValueError(f"{init_from} has another shape ({found}) than the recipe ({model_config})")
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in CheckpointReader(init_from, layout, model_config).read():
                copy_full_(weights[name], tensor.to(world.device, torch.float32))
    if config.lora is not None:
        inject_lora(model, config.lora, seed=config.seed)
    return model


def _trainable_parameters(model: Transformer) -> dict[str, Tensor]:
    """The weights that training changes, by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _resume(run: Path, checkpointer: Checkpointer, model: Transformer, optimizers: OptimizerGroup, world: World) -> int:
    """The step to go on with: that of the last whole checkpoint, or 0."""
    last = world.broadcast_object(_last_checkpoint(run))
    if last is None:
        return 0
    step, optimizer_state = checkpointer.load(last, _trainable_parameters(model))
    optimizers.load_state_dict(optimizer_state)
    return step


LossFn = Callable[..., tuple[Tensor, Tensor]]


def compile_loss(model: Transformer, world: World, runtime: RuntimeConfig) -> LossFn:
    """`Transformer.loss_fn` as fast as it goes here: compiled; where the model is spread over ranks, each block and the loss.

    Compiled code is kept in the user's cache. Where no C++ compiler is found it is as it is.
    """
    loss_fn = with_autocast(model, world)
    wanted = runtime.compile if runtime.compile is not None else has_cxx_compiler()
    if not wanted:
        return loss_fn
    use_private_compile_cache()
    if world.mesh is None:
        compiled: LossFn = torch.compile(loss_fn, dynamic=False)
        return compiled
    for part in (*model.blocks, model.loss):
        part.compile(dynamic=False)
    return loss_fn


def with_autocast(model: Transformer, world: World) -> LossFn:
    """`Transformer.loss_fn` with products in the ranks' precision; of a model that is spread, its shards see to that."""
    is_cast = world.dtype != torch.float32 and world.mesh is None

    def loss_fn(
        ids: Tensor, targets: Tensor, weights: Tensor, documents: Tensor | None, *, with_z_loss: bool = False
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(world.device.type, world.dtype, enabled=is_cast):
            return model.loss_sums(ids, targets, weights, documents, with_z_loss=with_z_loss)

    return loss_fn


def _skip_reason(loss: float, norm: float, norm_history: Sequence[float], max_grad_norm_ratio: float) -> str | None:
    """What is wrong with a batch, in words; None where nothing is."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"the loss is {loss} and the gradient's norm {norm}"
    usual = (sorted(norm_history)[len(norm_history) // 2] if len(norm_history) >= MIN_NORM_HISTORY else 0.0) or math.inf
    return f"the gradient's norm is {norm:.3g}, {norm / usual:.0f} times the usual" if norm > max_grad_norm_ratio * usual else None


def _raise_if_diverged(
    model: Transformer, world: World, run: Path, reason: str, step: int, n_skipped_in_a_row: int
) -> None:
    """Raises ValueError where a weight is not finite, or too many batches in a row were bad: no other will be good."""
    if not _is_finite(model, world):
        raise _diverged_error(run, f"{reason} at step {step}, and weights are not finite")
    if n_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise _diverged_error(run, f"{reason} at step {step}, and {n_skipped_in_a_row} batches in a row were bad")


def _is_finite(model: Transformer, world: World) -> bool:
    """Whether all weights are, on all ranks."""
    is_bad = any(not bool(torch.isfinite(local_tensor(weight)).all()) for weight in model.parameters())
    return not world.all_reduce_sum([float(is_bad)])[0]


def _diverged_error(run: Path, why: str) -> ValueError:
    """The error that ends a run which learns nothing more."""
    return ValueError(
        f"{why}: lower the learning rate and start from another --out; "
        f"the last whole checkpoint is {_last_checkpoint(run) or 'none'}"
    )


def _last_checkpoint(run: Path) -> Path | None:
    return next(iter(list_checkpoints(run / "checkpoints")[-1:]), None)


def _validation_batches(
    config: TrainConfig, context: int, tokens: Path, tokenizer: Tokenizer, rows: int, world: World
) -> list[Batch]:
    """The same rows at every validation, left to right, this rank's of them; none where nothing held out fills one.

    The first `config.eval_sequences` of an epoch, whatever the ranks and `rows`; what fills the last batches has no weight.
    """
    shards = open_token_shards(tokens, "heldout", (world.rank, world.world_size))
    if not shards.n_documents or shards.lengths().max() < MIN_CHUNK_TOKENS:
        return []
    at_once = rows * world.dp_size
    loader = BatchLoader(shards, tokenizer, NextToken(), context_length=context, rows=at_once, seed=config.seed)
    n_rows = min(config.eval_sequences, loader.sequences_per_epoch)
    batches = []
    for step in range(-(-n_rows // at_once)):
        batch = loader.batch(step, world.data_part)
        first = step * at_once + world.dp_rank * rows
        batch.loss_weights[max(0, n_rows - first) :] = 0
        batches.append(replace(batch, n_bytes=target_bytes(tokenizer, batch.targets, batch.loss_weights)))
    return batches


def _valid_bits_per_byte(loss_fn: LossFn, batches: list[Batch], world: World) -> float | None:
    if not batches:
        return None
    with torch.no_grad():
        nats = sum(float(loss_fn(*_tensors(batch, world.device))[0]) for batch in batches)
    return bits_per_byte(*world.all_reduce_sum([nats, sum(batch.n_bytes for batch in batches)]))


def _micro_batches(batch: Batch, rows: int, device: torch.device) -> Iterator[MicroBatch]:
    whole = _tensors(batch, device)
    for start in range(0, len(batch.ids), rows):
        yield tuple(tensor if tensor is None else tensor[start : start + rows] for tensor in whole)


def _tensors(batch: Batch, device: torch.device) -> MicroBatch:
    """What `Transformer.loss_fn` takes of a batch."""
    arrays = (batch.ids, batch.targets, batch.loss_weights, batch.document_ids)
    return tuple(array if array is None else torch.from_numpy(array).to(device) for array in arrays)


class SignalCounts:
    """How often Ctrl-C and SIGTERM came."""

    def __init__(self) -> None:
        self.seen = {signal.SIGINT: 0, signal.SIGTERM: 0}

    def counts(self) -> list[float]:
        return [float(count) for count in self.seen.values()]

    def note(self, number: int, frame: FrameType | None) -> None:
        kind = signal.Signals(number)
        self.seen[kind] += 1
        if kind == signal.SIGINT and self.seen[kind] > 1:
            raise KeyboardInterrupt


@contextmanager
def defer_signals() -> Iterator[SignalCounts]:
    """Within the block the first Ctrl-C and any SIGTERM are only noted; a second Ctrl-C interrupts at once."""
    signals = SignalCounts()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.note) for number in signals.seen}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Within the block compiled code adds in a fixed order on CPUs; an embedding's gradient is else a race of threads.

    Memory is not filled before it is written, which PyTorch does then to betray what reads it.
    """
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(before[0] or device.type == "cpu")
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]


def _note(row: JsonObject, losses: list[float], valid: float | None) -> str:
    recent = losses[-LOSS_WINDOW:] or [math.nan]
    parts = [f"loss {sum(recent) / len(recent):.3f}", sparkline(losses), f"norm {row['grad_norm']:.2f}"]
    parts += [f"{row['tokens_per_second']:,.0f} tokens/s", f"{row['matmul_efficiency']:.0%} of peak"]
    parts += ["batch left out"] if "skipped" in row else []
    return "  ".join(parts + ([f"valid {valid:.3f} bits/byte"] if valid is not None else []))
