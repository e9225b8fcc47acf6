"""Many ranks as one: real torchrun ranks on gloo train as one process does, and take over each other's checkpoints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codekiln.metrics_log import read_metrics
from codekiln.train.checkpoint import list_checkpoints
from codekiln.train.parallel import init_distributed
from tests.small import write_tree

ROOT = Path(__file__).parent.parent
PROGRAM = """
import json, sys
from collections.abc import Sequence
from pathlib import Path
from codekiln.model.configs import CodeGenConfig, InCoderConfig, KilnConfig
from codekiln.model.tensors import save_safetensors, named_weights
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.loader import Loader
from codekiln.train.loop import Hardware, TrainConfig, train
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import AdamWConfig, MuonConfig, WarmupCosine
from codekiln.train.parallel import init_distributed, whole
from torch.distributed.tensor import DTensor

source, run = Path(sys.argv[1]), Path(sys.argv[2])
asked = json.loads(sys.argv[3])
configs = {
    "kiln": KilnConfig(2, 32, 4, 2, 16, 64, 384, 64),
    "kiln, untied": KilnConfig(2, 32, 4, 2, 16, 64, 384, 64, tie_embeddings=False),
    "codegen": CodeGenConfig(2, 32, 4, 4, 8, 128, 384, 64, rotary_dim=4),
    "incoder": InCoderConfig(2, 32, 4, 4, 8, 128, 384, 64),
}
optimizer = MuonConfig() if asked.get("muon") else AdamWConfig(lr=3e-3, schedule=WarmupCosine(4))
plan = TrainConfig(
    NextToken(), total_tokens=64 * 8 * asked.get("steps", 12), global_batch_size=8, optimizer=optimizer, eval_every=6,
    eval_sequences=8, save_every=asked.get("save_every", 6), z_loss=1e-4,
    packing="concat" if asked.get("config") == "codegen" else "packed",
)
hardware = Hardware(
    micro_batch_tokens=64 * asked.get("micro_rows", 2), compile=asked.get("compile", False),
    tensor_parallel=asked.get("tensor", 1), recompute=asked.get("recompute", False),
)
if "spoiled" in asked:
    kept = Loader.batch

    def batch(self, step, part=(0, 1)):
        found = kept(self, step, part)
        here = 4 - part[0] * len(found.ids)  # the fifth row of all
        if step == asked["spoiled"] and self._rows == 8 and 0 <= here < len(found.ids):
            found.loss_weights[here, 0] = float("inf")
        return found

    Loader.batch = batch
with init_distributed("cpu", tensor_parallel=hardware.tensor_parallel) as ranks:
    model = train(
        plan, configs[asked.get("config", "kiln")], tokens=source / "tokens",
        tokenizer=Tokenizer.load(source / "tokenizer.json"), run=run, hardware=hardware, inputs={}, ranks=ranks,
    )
    assert ranks.world_size == 1 or all(isinstance(weight, DTensor) for weight in named_weights(model).values())
    weights = {name: whole(weight) for name, weight in named_weights(model).items()}
    if ranks.is_main:
        save_safetensors(run / "weights.safetensors", weights)
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def torchrun(n: int, *arguments: str, seconds: int = 120) -> subprocess.CompletedProcess[str]:
    """A program, or a module behind -m, on n ranks, to its end."""
    command = [sys.executable, *TORCHRUN, str(n), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


def started(
    n: int, source: Path, run: Path, *, restarts: int = 0, meeting: Sequence[str] = (), **asked: Any
) -> subprocess.Popen[str]:
    """The program on n ranks that torchrun starts, one of several nodes if they are to meet; on one, in a process alone."""
    run.mkdir(parents=True, exist_ok=True)
    how = [*TORCHRUN[:2], *(meeting or TORCHRUN[2:3]), TORCHRUN[3]]
    start = [*how, str(n), "--max-restarts", str(restarts)] if n > 1 or meeting else []
    program = run / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *start, str(program), str(source), str(run), json.dumps(asked)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def done(n: int, source: Path, run: Path, **asked: Any) -> Path:
    process = started(n, source, run, **asked)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told[-4000:]
    return run


def assert_same(one: Path, other: Path, *, tolerance: float = 2e-5) -> None:
    """Equal losses, norms, validations and weights but for the order of addition."""
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
    """Runs of one process, by config."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        "kiln": done(1, small_run, folder / "kiln"),
        "muon": done(1, small_run, folder / "muon", muon=True, config="kiln, untied"),
        "incoder": done(1, small_run, folder / "incoder", config="incoder"),
        "codegen": done(1, small_run, folder / "codegen", config="codegen"),
    }


def test_two_ranks_train_as_one_process_does(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    assert_same(alone["kiln"], done(2, small_run, tmp_path / "two"))


def test_four_ranks_with_muon_train_as_one_process_does(
    alone: dict[str, Path], small_run: Path, tmp_path: Path
) -> None:
    assert_same(alone["muon"], done(4, small_run, tmp_path / "four", muon=True, config="kiln, untied"))


@pytest.mark.parametrize("config", ["kiln", "codegen"])
def test_two_ranks_that_share_layers_train_as_one_process_does(
    alone: dict[str, Path], small_run: Path, tmp_path: Path, config: str
) -> None:
    assert_same(
        alone[config], done(2, small_run, tmp_path / "tensor", config=config, tensor=2, activation_checkpointing=True)
    )


@pytest.mark.slow
def test_a_batch_that_is_bad_on_one_rank_is_left_out_by_all(small_run: Path, tmp_path: Path) -> None:
    alone, two = (done(n, small_run, tmp_path / str(n), spoiled=5) for n in (1, 2))
    rows, other_rows = (read_metrics(run / "metrics.jsonl") for run in (alone, two))
    assert [row["step"] for row in rows if "skipped" in row] == [5]
    assert rows[5]["documents"] == other_rows[5]["documents"] and "the loss is" in other_rows[5]["skipped"]
    for run, kept in ((alone, rows), (two, other_rows)):
        lines = [json.dumps(row) for row in kept if "skipped" not in row]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert_same(alone, two)


@pytest.mark.slow  # blocks and the loss are compiled by each rank
def test_two_ranks_with_compiled_parts_train_as_one_process_does(
    alone: dict[str, Path], small_run: Path, tmp_path: Path
) -> None:
    assert_same(alone["kiln"], done(2, small_run, tmp_path / "compiled", compile=True), tolerance=1e-4)


def test_two_by_two_ranks_train_as_one_process_does(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    assert_same(alone["incoder"], done(4, small_run, tmp_path / "both", tensor=2, config="incoder", micro_rows=1))


def test_a_run_goes_on_with_another_number_of_ranks(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    """Killed on two ranks, killed on four, and to its end in one process, as undisturbed alone."""
    run = tmp_path / "run"
    for n, at in ((2, 2), (4, 6)):
        process = started(n, small_run, run, save_every=2, muon=True, config="kiln, untied")
        killed_after(process, run, at)
        last = list_checkpoints(run / "checkpoints")[-1]
        assert len(list(last.glob("*.safetensors"))) == n
    done(1, small_run, run, save_every=2, muon=True, config="kiln, untied")
    assert_same(alone["muon"], run)


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Until a checkpoint of a later step stands."""
    deadline = time.monotonic() + 200
    while not (found := list_checkpoints(run / "checkpoints")) or int(found[-1].name[5:]) <= step:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    told = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    return [int(number) for number in told.split()]


def killed_after(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Kills one of torchrun's ranks: the others are ended and torchrun reports a failure."""
    wait_for_checkpoint(process, run, step)
    os.kill(children_of(process)[-1], signal.SIGKILL)
    process.communicate(timeout=240)  # generous: PyTorch's own limit for lost ranks is ten minutes
    assert process.returncode != 0


def test_torchrun_starts_a_run_again_whose_rank_died(alone: dict[str, Path], small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(2, small_run, run, restarts=1, save_every=2, muon=True, config="kiln, untied")
    wait_for_checkpoint(process, run, 4)
    os.kill(children_of(process)[-1], signal.SIGKILL)
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 0, told[-4000:]
    assert_same(alone["muon"], run)


def test_nodes_that_could_not_start_again_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "2",
                        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"),
        init_distributed("cpu"),
    ):
        pass


@pytest.mark.slow
def test_two_nodes_start_again_together(
    alone: dict[str, Path], small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two agents as on two machines; a rank of one dies, which the other does not count as a restart."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    run = tmp_path / "run"
    meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1"]
    asked: dict[str, Any] = {"restarts": 3, "save_every": 2, "muon": True, "config": "kiln, untied"}
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    nodes = [started(1, small_run, run, meeting=meeting, **asked) for _ in range(2)]
    wait_for_checkpoint(nodes[1], run, 4)
    os.kill(children_of(nodes[1])[-1], signal.SIGKILL)
    for node in nodes:
        told, _ = node.communicate(timeout=200)
        assert node.returncode == 0, told[-4000:]
    assert_same(alone["muon"], run)


@pytest.mark.parametrize("tensor", [1, 2])
def test_sigterm_to_torchrun_saves_the_step_under_way(small_run: Path, tmp_path: Path, tensor: int) -> None:
    run = tmp_path / "run"
    process = started(2, small_run, run, steps=400, save_every=400, tensor=tensor)
    deadline = time.monotonic() + 200
    while len(read_metrics(run / "metrics.jsonl")) < 5:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    last = list_checkpoints(run / "checkpoints")[-1]
    assert int(last.name[5:]) == len(read_metrics(run / "metrics.jsonl"))


def test_a_process_joins_one_world_after_the_other(tmp_path: Path) -> None:
    program = tmp_path / "worlds.py"
    program.write_text(
        "from codekiln.train.parallel import init_distributed\n"
        "for _ in range(4):\n"
        "    with init_distributed('cpu') as ranks:\n"
        "        assert ranks.summed([1.0 + ranks.rank]) == [3.0]\n",
        encoding="utf-8",
    )
    told = torchrun(2, str(program))
    assert told.returncode == 0, told.stderr[-3000:]


def test_matrices_are_worked_on_whole_by_one_rank_each(tmp_path: Path) -> None:
    """Three ranks, rows that do not divide over them, fewer matrices than ranks, ranks without rows."""
    program = tmp_path / "owners.py"
    program.write_text(
        "import torch\n"
        "from torch.distributed.tensor import Shard, distribute_tensor\n"
        "from codekiln.train.optimizer import orthogonalized\n"
        "from codekiln.train.parallel import apply_on_owner_rank, init_distributed\n"
        "with init_distributed('cpu') as ranks:\n"
        "    for n, shape in ((4, (7, 5)), (2, (2, 6)), (3, (9, 9)), (7, (4, 3))):\n"
        "        torch.manual_seed(n)\n"
        "        whole = torch.randn(n, *shape)\n"
        "        spread = [distribute_tensor(m, ranks.mesh['data'], [Shard(0)]) for m in whole]\n"
        "        wanted = [distribute_tensor(m, ranks.mesh['data'], [Shard(0)]) for m in orthogonalized(whole)]\n"
        "        seen = []\n"
        "        found = apply_on_owner_rank(lambda m: (seen.append(len(m)), orthogonalized(m))[1], spread)\n"
        "        assert sum(seen) == len(range(ranks.rank, n, 3)), seen\n"
        "        for part, right in zip(found, wanted, strict=True):\n"
        "            torch.testing.assert_close(part, right.to_local(), rtol=1e-5, atol=1e-6)\n",
        encoding="utf-8",
    )
    told = torchrun(3, str(program))
    assert told.returncode == 0, told.stderr[-3000:]


def test_the_command_builds_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    """All stages: the first rank does what comes before and after training."""
    code = write_tree(tmp_path / "code")
    settings = [
        "tokenizer.vocab_size=384", "model.vocab_size=384", "model.n_layers=1", "model.d_model=32", "model.d_ff=64",
        "model.n_kv_heads=1", "model.d_head=16", "train.total_tokens=8192", "train.global_batch_size=4", "train.eval_sequences=4",
        "corpus.validation_fraction=0.2", "infilling.n_problems=4", "infilling.max_new_tokens=8", "min_free_bytes=1000000",
    ]  # fmt: skip
    outcomes = []
    for n in (1, 2):
        run = tmp_path / f"run{n}"
        told = torchrun(
            n, "-m", "codekiln", "build", "demo", "--out", str(run), "--code", str(code), "--license", "MIT", "--no-compile",
            *(part for setting in settings for part in ("--set", setting)), seconds=280,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr[-3000:]
        assert (run / "CARD.md").is_file() and (run / "stages" / "functions.json").is_file()
        rows = read_metrics(run / "metrics.jsonl")
        outcomes.append(([row["loss"] for row in rows], load_file(run / "model" / "model.safetensors")))
    (losses, weights), (other_losses, other_weights) = outcomes
    assert losses == pytest.approx(other_losses, rel=2e-5)
    assert all(torch.allclose(weights[name], other_weights[name], rtol=1e-3, atol=2e-5) for name in weights)
    assert "2 ranks" in (tmp_path / "run2" / "CARD.md").read_text(encoding="utf-8")


def test_what_stops_the_first_rank_is_told_once_and_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["-m", "codekiln", "build", "demo", "--out", str(tmp_path / "run"), "--code", str(tmp_path / "empty")]
    told = torchrun(2, *command)
    assert told.returncode != 0
    assert told.stderr.count(f"{tmp_path / 'empty'} holds no") == 1
    assert "RuntimeError" not in told.stderr and "Connection closed" not in told.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_two_rank_run_killed_ten_times_ends_like_an_undisturbed_one(small_run: Path, tmp_path: Path) -> None:
    """To the bit: the same ranks add in the same order."""
    asked: dict[str, Any] = {"steps": 60, "save_every": 2, "muon": True, "config": "kiln, untied"}
    straight = done(2, small_run, tmp_path / "straight", **asked)
    soaked = tmp_path / "soaked"
    for kill in range(10):
        killed_after(started(2, small_run, soaked, **asked), soaked, 4 + 5 * kill)
    done(2, small_run, soaked, **asked)
    timed = {"seconds", "tokens_per_second", "matmul_efficiency"}
    rows, other_rows = (
        [{key: value for key, value in row.items() if key not in timed} for row in read_metrics(run / "metrics.jsonl")]
        for run in (straight, soaked)
    )
    assert rows == other_rows and len(rows) == 60
    weights, other_weights = (load_file(run / "weights.safetensors") for run in (straight, soaked))
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
