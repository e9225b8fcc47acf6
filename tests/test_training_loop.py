"""The training loop: runs that are killed, interrupted or diverge, skipped batches, validation, and speed limits."""

import dataclasses
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from codekiln.errors import DivergedError
from codekiln.metrics_log import read_metrics
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.checkpoint import list_checkpoints
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.flops import measure_peak_flops
from codekiln.train.loader import Batch, BatchLoader
from codekiln.train.loop import _validation_batches, find_skip_reason
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import OptimizerGroup
from codekiln.train.parallel import World
from codekiln.train.schedules import WarmupCosine
from tests.forked import start_forked
from tests.programs import build_small, train_on_full_disk
from tests.small import printed_rng, train_tiny, write_tree

TIMINGS = ("seconds", "tokens_per_second", "matmul_efficiency")


def finish_build(code: Path, run: Path, *, compile: bool = False) -> None:
    """Builds the small recipe in another process, to its end."""
    process = start_forked(build_small.main, code, run, compile=compile)
    process.join(timeout=600)
    assert process.exitcode == 0


def outcome(run: Path) -> tuple[list[dict[str, object]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Everything that must not depend on where a run was killed: metrics, weights and optimizer state."""
    metrics = [
        {name: value for name, value in row.items() if name not in TIMINGS}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    last = list_checkpoints(run / "checkpoints")[-1]
    tensors = {name: tensor for path in sorted(last.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    return metrics, load_file(run / "model" / "model.safetensors"), tensors


def assert_same_outcome(run: Path, other: Path) -> None:
    (metrics, *tensors), (other_metrics, *other_tensors) = outcome(run), outcome(other)
    assert metrics == other_metrics
    for a, b in zip(tensors, other_tensors, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    for stage in ("corpus", "tokenizer", "tokens", "evaluation", "functions"):
        a_record, b_record = (json.loads((each / "stages" / f"{stage}.json").read_text()) for each in (run, other))
        assert a_record["result"] == b_record["result"], stage


def signal_after(process: BaseProcess, run: Path, step: int, number: int, rng: random.Random) -> None:
    """Sends a signal after the run has logged a step, at a random moment within the next steps."""
    deadline = time.monotonic() + 120
    while len(read_metrics(run / "metrics.jsonl")) <= step:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(rng.random() * 0.1)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of code, and a run on it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code = write_tree(folder / "code")
    finish_build(code, folder / "run")
    return code, folder / "run"


@pytest.mark.process
def test_run_killed_at_random_steps_equals_an_undisturbed_run(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    code, run = undisturbed
    killed = tmp_path / "killed"
    rng = printed_rng()
    for step in sorted(rng.sample(range(1, 22), 2)):
        process = start_forked(build_small.main, code, killed)
        signal_after(process, killed, step, signal.SIGKILL, rng)
        assert process.exitcode == -signal.SIGKILL
    finish_build(code, killed)
    assert_same_outcome(run, killed)


@pytest.mark.process
def test_ctrl_c_saves_the_current_step_and_the_run_resumes(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    code, run = undisturbed
    stopped = tmp_path / "stopped"
    process = start_forked(build_small.main, code, stopped)
    signal_after(process, stopped, 5, signal.SIGINT, printed_rng())
    assert process.exitcode == 130
    last = list_checkpoints(stopped / "checkpoints")[-1]
    assert last.name == f"step-{read_metrics(stopped / 'metrics.jsonl')[-1]['step'] + 1:08}"
    finish_build(code, stopped)
    assert_same_outcome(run, stopped)


@pytest.mark.process
@pytest.mark.parametrize("seconds", [1.5, pytest.param(4.0, marks=pytest.mark.slow)])
def test_run_killed_at_any_moment_equals_an_undisturbed_run(
    undisturbed: tuple[Path, Path], tmp_path: Path, seconds: float
) -> None:
    code, run = undisturbed
    killed = tmp_path / "killed"
    process = start_forked(build_small.main, code, killed)
    process.join(timeout=seconds * (0.7 + 0.6 * printed_rng().random()))
    process.kill()
    process.join()
    finish_build(code, killed)
    assert_same_outcome(run, killed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_run_that_was_killed_equals_an_undisturbed_run(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    finish_build(code, tmp_path / "run", compile=True)
    process = start_forked(build_small.main, code, tmp_path / "killed", compile=True)
    signal_after(process, tmp_path / "killed", 6, signal.SIGKILL, printed_rng())
    finish_build(code, tmp_path / "killed", compile=True)
    assert_same_outcome(tmp_path / "run", tmp_path / "killed")


@pytest.mark.process
@pytest.mark.parametrize(("bad_step", "named_step"), [(7, 7), (6, 7)])
def test_weights_that_are_not_finite_stop_training_and_keep_the_last_checkpoint(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_step: int, named_step: int
) -> None:
    """The update of step 7, just before a checkpoint, or of step 6, between two, makes a weight infinite."""
    original = OptimizerGroup.step

    def step(self: OptimizerGroup, number: int, n_steps: int) -> float:
        factor = original(self, number, n_steps)
        if number == bad_step:
            weight = self._optimizers[0].param_groups[0]["params"][0]
            weight.detach()[0, 0] = np.inf
        return factor

    monkeypatch.setattr(OptimizerGroup, "step", step)
    with pytest.raises(DivergedError, match=rf"step {named_step}\b.*step-00000006"):
        train_tiny(small_run, tmp_path, save_every=2)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == "step-00000006"
    assert all(tensor.isfinite().all() for path in last.glob("*.safetensors") for tensor in load_file(path).values())


@pytest.mark.process
def test_full_disk_keeps_the_previous_checkpoint(small_run: Path, tmp_path: Path) -> None:
    """A real failing write: from the third checkpoint on, the process may write no file over 100,000 bytes."""
    process = start_forked(train_on_full_disk.main, small_run, tmp_path, tmp_path / "message.txt")
    process.join(timeout=200)
    message = (tmp_path / "message.txt").read_text(encoding="utf-8")
    assert str(tmp_path / "checkpoints" / "step-00000006") in message
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000002", "step-00000004"]
    resumed = train_tiny(small_run, tmp_path, save_every=2)
    straight = train_tiny(small_run, tmp_path / "straight", save_every=2)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]


@pytest.mark.process
def test_z_loss_keeps_logits_small(small_run: Path, tmp_path: Path) -> None:
    optimizer = AdamWConfig(lr=3e-3, schedule=WarmupCosine(warmup_steps=2))
    with_z_loss = train_tiny(small_run, tmp_path / "with", z_loss=0.1, optimizer=optimizer, total_tokens=16_384)
    without = train_tiny(small_run, tmp_path / "without", optimizer=optimizer, total_tokens=16_384)
    # At the start all logits are near 0, so their log-sum-exp is near ln 384.
    assert with_z_loss[0]["z_loss"] == pytest.approx(np.log(384) ** 2, rel=0.02)
    assert with_z_loss[-1]["z_loss"] < 0.7 * with_z_loss[0]["z_loss"]
    assert with_z_loss[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-6) and "z_loss" not in without[0]


@pytest.mark.process
def test_bad_batch_is_skipped_and_logged(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss weight of one token of one batch is infinite."""
    original = BatchLoader.batch

    def batch(self: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        found = original(self, step, rank, world_size)
        if step == 30:  # validation has fewer batches
            found.loss_weights[0, 0] = np.inf
        return found

    monkeypatch.setattr(BatchLoader, "batch", batch)
    optimizer = AdamWConfig(lr=1e-3, schedule=WarmupCosine(warmup_steps=2))
    rows = train_tiny(small_run, tmp_path, optimizer=optimizer, total_tokens=64 * 4 * 40)
    skipped = [row for row in rows if "skipped" in row]
    assert [row["step"] for row in skipped] == [30]
    assert "loss" in skipped[0]["skipped"] and skipped[0]["lr_scale"] == 0.0
    assert skipped[0]["documents"] and all(isinstance(number, int) for number in skipped[0]["documents"])
    assert np.isfinite(rows[-1]["loss"]) and rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.process
def test_steps_with_a_large_gradient_are_skipped(small_run: Path, tmp_path: Path) -> None:
    rows = train_tiny(small_run, tmp_path / "run", max_grad_norm_ratio=1.1, total_tokens=64 * 4 * 40)
    skipped = [row for row in rows if "skipped" in row]
    assert skipped and all(row["step"] >= 20 and row["lr_scale"] == 0.0 for row in skipped)
    assert all("median" in row["skipped"] for row in skipped)


@pytest.mark.process
def test_twenty_bad_batches_in_a_row_stop_training(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BatchLoader.batch

    def batch(self: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        found = original(self, step, rank, world_size)
        if step >= 10:
            found.loss_weights[0, 0] = np.nan
        return found

    monkeypatch.setattr(BatchLoader, "batch", batch)
    with pytest.raises(DivergedError, match=r"nan .*step 29\b.* 20 .*step-000000\d\d"):
        train_tiny(small_run, tmp_path / "run", total_tokens=64 * 4 * 40, save_every=5)


def test_large_gradients_are_recognized_by_the_median() -> None:
    history = [1.0, 1.1, 0.9] * 10
    assert find_skip_reason(2.0, 20.0, history, 30.0) is None
    reason = find_skip_reason(2.0, 40.0, history, 30.0)
    assert reason is not None and reason.count("40") == 2  # the norm, and how many times the median it is
    assert find_skip_reason(2.0, 40.0, history[:10], 30.0) is None  # too few norms for a median
    reason = find_skip_reason(float("nan"), 1.0, history, 30.0)
    assert reason is not None and "nan" in reason and "1.0" in reason


@dataclasses.dataclass
class MeshAxis:
    """As much of an axis of a device mesh as decides which rank reads which sequences."""

    n: int
    rank: int

    def size(self) -> int:
        return self.n

    def get_local_rank(self) -> int:
        return self.rank


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_validation_reads_the_same_sequences_for_any_number_of_ranks(
    small_run: Path, run_tokenizer: Tokenizer, world_size: int, micro_batch_size: int
) -> None:
    config = TrainConfig(objective=NextToken(), total_tokens=1, eval_sequences=7)

    def found(micro_batch_size: int, world_size: int) -> tuple[set[tuple[int, ...]], int, set[int]]:
        """The sequences with weight, their bytes, and the numbers of batches of the ranks."""
        sequences, n_bytes, n_batches = set(), 0, set()
        for rank in range(world_size):
            mesh: Any = {"data": MeshAxis(world_size, rank)}
            world = World(rank, world_size, mesh=mesh)
            batches = _validation_batches(config, 32, small_run / "tokens", run_tokenizer, micro_batch_size, world)
            n_batches.add(len(batches))
            for batch in batches:
                assert batch.ids.shape == (micro_batch_size, 32)
                n_bytes += batch.n_bytes
                pairs = zip(batch.ids.tolist(), batch.loss_weights, strict=True)
                sequences |= {tuple(ids) for ids, weights in pairs if weights.any()}
        return sequences, n_bytes, n_batches

    sequences, n_bytes, n_batches = found(micro_batch_size, world_size)
    assert len(sequences) == 7 and len(n_batches) == 1
    assert (sequences, n_bytes) == found(1, 1)[:2]


def test_matmul_peak_is_the_rate_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced: rounds of products take 4, 1 and 2 seconds. PyTorch counts the operations."""

    def clock() -> Iterator[float]:
        yield 0.0  # the start
        for begin, end in ((0.0, 4.0), (4.0, 5.0), (5.0, 7.0)):
            yield begin  # is time left?
            yield begin
            yield end
        yield 100.0

    times = clock()
    monkeypatch.setattr("codekiln.train.flops.time.perf_counter", lambda: next(times))
    with FlopCounterMode(display=False) as counter:
        found = measure_peak_flops(torch.device("cpu"), torch.float32, size=64, seconds=10)
    assert found == counter.get_total_flops() / 3 / 1.0
