"""Distributed training: torchrun ranks on gloo equal one process, and load each other's checkpoints.

Ranks are forked by torchrun's agent where the test is about what they compute, and started by the command torchrun where it is
about torchrun.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from codekiln.metrics_log import read_metrics
from codekiln.train.checkpoint import list_checkpoints
from codekiln.train.parallel import init_distributed
from tests.command import codekiln
from tests.forked import run_on_ranks, signal_ranks
from tests.programs import join_worlds, orthogonalize_on_owners, train_on_ranks
from tests.small import ROOT, program, program_environment, write_tree

pytestmark = pytest.mark.process

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")

MUON: dict[str, Any] = {"muon": True, "config": "kiln, untied", "n_steps": 12}  # long enough to be killed twice


def torchrun_codekiln(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command on two ranks to its end."""
    command = [sys.executable, *TORCHRUN, "2", "-m", "codekiln", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=program_environment(), capture_output=True, text=True, timeout=280, check=False
    )


def start_training(
    n: int, source: Path, run: Path, *, restarts: int = 0, rendezvous: Sequence[str] = TORCHRUN[2:3], **options: Any
) -> subprocess.Popen[str]:
    """Starts train_on_ranks.py with torchrun, on n ranks of one node or of one of several."""
    run.mkdir(parents=True, exist_ok=True)
    launcher = [*TORCHRUN[:2], *rendezvous, TORCHRUN[3], str(n), "--max-restarts", str(restarts)]
    python, *arguments = program("train_on_ranks.py", source, run, json.dumps(options))
    return subprocess.Popen(
        [python, *launcher, *arguments],
        cwd=ROOT,
        env=program_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish_training(n: int, source: Path, run: Path, *, restarts: int = 0, **options: Any) -> Path:
    """Runs train_on_ranks.py on n ranks, or in this process, to its end. Returns the run."""
    run.mkdir(parents=True, exist_ok=True)
    arguments = (source, run, train_on_ranks.Options(**options))
    if n == 1:
        train_on_ranks.main(*arguments)
    else:
        run_on_ranks(n, train_on_ranks.main, *arguments, restarts=restarts)
    return run


def assert_same(one: Path, other: Path, *, tolerance: float = 2e-5) -> None:
    """Equal losses, gradient norms, validations and weights, up to the order of floating-point sums."""
    rows, other_rows = read_metrics(one / "metrics.jsonl"), read_metrics(other / "metrics.jsonl")
    assert len(rows) == len(other_rows) > 0
    for row, other_row in zip(rows, other_rows, strict=True):
        for key in ("loss", "grad_norm", "z_loss", "validation_bits_per_byte"):
            assert (key in row) == (key in other_row)
            assert row.get(key, 0.0) == pytest.approx(other_row.get(key, 0.0), rel=tolerance), (key, row["step"])
    weights, other_weights = (load_file(run / "weights.safetensors") for run in (one, other))
    assert weights.keys() == other_weights.keys()
    for name, weight in weights.items():
        assert torch.allclose(weight, other_weights[name], rtol=1e-3, atol=2e-5), name


@pytest.fixture(scope="module")
def alone(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one process by config."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        "kiln": finish_training(1, small_run, folder / "kiln"),
        "muon": finish_training(1, small_run, folder / "muon", **MUON),
        "incoder": finish_training(1, small_run, folder / "incoder", config="incoder"),
        "codegen": finish_training(1, small_run, folder / "codegen", config="codegen"),
    }


def test_two_ranks_equal_one_process(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    assert_same(alone["kiln"], finish_training(2, small_run, tmp_path / "two"))


def test_tensor_parallel_ranks_drop_what_one_process_drops(small_run: Path, tmp_path: Path) -> None:
    dropped: dict[str, Any] = {"config": "incoder", "dropout": 0.2, "n_steps": 4}
    one = finish_training(1, small_run, tmp_path / "one", **dropped)
    assert_same(one, finish_training(2, small_run, tmp_path / "two", **dropped, tensor_parallel=2))


@pytest.mark.slow
def test_two_ranks_with_convolutions_equal_one_process(small_run: Path, tmp_path: Path) -> None:
    one = finish_training(1, small_run, tmp_path / "one", config="lfm2", muon=True)
    assert_same(one, finish_training(2, small_run, tmp_path / "two", config="lfm2", muon=True))


@pytest.mark.slow
def test_ranks_with_dropout_resume_exactly(small_run: Path, tmp_path: Path) -> None:
    dropped: dict[str, Any] = {"config": "incoder", "dropout": 0.2, "attention_dropout": 0.1, "n_steps": 8}
    straight = finish_training(2, small_run, tmp_path / "straight", **dropped, save_every=5)
    shutil.copytree(straight, tmp_path / "resumed")
    *_, last = list_checkpoints(tmp_path / "resumed" / "checkpoints")
    assert last.name == "step-00000008"
    shutil.rmtree(last)
    resumed = finish_training(2, small_run, tmp_path / "resumed", **dropped, save_every=5)
    assert_same(straight, resumed, tolerance=0)


@pytest.mark.slow
def test_four_ranks_with_muon_equal_one_process(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    assert_same(alone["muon"], finish_training(4, small_run, tmp_path / "four", **MUON))


@pytest.mark.parametrize("config", ["kiln", pytest.param("codegen", marks=pytest.mark.slow)])
def test_two_tensor_parallel_ranks_equal_one_process(
    alone: dict[str, Path], small_run: Path, tmp_path: Path, config: str
) -> None:
    assert_same(
        alone[config],
        finish_training(
            2, small_run, tmp_path / "tensor", config=config, tensor_parallel=2, activation_checkpointing=True
        ),
    )


@pytest.mark.slow
def test_batch_that_is_bad_on_one_rank_is_skipped_by_all(small_run: Path, tmp_path: Path) -> None:
    alone, two = (finish_training(n, small_run, tmp_path / str(n), bad_step=5) for n in (1, 2))
    rows, other_rows = (read_metrics(run / "metrics.jsonl") for run in (alone, two))
    assert [row["step"] for row in rows if "skipped" in row] == [5]
    assert rows[5]["documents"] == other_rows[5]["documents"] and "loss" in other_rows[5]["skipped"]
    for run, kept in ((alone, rows), (two, other_rows)):
        for row in kept:  # the loss of a skipped step is not finite, and cannot be compared
            if "skipped" in row:
                row["loss"] = row["grad_norm"] = row["z_loss"] = 0.0
        lines = [json.dumps(line) for line in ({"format": 1}, *kept)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert_same(alone, two)


@pytest.mark.slow  # blocks and the loss are compiled by each rank
def test_two_compiled_ranks_equal_one_process(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    assert_same(alone["kiln"], finish_training(2, small_run, tmp_path / "compiled", compile=True), tolerance=1e-4)


@pytest.mark.slow
def test_two_by_two_ranks_equal_one_process(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    assert_same(
        alone["incoder"],
        finish_training(4, small_run, tmp_path / "both", tensor_parallel=2, config="incoder", micro_batch_size=1),
    )


def test_run_resumes_on_another_number_of_ranks(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    """Killed on two ranks, killed on four, and finished in one process: equals an undisturbed run of one process."""
    run = tmp_path / "run"
    for n, at in ((2, 2), (4, 6)):
        train_until_killed(n, small_run, run, at, save_every=2, **MUON)
        last = list_checkpoints(run / "checkpoints")[-1]
        assert len(list(last.glob("*.safetensors"))) == n
    finish_training(1, small_run, run, save_every=2, **MUON)
    assert_same(alone["muon"], run)


def wait_for(is_reached: Callable[[], bool], is_running: Callable[[], bool]) -> None:
    """Waits until a run has got somewhere. Fails if it ends before."""
    deadline = time.monotonic() + 200
    while not is_reached():
        assert is_running()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last_step(run: Path) -> int:
    """The step of the last complete checkpoint, or 0."""
    found = list_checkpoints(run / "checkpoints")
    return int(found[-1].name[5:]) if found else 0


@contextmanager
def signal_when(is_reached: Callable[[], bool], number: int, *, only_one: bool = False) -> Iterator[None]:
    """Sends a signal to all ranks, or to one, when the run of the block has got somewhere."""
    is_running = threading.Event()
    is_running.set()

    def wait_and_signal() -> None:
        wait_for(is_reached, is_running.is_set)
        signal_ranks(number, only_one=only_one)

    with ThreadPoolExecutor(1) as thread:
        signalled = thread.submit(wait_and_signal)
        try:
            yield
        finally:
            is_running.clear()
    signalled.result()


def train_until_killed(n: int, source: Path, run: Path, step: int, **options: Any) -> None:
    """Kills one of the ranks after a checkpoint of a later step. The agent stops the others and reports a failure."""
    with (
        pytest.raises(ChildFailedError),  # PyTorch's own timeout for lost ranks is ten minutes
        signal_when(lambda: last_step(run) > step, signal.SIGKILL, only_one=True),
    ):
        finish_training(n, source, run, **options)
    assert last_step(run) > step


def test_torchrun_restarts_a_run_after_a_rank_was_killed(
    alone: dict[str, Path], small_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with signal_when(lambda: last_step(run) > 4, signal.SIGKILL, only_one=True):
        finish_training(2, small_run, run, restarts=1, save_every=2, **MUON)
    assert_same(alone["muon"], run)


def test_nodes_that_could_not_restart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "2",
                        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        init_distributed("cpu"),
    ):
        pass


@pytest.mark.slow
def test_two_nodes_restart_together(
    alone: dict[str, Path], small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents, as on two machines. A rank of one is killed, which the other does not count as a restart."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    run = tmp_path / "run"
    rendezvous = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"]
    options: dict[str, Any] = {"restarts": 3, "save_every": 2, **MUON}
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    nodes = [start_training(1, small_run, run, rendezvous=rendezvous, **options) for _ in range(2)]
    wait_for(lambda: last_step(run) > 4, lambda: nodes[1].poll() is None)
    children = Path(f"/proc/{nodes[1].pid}/task/{nodes[1].pid}/children").read_text(encoding="utf-8")
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    for node in nodes:
        output, _ = node.communicate(timeout=200)
        assert node.returncode == 0, output[-4000:]
    assert_same(alone["muon"], run)


def test_sigterm_to_torchrun_saves_the_current_step(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_training(2, small_run, run, n_steps=400, save_every=400)
    wait_for(lambda: len(read_metrics(run / "metrics.jsonl")) >= 5, lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert last_step(run) == len(read_metrics(run / "metrics.jsonl"))


def test_sigterm_to_tensor_parallel_ranks_saves_the_current_step(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with signal_when(lambda: len(read_metrics(run / "metrics.jsonl")) >= 5, signal.SIGTERM):
        finish_training(2, small_run, run, n_steps=400, save_every=400, tensor_parallel=2)
    assert 5 <= last_step(run) == len(read_metrics(run / "metrics.jsonl")) < 400


def test_process_joins_one_group_after_the_other() -> None:
    run_on_ranks(2, join_worlds.main)


def test_each_matrix_is_orthogonalized_by_one_rank() -> None:
    """Three ranks, rows that do not divide over them, fewer matrices than ranks, and ranks without rows."""
    run_on_ranks(3, orthogonalize_on_owners.main)


def test_train_command_on_two_ranks_equals_one(tmp_path: Path) -> None:
    """All stages: rank 0 runs the stages before and after training."""
    code = write_tree(tmp_path / "code")
    settings = [
        "tokenizer.vocab_size=384", "model.vocab_size=384", "model.n_layers=1", "model.attention_layers=[0]",
        "train.initialization=codekiln",
        "model.d_model=32", "model.d_ff=64",
        "model.n_kv_heads=1", "model.d_head=16", "train.total_tokens=8192", "train.global_batch_size=4",
        "train.eval_sequences=4", "corpus.validation_fraction=0.2", "infilling.n_problems=4", "infilling.max_new_tokens=8",
        "min_free_bytes=1000000",
    ]  # fmt: skip
    outcomes = []
    for n, command in ((1, codekiln), (2, torchrun_codekiln)):
        run = tmp_path / f"run{n}"
        done = command(
            "train", "demo", "--out", run, "--code", code, "--license", "MIT", "--no-compile",
            *(part for setting in settings for part in ("--set", setting)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert (run / "CARD.md").is_file() and (run / "stages" / "functions.json").is_file()
        rows = read_metrics(run / "metrics.jsonl")
        outcomes.append(([row["loss"] for row in rows], load_file(run / "model" / "model.safetensors")))
    (losses, weights), (other_losses, other_weights) = outcomes
    assert losses == pytest.approx(other_losses, rel=2e-5)
    assert all(torch.allclose(weights[name], other_weights[name], rtol=1e-3, atol=2e-5) for name in weights)
    assert "2 ranks" in (tmp_path / "run2" / "CARD.md").read_text(encoding="utf-8")


def test_error_of_rank_0_is_printed_once_without_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = torchrun_codekiln("train", "demo", "--out", tmp_path / "run", "--code", tmp_path / "empty")
    assert done.returncode != 0
    assert done.stderr.count("codekiln: error:") == 1 and str(tmp_path / "empty") in done.stderr
    assert "RuntimeError" not in done.stderr and "Connection closed" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_rank_run_killed_ten_times_equals_an_undisturbed_run(small_run: Path, tmp_path: Path) -> None:
    """Bit-identical, because the same ranks add in the same order."""
    options: dict[str, Any] = {**MUON, "n_steps": 60, "save_every": 2}
    straight = finish_training(2, small_run, tmp_path / "straight", **options)
    soaked = tmp_path / "soaked"
    for kill in range(10):
        train_until_killed(2, small_run, soaked, 4 + 5 * kill, **options)
    finish_training(2, small_run, soaked, **options)
    timed = {"seconds", "tokens_per_second", "matmul_efficiency"}
    rows, other_rows = (
        [{key: value for key, value in row.items() if key not in timed} for row in read_metrics(run / "metrics.jsonl")]
        for run in (straight, soaked)
    )
    assert rows == other_rows and len(rows) == 60
    weights, other_weights = (load_file(run / "weights.safetensors") for run in (straight, soaked))
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
