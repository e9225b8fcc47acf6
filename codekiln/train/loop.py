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

from codekiln.files import Record
from codekiln.model.families import ModelConfig
from codekiln.model.huggingface import StoredWeights, read_config
from codekiln.model.transformer import Transformer, initialize
from codekiln.progress import sparkline, task
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.checkpoints import Checkpoints, checkpoint_state, checkpoints
from codekiln.train.compile_cache import use_private_compile_cache
from codekiln.train.loader import MIN_UNIT_TOKENS, Batch, Loader, Packing, predicted_bytes
from codekiln.train.lora import LoraPlan, adapt
from codekiln.train.metrics import MetricsLog, Mirror, bits_per_byte, matmul_peak, read_metrics
from codekiln.train.objectives import NextToken, Objective
from codekiln.train.optimizer import MuonPlan, OptimizerPlan, Optimizers
from codekiln.train.parallel import ALONE, Ranks, local, put, put_away, scale_gradients, spread, squared_gradient_norm
from codekiln.train.prepare import Shards, open_shards

SMOOTHED_STEPS = 20
MIN_NORMS = 20  # that are needed to know what is usual
MOST_LEFT_OUT = 20  # batches in a row, before training stops

MicroBatch = tuple[Tensor | None, ...]  # what `Transformer.loss_sums` takes


@dataclass(frozen=True)
class TrainPlan:
    """What is trained, on how many tokens or how many times the corpus over. A step's batch is `batch_rows` rows of
    `context_length` tokens, or of the model's context where that is None.

    By epochs a step has no more rows than an epoch: the most below that which divide `batch_rows`. `z_loss` weighs the square
    of the logarithm of the softmax' normalizer, which keeps logits small (CodeGen's code). A batch whose gradient is `spike`
    times the median of the last hundred, or not finite, is left out and recorded. The last two checkpoints are kept, and those
    of steps that `keep_every` divides.
    """

    objective: Objective
    total_tokens: int = 0
    epochs: int = 0
    batch_rows: int = 16
    context_length: int | None = None
    lora: LoraPlan | None = None
    optimizer: OptimizerPlan = MuonPlan()
    packing: Packing = "apart"
    z_loss: float = 0.0
    spike: float = 30.0
    valid_every: int = 50
    valid_rows: int = 64
    checkpoint_every: int = 50
    keep_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_rows", "valid_every", "valid_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        if self.keep_every < 0 or self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"train.keep_every is {self.keep_every}: it must be a multiple of checkpoint_every, {self.checkpoint_every}"
            )
        if self.seed < 0:
            raise ValueError(f"train.seed is {self.seed}: it must not be negative")
        if self.spike <= 1 or self.z_loss < 0:
            raise ValueError(f"train.spike is {self.spike}, z_loss {self.z_loss}: above 1, and not below 0, is needed")
        if (self.total_tokens < 1) == (self.epochs < 1):
            raise ValueError(
                f"train.total_tokens is {self.total_tokens} and train.epochs {self.epochs}: set one of them, the other to 0"
            )
        if self.packing == "joined" and not isinstance(self.objective, NextToken):
            raise ValueError(
                f"train.packing is joined and the objective {type(self.objective).__name__}: "
                "documents that run on can be learned left to right only"
            )

    def row_length(self, config: ModelConfig) -> int:
        """Tokens of a row. Raises ValueError where the model reads fewer."""
        wanted = config.context_length if self.context_length is None else self.context_length
        if wanted > config.context_length:
            raise ValueError(f"train.context_length is {wanted}: the model reads {config.context_length}")
        return wanted

    def rows_of_a_rank(self, data_size: int) -> int:
        """Rows of a step that one of `data_size` ranks reads. Raises ValueError where they do not divide."""
        if self.batch_rows % data_size:
            raise ValueError(
                f"train.batch_rows is {self.batch_rows}: it does not divide over {data_size} ranks that read different rows; "
                "set it to a multiple, or take another number of ranks"
            )
        return self.batch_rows // data_size

    def n_kept_for_good(self, config: ModelConfig) -> int:
        """Checkpoints that stay beside the last two; of a plan by epochs none is foreseen."""
        n_steps = self.total_tokens // (self.batch_rows * self.row_length(config))
        return n_steps // self.keep_every if self.keep_every else 0


@dataclass(frozen=True)
class Hardware:
    """Where and how fast. `compile` None means: where a C++ compiler is found.

    `tensor_ranks` share a layer; `recompute` computes blocks anew in the backward pass, which takes a third more time and
    keeps one layer's activations instead of all.
    """

    device: str = "cpu"
    micro_batch_tokens: int = 2048
    compile: bool | None = None
    tensor_ranks: int = 1
    recompute: bool = False

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
    plan: TrainPlan,
    config: ModelConfig,
    *,
    tokens: Path,
    tokenizer: Tokenizer,
    run: Path,
    hardware: Hardware,
    made_from: Record,
    start: Path | None = None,
    ranks: Ranks = ALONE,
    mirrors: Sequence[Mirror] = (),
) -> Transformer:
    """Trains, or goes on from the last whole checkpoint in `run`, and returns the model at its end.

    The weights begin as those of the model directory `start`, or as new ones; moments and steps begin anew in either case.
    Ctrl-C and SIGTERM save a checkpoint after the step under way and raise KeyboardInterrupt and Preempted. The same seed,
    shards and processors give the same weights to the bit, however often the run was interrupted or killed; on GPUs, and on
    another number of ranks, the same batches are read, and sums differ by rounding.
    """
    if plan.lora is not None and ranks.size > 1:
        raise ValueError("LoRA learns in one process: start it without torchrun")
    context = plan.row_length(config)
    shards = open_shards(tokens, "train", ranks.part)
    loader = _loader(plan, context, shards, tokenizer)
    if plan.epochs and loader.rows_per_epoch < plan.batch_rows:
        fewer = max(n for n in range(1, loader.rows_per_epoch + 1) if plan.batch_rows % n == 0)
        plan = replace(plan, batch_rows=fewer)
        loader = _loader(plan, context, shards, tokenizer)
    plan.rows_of_a_rank(ranks.data_size)
    model = _model(config, ranks, hardware, plan, start)
    optimizers = Optimizers(model, plan.optimizer)
    kept = Checkpoints(run / "checkpoints", ranks, made_from, keep_every=plan.keep_every)
    step = _resume(run, kept, model, optimizers, ranks)
    n_tokens = plan.batch_rows * context
    # What LoRA leaves as it is has no gradient of its own, which is a third of a step.
    flops = config.training_flops(context) * (1 if plan.lora is None else 2 / 3)
    if plan.epochs:
        n_steps = math.ceil(plan.epochs * loader.rows_per_epoch / plan.batch_rows)
    else:
        n_steps = max(1, round(plan.total_tokens / n_tokens))
    if step >= n_steps:
        return model
    micro_rows = max(1, min(plan.rows_of_a_rank(ranks.data_size), hardware.micro_batch_tokens // context))
    valid = _validation_batches(plan, context, tokens, tokenizer, micro_rows, ranks)
    loss_sums = _loss_sums(model, ranks, hardware)
    peak = matmul_peak(ranks.device, ranks.dtype)
    log = MetricsLog(run / "metrics.jsonl", step=step, mirrors=mirrors) if ranks.is_first else None
    past = [row["grad_norm"] for row in read_metrics(run / "metrics.jsonl")[:step] if "skipped" not in row]
    norms = deque(ranks.told_by_first(past[-100:]), 100)
    seen_loss: list[float] = []
    valid_bits: float | None = None  # the last one found
    n_left_out = 0  # batches, one after the other
    with (
        closing(log) if log is not None else nullcontext(),
        task("Train", n_steps, done=step) if ranks.is_first else nullcontext() as progress,
        _noted_signals() as noted,
        _deterministic(ranks.device),
        kept,
        ThreadPoolExecutor(1) as reader,  # makes the next batch while this one is learned
    ):
        coming = reader.submit(loader.batch, step, ranks.data_part)
        while step < n_steps:
            begun = time.perf_counter()
            batch = coming.result()
            if step + 1 < n_steps:
                coming = reader.submit(loader.batch, step + 1, ranks.data_part)
            nats, penalty = backward(
                model,
                loss_sums,
                list(_micro_batches(batch, micro_rows, ranks.device)),
                plan.z_loss,
                ranks.data_size / n_tokens,
            ).tolist()
            sums = [nats, penalty, float(batch.weights.sum()), float(kept.is_written)]
            total_nats, total_penalty, weight, n_written, *signals = ranks.summed([*sums, *noted.counts()])
            if n_written == ranks.data_size:
                kept.finish()
            mean = n_tokens / max(1.0, weight)
            norm = float(squared_gradient_norm(model, ranks).sqrt()) * mean
            loss = total_nats / max(1.0, weight)
            row: Record = {"step": step, "tokens": (step + 1) * n_tokens, "loss": loss, "grad_norm": norm}
            if fault := _fault(loss, norm, norms, plan.spike):
                n_left_out += 1
                kept.finish()
                _require_learning(model, ranks, run, fault, step, n_left_out)
                optimizers.clear()
                row |= {
                    "skipped": fault,
                    "documents": reader.submit(loader.documents, step).result(),
                    "rate_factor": 0.0,
                }
            else:
                n_left_out = 0
                norms.append(norm)
                scale_gradients(model, mean * min(1.0, plan.optimizer.max_grad_norm / (norm + 1e-6)))
                row["rate_factor"] = optimizers.step(step, n_steps)
            seconds = time.perf_counter() - begun
            row |= {
                "seconds": round(seconds, 4),
                "tokens_per_second": round(n_tokens / seconds, 1),
                "utilization": round(n_tokens / seconds * flops / (peak * ranks.size), 4),
            }
            if plan.z_loss > 0:
                row["z_penalty"] = total_penalty / max(1.0, weight)
            step += 1
            if step % plan.valid_every == 0 or step == n_steps:
                # Other work on this machine hides the peak now and then; it is the best seen.
                peak = max(peak, matmul_peak(ranks.device, ranks.dtype, seconds=0.1))
                valid_bits = row["valid_bits_per_byte"] = _valid_bits_per_byte(loss_sums, valid, ranks)
                put_away(model)
            if log is not None and progress is not None:
                log.write(row)
                seen_loss += [loss] * ("skipped" not in row)
                progress.advance(note=_note(row, seen_loss, valid_bits))
            is_asked_to_end = sum(signals) > 0
            if step % plan.checkpoint_every == 0 or step == n_steps or is_asked_to_end:
                if not _is_finite(model, ranks):
                    kept.finish()
                    raise _stopped(run, f"weights are not finite after step {step - 1}")
                kept.save(step, checkpoint_state(_learning(model), optimizers.state()))
            if step == n_steps:
                signals = ranks.summed(noted.counts())  # what came since is not lost
            if sum(signals):
                kept.finish()
                raise KeyboardInterrupt if signals[0] else Preempted
    return model


def backward(
    model: Transformer, loss_sums: "LossSums", micro_batches: Sequence[MicroBatch], z_loss: float, scale: float
) -> Tensor:
    """Adds a step's gradients, micro-batch by micro-batch, and tells the sums of nats and of penalties: (2,) in float64.

    A micro-batch is what `Transformer.loss_sums` takes; over ranks its gradients are summed at once, so that none holds more
    than its share of them. Sums over rows become means by `scale`, as far as it is known.
    """
    total = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    for tensors in micro_batches:
        nats, penalty = loss_sums(*tensors, has_penalty=z_loss > 0)
        mean_loss: Tensor = (nats + z_loss * penalty) * scale
        mean_loss.backward()  # type: ignore[no-untyped-call]
        total += torch.stack((nats, penalty)).detach().to(total)
    return total


def has_cxx_compiler() -> bool:
    """Whether torch.compile can build code for the CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _loader(plan: TrainPlan, context: int, shards: Shards, tokenizer: Tokenizer) -> Loader:
    return Loader(
        shards,
        tokenizer,
        plan.objective,
        context_length=context,
        rows=plan.batch_rows,
        seed=plan.seed,
        packing=plan.packing,
    )


def _model(config: ModelConfig, ranks: Ranks, hardware: Hardware, plan: TrainPlan, start: Path | None) -> Transformer:
    """A model spread over the ranks, with the weights of a directory or those that one process would draw."""
    model = spread(config, ranks, recompute=hardware.recompute)
    model.to_empty(device=ranks.device)
    model.tie()
    if start is None:
        initialize(model, torch.Generator().manual_seed(plan.seed), put)
    else:
        layout, found = read_config(start)
        if found != config:
            raise ValueError(f"{start} has another shape ({found}) than the recipe ({config})")
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in StoredWeights(start, layout, config).read():
                put(weights[name], tensor.to(ranks.device, torch.float32))
    if plan.lora is not None:
        adapt(model, plan.lora, seed=plan.seed)
    return model


def _learning(model: Transformer) -> dict[str, Tensor]:
    """The weights that training changes, by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _resume(run: Path, kept: Checkpoints, model: Transformer, optimizers: Optimizers, ranks: Ranks) -> int:
    """The step to go on with: that of the last whole checkpoint, or 0."""
    last = ranks.told_by_first(_last_checkpoint(run))
    if last is None:
        return 0
    step, moments = kept.load(last, _learning(model))
    optimizers.load(moments)
    return step


LossSums = Callable[..., tuple[Tensor, Tensor]]


def _loss_sums(model: Transformer, ranks: Ranks, hardware: Hardware) -> LossSums:
    """`Transformer.loss_sums` as fast as it goes here: compiled; where the model is spread over ranks, each block and the loss.

    Compiled code is kept in the user's cache. Where no C++ compiler is found it is as it is.
    """
    loss_sums = plain_loss_sums(model, ranks)
    wanted = hardware.compile if hardware.compile is not None else has_cxx_compiler()
    if not wanted:
        return loss_sums
    use_private_compile_cache()
    if ranks.mesh is None:
        compiled: LossSums = torch.compile(loss_sums, dynamic=False)
        return compiled
    for part in (*model.blocks, model.loss):
        part.compile(dynamic=False)
    return loss_sums


def plain_loss_sums(model: Transformer, ranks: Ranks) -> LossSums:
    """`Transformer.loss_sums` with products in the ranks' precision; of a model that is spread, its shards see to that."""
    is_cast = ranks.dtype != torch.float32 and ranks.mesh is None

    def loss_sums(
        ids: Tensor, targets: Tensor, weights: Tensor, documents: Tensor | None, *, has_penalty: bool = False
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(ranks.device.type, ranks.dtype, enabled=is_cast):
            return model.loss_sums(ids, targets, weights, documents, has_penalty=has_penalty)

    return loss_sums


def _fault(loss: float, norm: float, norms: Sequence[float], spike: float) -> str | None:
    """What is wrong with a batch, in words; None where nothing is."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"the loss is {loss} and the gradient's norm {norm}"
    usual = (sorted(norms)[len(norms) // 2] if len(norms) >= MIN_NORMS else 0.0) or math.inf
    return f"the gradient's norm is {norm:.3g}, {norm / usual:.0f} times the usual" if norm > spike * usual else None


def _require_learning(model: Transformer, ranks: Ranks, run: Path, fault: str, step: int, n_left_out: int) -> None:
    """Raises ValueError where a weight is not finite, or too many batches in a row were bad: no other will be good."""
    if not _is_finite(model, ranks):
        raise _stopped(run, f"{fault} at step {step}, and weights are not finite")
    if n_left_out >= MOST_LEFT_OUT:
        raise _stopped(run, f"{fault} at step {step}, and {n_left_out} batches in a row were bad")


def _is_finite(model: Transformer, ranks: Ranks) -> bool:
    """Whether all weights are, on all ranks."""
    is_bad = any(not bool(torch.isfinite(local(weight)).all()) for weight in model.parameters())
    return not ranks.summed([float(is_bad)])[0]


def _stopped(run: Path, why: str) -> ValueError:
    """The error that ends a run which learns nothing more."""
    return ValueError(
        f"{why}: lower the learning rate and start from another --out; "
        f"the last whole checkpoint is {_last_checkpoint(run) or 'none'}"
    )


def _last_checkpoint(run: Path) -> Path | None:
    return next(iter(checkpoints(run / "checkpoints")[-1:]), None)


def _validation_batches(
    plan: TrainPlan, context: int, tokens: Path, tokenizer: Tokenizer, rows: int, ranks: Ranks
) -> list[Batch]:
    """The same rows at every validation, left to right, this rank's of them; none where nothing held out fills one.

    The first `plan.valid_rows` of an epoch, whatever the ranks and `rows`; what fills the last batches has no weight.
    """
    shards = open_shards(tokens, "heldout", ranks.part)
    if not shards.n_documents or shards.lengths().max() < MIN_UNIT_TOKENS:
        return []
    at_once = rows * ranks.data_size
    loader = Loader(shards, tokenizer, NextToken(), context_length=context, rows=at_once, seed=plan.seed)
    n_rows = min(plan.valid_rows, loader.rows_per_epoch)
    batches = []
    for step in range(-(-n_rows // at_once)):
        batch = loader.batch(step, ranks.data_part)
        first = step * at_once + ranks.data_rank * rows
        batch.weights[max(0, n_rows - first) :] = 0
        batches.append(replace(batch, n_bytes=predicted_bytes(tokenizer, batch.targets, batch.weights)))
    return batches


def _valid_bits_per_byte(loss_sums: LossSums, batches: list[Batch], ranks: Ranks) -> float | None:
    if not batches:
        return None
    with torch.no_grad():
        nats = sum(float(loss_sums(*_tensors(batch, ranks.device))[0]) for batch in batches)
    return bits_per_byte(*ranks.summed([nats, sum(batch.n_bytes for batch in batches)]))


def _micro_batches(batch: Batch, rows: int, device: torch.device) -> Iterator[MicroBatch]:
    whole = _tensors(batch, device)
    for start in range(0, len(batch.ids), rows):
        yield tuple(tensor if tensor is None else tensor[start : start + rows] for tensor in whole)


def _tensors(batch: Batch, device: torch.device) -> MicroBatch:
    """What `Transformer.loss_sums` takes of a batch."""
    arrays = (batch.ids, batch.targets, batch.weights, batch.documents)
    return tuple(array if array is None else torch.from_numpy(array).to(device) for array in arrays)


class _Noted:
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
def _noted_signals() -> Iterator[_Noted]:
    """Within the block the first Ctrl-C and any SIGTERM are only noted; a second Ctrl-C interrupts at once."""
    noted = _Noted()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, noted.note) for number in noted.seen}
    try:
        yield noted
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


def _note(row: Record, losses: list[float], valid: float | None) -> str:
    recent = losses[-SMOOTHED_STEPS:] or [math.nan]
    parts = [f"loss {sum(recent) / len(recent):.3f}", sparkline(losses), f"norm {row['grad_norm']:.2f}"]
    parts += [f"{row['tokens_per_second']:,.0f} tokens/s", f"{row['utilization']:.0%} of peak"]
    parts += ["batch left out"] if "skipped" in row else []
    return "  ".join(parts + ([f"valid {valid:.3f} bits/byte"] if valid is not None else []))
