"""The training loop: batches in; weights, checkpoints and metrics out. B sequence, T position, V vocabulary."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codekiln.errors import ConfigError, DivergedError
from codekiln.files import JsonObject
from codekiln.machine import find_cxx_compiler
from codekiln.metrics_log import LOSS_WINDOW, METRICS_FILE, MetricSink, MetricsLog, MetricsRow, bits_per_byte
from codekiln.model.configs import ModelConfig
from codekiln.model.huggingface import CheckpointReader, read_config
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Losses, Transformer
from codekiln.model.varlen_attention import find_document_offsets
from codekiln.progress import progress_bar, sparkline
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.checkpoint import Checkpointer, checkpoint_state_dict, list_checkpoints
from codekiln.train.compile_cache import use_private_compile_cache
from codekiln.train.config import RuntimeConfig, TrainConfig
from codekiln.train.flops import measure_peak_flops
from codekiln.train.loader import MIN_CHUNK_TOKENS, Batch, BatchLoader, target_bytes
from codekiln.train.lora import inject_lora
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import OptimizerGroup
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
from codekiln.train.signals import Preempted, SignalCounts, defer_signals

MIN_NORM_HISTORY = 20  # gradient norms before a median is trusted
NORM_HISTORY = 100  # steps whose gradient norms are remembered
MAX_SKIPPED_IN_A_ROW = 20  # steps, before training stops

MicroBatch = tuple[Tensor | None, ...]  # the arguments of `Transformer.loss`
LossFn = Callable[..., Losses]


def train(
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
    sinks: Sequence[MetricSink] = (),
) -> Transformer:
    """Trains, or resumes from the last complete checkpoint in `run`, and returns the model after the last step.

    Weights start as those of the model directory `init_from`, or as random ones. `inputs` identifies what the run is made
    from; a checkpoint with other inputs is refused. Ctrl-C and SIGTERM save a checkpoint after the current step and raise
    KeyboardInterrupt and Preempted. On one machine, the same seed and shards give bit-identical weights, no matter how
    often the run was interrupted or killed. On GPUs and on another number of ranks the batches are the same, and sums
    differ by rounding. What dropout drops depends on the number of ranks and on the micro-batch size. Raises
    DivergedError if training cannot continue.
    """
    setup = _prepare(config, model_config, tokens, tokenizer, run, runtime, inputs, init_from, world)
    config, model, loader, optimizers = setup.config, setup.model, setup.loader, setup.optimizers
    checkpointer, step, n_steps, n_tokens = setup.checkpointer, setup.step, setup.n_steps, setup.batch_tokens
    if step >= n_steps:
        return model
    loss_fn = compile_loss(model, world, runtime)
    peak_flops = measure_peak_flops(world.device, world.dtype)
    log = MetricsLog(run / METRICS_FILE, step=step, sinks=sinks) if world.is_main else None
    losses: list[float] = []  # of steps that were not skipped
    validation: float | None = None  # the newest bits per byte
    with (
        closing(log) if log is not None else nullcontext(),
        progress_bar("Train", n_steps, done=step) if world.is_main else nullcontext() as progress,
        defer_signals() as signals,
        _deterministic(world.device),
        checkpointer,
        ThreadPoolExecutor(1) as prefetcher,  # prepares the next batch during the current step
    ):
        next_batch = prefetcher.submit(loader.batch, step, world.dp_rank, world.dp_size)
        while step < n_steps:
            start = time.perf_counter()
            batch = next_batch.result()
            if step + 1 < n_steps:
                next_batch = prefetcher.submit(loader.batch, step + 1, world.dp_rank, world.dp_size)
            micro_batches = list(micro_batches_of(batch, setup.micro_batch_size, world.device))
            if config.dropout > 0 or config.attention_dropout > 0:
                torch.manual_seed(_dropout_seed(config.seed, step, world.dp_rank))
            losses_sum = forward_backward(
                loss_fn, micro_batches, z_loss=config.z_loss, scale=world.dp_size / n_tokens, world=world
            )
            sums = _all_reduce(world, losses_sum, batch, checkpointer, signals)
            if sums.n_saved == world.dp_size:  # all ranks have written their part of a checkpoint
                checkpointer.wait()
            # Gradients were divided by the nominal number of tokens; the exact loss weight of the batch is known now.
            grad_scale = n_tokens / max(1.0, sums.loss_weight)
            grad_norm = float(total_grad_norm(model, world)) * grad_scale
            loss = sums.nats / max(1.0, sums.loss_weight)
            skip_reason = find_skip_reason(loss, grad_norm, setup.norm_history, config.max_grad_norm_ratio)
            lr_scale = 0.0
            if skip_reason is None:
                setup.n_skipped_in_a_row = 0
                setup.norm_history.append(grad_norm)
                clip = min(1.0, config.optimizer.max_grad_norm / (grad_norm + 1e-6))
                scale_grads(model, grad_scale * clip)
                lr_scale = optimizers.step(step, n_steps)
                losses.append(loss)
            else:
                setup.n_skipped_in_a_row += 1
                checkpointer.wait()
                _raise_if_diverged(model, world, run, skip_reason, step, setup.n_skipped_in_a_row)
                optimizers.zero_grad()
            seconds = time.perf_counter() - start
            row: MetricsRow = {
                "step": step,
                "tokens": (step + 1) * n_tokens,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": config.optimizer.peak_lr * lr_scale,
                "lr_scale": lr_scale,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(n_tokens / seconds, 1),
                "matmul_efficiency": round(
                    n_tokens / seconds * setup.flops_per_token / (peak_flops * world.world_size), 4
                ),
            }
            if skip_reason is not None:
                row["skipped"] = skip_reason
                row["documents"] = prefetcher.submit(loader.documents, step).result()
            if config.z_loss > 0:
                row["z_loss"] = sums.z_loss / max(1.0, sums.loss_weight)
            step += 1
            if step % config.eval_every == 0 or step == n_steps:
                # Other work on this machine may have hidden the peak: the best measurement counts.
                peak_flops = max(peak_flops, measure_peak_flops(world.device, world.dtype, seconds=0.1))
                model.eval()
                validation = row["validation_bits_per_byte"] = _validate(loss_fn, setup.validation_batches, world)
                model.train()
                reshard(model)
            if log is not None and progress is not None:
                log.write(row)
                progress.advance(note=_format_note(row, losses, validation))
            must_stop = sums.n_interrupts + sums.n_terminations > 0
            if step % config.save_every == 0 or step == n_steps or must_stop:
                if not _is_finite(model, world):
                    checkpointer.wait()
                    raise _diverged_error(run, f"weights are not finite after step {step - 1}")
                tensors = checkpoint_state_dict(_trainable_parameters(model), optimizers.state_dict())
                checkpointer.save(step, tensors, setup.training_state())
            interrupts, terminations = sums.n_interrupts, sums.n_terminations
            if step == n_steps:
                interrupts, terminations = world.all_reduce_sum(signals.counts())  # received during the last step
            if interrupts + terminations > 0:
                checkpointer.wait()
                raise KeyboardInterrupt if interrupts else Preempted
    return model


def forward_backward(
    loss_fn: LossFn, micro_batches: Sequence[MicroBatch], *, z_loss: float, scale: float, world: World
) -> Tensor:
    """Accumulates the gradients of a step over its micro-batches. Returns the sums of nats and of z-losses, (2,) float64.

    `scale` divides the summed loss by the nominal number of tokens; the exact weight is applied before the update. With
    several ranks, FSDP reduce-scatters the gradients after every micro-batch, so no rank holds more than its shard.
    """
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    for micro_batch in micro_batches:
        with world.autocast():
            losses = loss_fn(*micro_batch, with_z_loss=z_loss > 0)
        mean_loss: Tensor = (losses.nats + z_loss * losses.z_loss) * scale
        mean_loss.backward()  # type: ignore[no-untyped-call]
        total += torch.stack((losses.nats, losses.z_loss)).detach().to(total)
    return total


def _dropout_seed(seed: int, step: int, dp_rank: int) -> int:
    """The seed of what a data-parallel rank drops in a step, so that a resumed run drops the same."""
    return int(np.random.SeedSequence((seed, step, dp_rank)).generate_state(1)[0])


def compile_loss(model: Transformer, world: World, runtime: RuntimeConfig) -> LossFn:
    """`model.loss`, compiled as a whole in one process, or block by block where the model is sharded over ranks."""
    wanted = runtime.compile if runtime.compile is not None else has_cxx_compiler()
    if not wanted:
        return model.loss
    use_private_compile_cache()
    if world.mesh is None:
        compiled: LossFn = torch.compile(model.loss, dynamic=False)
        return compiled
    for part in (*model.blocks, model.cross_entropy):
        part.compile(dynamic=False)
    return model.loss


def has_cxx_compiler() -> bool:
    """Whether torch.compile can build code for this CPU."""
    return find_cxx_compiler() is not None


def find_skip_reason(loss: float, norm: float, norm_history: Sequence[float], max_ratio: float) -> str | None:
    """Why a step must be skipped: its loss or gradient is not finite, or its gradient is far larger than usual."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"the loss is {loss} and the gradient norm is {norm}"
    if len(norm_history) < MIN_NORM_HISTORY:
        return None
    median = sorted(norm_history)[len(norm_history) // 2] or math.inf
    return (
        f"the gradient norm is {norm:.3g}, {norm / median:.0f} times the median" if norm > max_ratio * median else None
    )


@dataclass
class _Setup:
    """Everything that a run needs before its first step. `norm_history` and `n_skipped_in_a_row` change with each step."""

    config: TrainConfig
    model: Transformer
    loader: BatchLoader
    optimizers: OptimizerGroup
    checkpointer: Checkpointer
    validation_batches: list[Batch]
    step: int  # the next one
    n_steps: int
    batch_tokens: int
    micro_batch_size: int  # sequences
    flops_per_token: float
    norm_history: deque[float]
    n_skipped_in_a_row: int

    def training_state(self) -> JsonObject:
        """What decides later steps and is neither a weight nor optimizer state."""
        return {"norm_history": list(self.norm_history), "n_skipped_in_a_row": self.n_skipped_in_a_row}


def _prepare(
    config: TrainConfig,
    model_config: ModelConfig,
    tokens: Path,
    tokenizer: Tokenizer,
    run: Path,
    runtime: RuntimeConfig,
    inputs: JsonObject,
    init_from: Path | None,
    world: World,
) -> _Setup:
    if config.lora is not None and world.world_size > 1:
        raise ConfigError("LoRA runs in one process only: start it without torchrun")
    context = config.seq_len(model_config)
    shards = open_token_shards(tokens, "train", rank=world.rank, world_size=world.world_size)
    loader = _build_loader(config, context, shards, tokenizer)
    if config.epochs and loader.sequences_per_epoch < config.global_batch_size:
        divisors = (n for n in range(1, loader.sequences_per_epoch + 1) if config.global_batch_size % n == 0)
        config = replace(config, global_batch_size=max(divisors))
        loader = _build_loader(config, context, shards, tokenizer)
    sequences_per_rank = config.sequences_per_rank(world.dp_size)
    model = _build_model(model_config, world, runtime, config, init_from)
    optimizers = OptimizerGroup(model, config.optimizer)
    checkpointer = Checkpointer(run / "checkpoints", world, inputs, keep_every=config.keep_every)
    step, training_state = _resume(run, checkpointer, model, optimizers, world)
    batch_tokens = config.global_batch_size * context
    if config.epochs:
        n_steps = math.ceil(config.epochs * loader.sequences_per_epoch / config.global_batch_size)
    else:
        n_steps = max(1, round(config.total_tokens / batch_tokens))
    micro_batch_size = micro_batch_sequences(sequences_per_rank, context, runtime)
    return _Setup(
        config=config,
        model=model,
        loader=loader,
        optimizers=optimizers,
        checkpointer=checkpointer,
        validation_batches=_validation_batches(config, context, tokens, tokenizer, micro_batch_size, world),
        step=step,
        n_steps=n_steps,
        batch_tokens=batch_tokens,
        micro_batch_size=micro_batch_size,
        # Frozen weights have no gradient of their own, which is a third of a step.
        flops_per_token=model_config.training_flops(context) * (1 if config.lora is None else 2 / 3),
        norm_history=deque(training_state.get("norm_history", []), NORM_HISTORY),
        n_skipped_in_a_row=training_state.get("n_skipped_in_a_row", 0),
    )


def micro_batch_sequences(sequences_per_rank: int, context: int, runtime: RuntimeConfig) -> int:
    """Sequences that a rank processes at once."""
    return max(1, min(sequences_per_rank, runtime.micro_batch_tokens // context))


def _build_loader(config: TrainConfig, context: int, shards: TokenShards, tokenizer: Tokenizer) -> BatchLoader:
    return BatchLoader(
        shards,
        tokenizer,
        config.objective,
        context_length=context,
        batch_size=config.global_batch_size,
        seed=config.seed,
        packing=config.packing,
    )


def _build_model(
    model_config: ModelConfig, world: World, runtime: RuntimeConfig, config: TrainConfig, init_from: Path | None
) -> Transformer:
    """A model sharded over the ranks, with the weights of a model directory or those that one process would draw."""
    model = build_sharded_model(model_config, world, activation_checkpointing=runtime.activation_checkpointing)
    model.to_empty(device=world.device)
    model.tie_weights()
    model.set_dropout(config.dropout, config.attention_dropout)
    if init_from is None:
        generator = torch.Generator().manual_seed(config.seed)
        init_weights(model, generator, copy_full_, initialization=config.initialization)
    else:
        architecture, found = read_config(init_from)
        if found != model_config:
            raise ConfigError(f"the model in {init_from} has another shape ({found}) than the recipe ({model_config})")
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in CheckpointReader(init_from, architecture, model_config).read():
                copy_full_(weights[name], tensor.to(world.device, torch.float32))
    if config.lora is not None:
        inject_lora(model, config.lora, seed=config.seed)
    return model


def _resume(
    run: Path, checkpointer: Checkpointer, model: Transformer, optimizers: OptimizerGroup, world: World
) -> tuple[int, JsonObject]:
    """Loads the last complete checkpoint. Returns the next step and the training state; 0 and nothing in a new run."""
    last = world.broadcast_object(_last_checkpoint(run))
    if last is None:
        return 0, {}
    loaded = checkpointer.load(last, _trainable_parameters(model))
    optimizers.load_state_dict(loaded.optimizer_state)
    return loaded.step, loaded.training_state


def _trainable_parameters(model: Transformer) -> dict[str, Tensor]:
    """By name, the weights that training changes."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


class _StepSums(NamedTuple):
    """Sums over the data-parallel ranks."""

    nats: float
    z_loss: float
    loss_weight: float  # of all predicted tokens
    n_saved: float  # ranks whose part of a checkpoint is on the disk
    n_interrupts: float  # SIGINT
    n_terminations: float  # SIGTERM


def _all_reduce(
    world: World, losses_sum: Tensor, batch: Batch, checkpointer: Checkpointer, signals: SignalCounts
) -> _StepSums:
    """One collective per step carries the losses and everything on which all ranks must agree."""
    own = [*losses_sum.tolist(), float(batch.loss_weights.sum()), float(checkpointer.is_done), *signals.counts()]
    return _StepSums(*world.all_reduce_sum(own))


def _raise_if_diverged(
    model: Transformer, world: World, run: Path, reason: str, step: int, n_skipped_in_a_row: int
) -> None:
    """Raises DivergedError if a weight is not finite or too many steps in a row were skipped."""
    if not _is_finite(model, world):
        raise _diverged_error(run, f"{reason} at step {step}, and weights are not finite")
    if n_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise _diverged_error(run, f"{reason} at step {step}, and {n_skipped_in_a_row} steps in a row were skipped")


def _is_finite(model: Transformer, world: World) -> bool:
    """Whether all weights are finite, on all ranks."""
    is_bad = any(not bool(torch.isfinite(local_tensor(weight)).all()) for weight in model.parameters())
    return not world.all_reduce_sum([float(is_bad)])[0]


def _diverged_error(run: Path, reason: str) -> DivergedError:
    return DivergedError(
        f"training diverged: {reason}. Lower the learning rate and start a new run; "
        f"the last complete checkpoint is {_last_checkpoint(run) or 'none'}"
    )


def _last_checkpoint(run: Path) -> Path | None:
    return next(iter(list_checkpoints(run / "checkpoints")[-1:]), None)


def _validation_batches(
    config: TrainConfig, context: int, tokens: Path, tokenizer: Tokenizer, batch_size: int, world: World
) -> list[Batch]:
    """This rank's part of the validation sequences, left to right; none if no held-out document is long enough.

    They are the first `config.eval_sequences` of an epoch, for every number of ranks and every micro-batch size. Padding of
    the last batch has loss weight 0.
    """
    shards = open_token_shards(tokens, "validation", rank=world.rank, world_size=world.world_size)
    if not shards.n_documents or shards.lengths().max() < MIN_CHUNK_TOKENS:
        return []
    per_step = batch_size * world.dp_size
    loader = BatchLoader(shards, tokenizer, NextToken(), context_length=context, batch_size=per_step, seed=config.seed)
    n_sequences = min(config.eval_sequences, loader.sequences_per_epoch)
    batches = []
    for step in range(-(-n_sequences // per_step)):
        batch = loader.batch(step, world.dp_rank, world.dp_size)
        first = step * per_step + world.dp_rank * batch_size
        batch.loss_weights[max(0, n_sequences - first) :] = 0
        batches.append(replace(batch, n_bytes=target_bytes(tokenizer, batch.targets, batch.loss_weights)))
    return batches


def _validate(loss_fn: LossFn, batches: list[Batch], world: World) -> float | None:
    """Bits per byte over all ranks' validation batches."""
    if not batches:
        return None
    with torch.no_grad(), world.autocast():
        nats = sum(float(loss_fn(*_tensors(batch, slice(None), world.device)).nats) for batch in batches)
    return bits_per_byte(*world.all_reduce_sum([nats, sum(batch.n_bytes for batch in batches)]))


def micro_batches_of(batch: Batch, size: int, device: torch.device) -> Iterator[MicroBatch]:
    """The arguments of `Transformer.loss` for each `size` sequences of a batch, on a device."""
    for start in range(0, len(batch.ids), size):
        yield _tensors(batch, slice(start, start + size), device)


def _tensors(batch: Batch, rows: slice, device: torch.device) -> MicroBatch:
    """Some sequences of a batch as arguments of `Transformer.loss`."""
    documents = None if batch.document_ids is None else batch.document_ids[rows]
    offsets = find_document_offsets(documents) if documents is not None and device.type == "cuda" else None
    arrays = (batch.ids[rows], batch.targets[rows], batch.loss_weights[rows], documents, offsets)
    tensors = tuple(array if array is None else torch.from_numpy(array).to(device) for array in arrays)
    if tensors[-1] is not None:
        torch._dynamo.mark_dynamic(tensors[-1], 0)  # compiled code is for any number of documents
    return tensors


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Within the block, compiled code sums in a fixed order on CPUs; threads would race in the gradient of an embedding.

    Also disables the filling of uninitialized memory, which PyTorch's deterministic mode turns on and which costs time.
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


def _format_note(row: MetricsRow, losses: list[float], validation: float | None) -> str:
    """What the progress bar shows next to the steps."""
    recent = losses[-LOSS_WINDOW:] or [math.nan]
    parts = [f"loss {sum(recent) / len(recent):.3f}", sparkline(losses), f"grad norm {row['grad_norm']:.2f}"]
    parts += [f"{row['tokens_per_second']:,.0f} tokens/s", f"{row['matmul_efficiency']:.0%} of peak"]
    parts += ["skipped"] if "skipped" in row else []
    return "  ".join(parts + ([f"validation {validation:.3f} bits/byte"] if validation is not None else []))
