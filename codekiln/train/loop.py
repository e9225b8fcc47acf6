"""The training loop: batches in, weights, checkpoints and metrics out. B row, T position, V vocabulary."""

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor

from codekiln.files import Record
from codekiln.model.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from codekiln.model.families import ModelConfig
from codekiln.model.transformer import Transformer, initialize
from codekiln.progress import sparkline, task
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.loader import MIN_UNIT_TOKENS, Batch, Loader
from codekiln.train.metrics import MetricsLog, bits_per_byte, matmul_peak
from codekiln.train.objectives import NextToken, Objective
from codekiln.train.optimizer import OptimizerPlan, Optimizers
from codekiln.train.prepare import open_shards

SMOOTHED_STEPS = 20


@dataclass(frozen=True)
class TrainPlan:
    """What is trained, on how many tokens. A step's batch is `batch_rows` rows of the model's context."""

    objective: Objective
    total_tokens: int
    batch_rows: int
    optimizer: OptimizerPlan = OptimizerPlan()
    valid_every: int = 50
    valid_rows: int = 64
    checkpoint_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("total_tokens", "batch_rows", "valid_every", "valid_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True)
class Hardware:
    """Where and how fast. `compile` None means: where a C++ compiler is found."""

    device: str = "cpu"
    micro_batch_tokens: int = 2048
    compile: bool | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"no device is called {self.device!r}: known are cpu and cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("PyTorch finds no CUDA device here: leave --device out, or install its build for CUDA")


def train(
    plan: TrainPlan,
    config: ModelConfig,
    *,
    tokens: Path,
    tokenizer: Tokenizer,
    run: Path,
    hardware: Hardware,
    made_from: Record,
) -> Transformer:
    """Trains, or goes on from the last whole checkpoint in `run`, and returns the model at its end.

    Ctrl-C saves a checkpoint after the step under way and raises KeyboardInterrupt. The same seed, shards and hardware
    give the same weights to the bit, however often the run was interrupted or killed.
    """
    device = torch.device(hardware.device)
    model = Transformer(config).to(device)
    initialize(model, torch.Generator(device).manual_seed(plan.seed))
    optimizers = Optimizers(model, plan.optimizer)
    step = _resume(run, model, optimizers, made_from)
    n_steps = max(1, round(plan.total_tokens / (plan.batch_rows * config.context_length)))
    if step >= n_steps:
        return model

    context = config.context_length
    loader = Loader(
        open_shards(tokens, "train"),
        tokenizer,
        plan.objective,
        context_length=context,
        rows=plan.batch_rows,
        seed=plan.seed,
    )
    micro_rows = max(1, min(plan.batch_rows, hardware.micro_batch_tokens // context))
    valid = _validation_batches(plan, context, tokens, tokenizer, micro_rows)
    loss_sum = _compiled(_loss_sum(model, device), run, hardware)
    peak = matmul_peak(device, _compute_dtype(device))
    seen_loss: list[float] = []
    with (
        closing(MetricsLog(run / "metrics.jsonl", step=step)) as log,
        task("Train", n_steps, done=step) as progress,
        _delayed_interrupt() as was_interrupted,
        _deterministic(device),
    ):
        while step < n_steps:
            begun = time.perf_counter()
            batch = loader.batch(step)
            weight = max(1.0, float(batch.weights.sum()))
            nats = 0.0
            for micro in _micro_batches(batch, micro_rows):
                loss = loss_sum(*_tensors(micro, device)) / weight
                loss.backward()  # type: ignore[no-untyped-call]
                nats += float(loss.detach())
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), plan.optimizer.max_grad_norm))
            if not math.isfinite(nats) or not math.isfinite(norm):
                raise ValueError(
                    f"the loss or its gradient is not finite at step {step}: lower the learning rate; "
                    f"the last whole checkpoint is {next(iter(checkpoints(run / 'checkpoints')[-1:]), 'none')}"
                )
            factor = optimizers.step(step, n_steps)
            seconds = time.perf_counter() - begun
            n_tokens = plan.batch_rows * context
            row: Record = {
                "step": step,
                "tokens": (step + 1) * n_tokens,
                "loss": nats,
                "grad_norm": norm,
                "rate_factor": factor,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(n_tokens / seconds, 1),
                "utilization": round(n_tokens / seconds * config.flops_per_token / peak, 4),
            }
            step += 1
            if step % plan.valid_every == 0 or step == n_steps:
                # Other work on this machine hides the peak now and then; it is the best seen.
                peak = max(peak, matmul_peak(device, _compute_dtype(device), seconds=0.1))
                row["valid_bits_per_byte"] = _valid_bits_per_byte(loss_sum, valid, device)
            log.write(row)
            seen_loss.append(nats)
            progress.advance(note=_note(row, seen_loss))
            if step % plan.checkpoint_every == 0 or step == n_steps or was_interrupted():
                save_checkpoint(run / "checkpoints", step, model, optimizers.state(), made_from)
            if was_interrupted():
                raise KeyboardInterrupt
    return model


def has_cxx_compiler() -> bool:
    """Whether torch.compile can build code for the CPU here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def _resume(run: Path, model: Transformer, optimizers: Optimizers, made_from: Record) -> int:
    """The step to go on with: that of the last whole checkpoint, or 0."""
    last = next(iter(checkpoints(run / "checkpoints")[-1:]), None)
    if last is None:
        return 0
    step, state = load_checkpoint(last, model, made_from)
    optimizers.load(state)
    return step


LossSum = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _loss_sum(model: Transformer, device: torch.device) -> LossSum:
    """The sum of weighted cross-entropies in nats over ids, targets, weights and documents, each (B, T)."""

    def loss_sum(ids: Tensor, targets: Tensor, weights: Tensor, documents: Tensor) -> Tensor:
        with torch.autocast(device.type, _compute_dtype(device), enabled=device.type != "cpu"):
            logits = model.head(model(ids, documents=documents))
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum()

    return loss_sum


def _compiled(loss_sum: LossSum, run: Path, hardware: Hardware) -> LossSum:
    """The same function compiled, its code kept in the run; as it is where no C++ compiler is found."""
    wanted = hardware.compile if hardware.compile is not None else has_cxx_compiler()
    if not wanted:
        return loss_sum
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((run / "compiled").absolute())
    compiled: LossSum = torch.compile(loss_sum, dynamic=False)
    return compiled


def _compute_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _validation_batches(plan: TrainPlan, context: int, tokens: Path, tokenizer: Tokenizer, rows: int) -> list[Batch]:
    """The same rows at every validation, left to right; none where nothing is held out that fills one."""
    shards = open_shards(tokens, "heldout")
    if not shards.n_documents or shards.lengths().max() < MIN_UNIT_TOKENS:
        return []
    loader = Loader(shards, tokenizer, NextToken(), context_length=context, rows=rows, seed=plan.seed)
    return [loader.batch(i) for i in range(max(1, min(plan.valid_rows, loader.rows_per_epoch) // rows))]


def _valid_bits_per_byte(loss_sum: LossSum, batches: list[Batch], device: torch.device) -> float | None:
    if not batches:
        return None
    with torch.no_grad():
        return bits_per_byte(lambda batch: loss_sum(*_tensors(batch, device)), batches)


def _micro_batches(batch: Batch, rows: int) -> Iterator[Batch]:
    for start in range(0, len(batch.ids), rows):
        part = slice(start, start + rows)
        yield Batch(batch.ids[part], batch.targets[part], batch.weights[part], batch.documents[part], 0)


def _tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = (batch.ids, batch.targets, batch.weights, batch.documents)
    ids, targets, weights, documents = (torch.from_numpy(array).to(device) for array in arrays)
    return ids, targets, weights, documents


@contextmanager
def _delayed_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C is only noted; a second one interrupts at once."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Within the block compiled code adds in a fixed order on CPUs; an embedding's gradient is else a race of threads."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _note(row: Record, losses: list[float]) -> str:
    recent = losses[-SMOOTHED_STEPS:]
    valid = row.get("valid_bits_per_byte")
    parts = [f"loss {sum(recent) / len(recent):.3f}", sparkline(losses), f"{row['tokens_per_second']:,.0f} tokens/s"]
    parts.append(f"{row['utilization']:.0%} of matmul peak")
    return "  ".join(parts + ([f"valid {valid:.3f} bits/byte"] if valid is not None else []))
