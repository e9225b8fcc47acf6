"""Metrics in TensorBoard and Weights & Biases, read with their own readers."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from codekiln.files import JsonObject, read_json
from codekiln.metrics_log import MetricsLog, read_metrics
from codekiln.train.loggers import TensorBoardLogger, build_loggers
from tests.small import ROOT, program, run_program

NUMBERS = ("tokens", "loss", "grad_norm", "lr", "lr_scale", "seconds", "tokens_per_second", "matmul_efficiency")


def without_wandb_settings() -> dict[str, str]:
    """The environment of this process without settings of W&B."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


def log_to_wandb(log: Path, run: Path, first: int, last: int) -> "subprocess.CompletedProcess[str]":
    """Logs rows offline in another process, because W&B leaves threads and a service running."""
    return subprocess.run(
        program("log_to_wandb.py", log, run, first, last),
        env=without_wandb_settings() | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def records(folder: Path) -> Iterator[Any]:
    """The records of an offline run: protocol buffers in the log format of LevelDB, after a header of 7 bytes."""
    data = next(folder.glob("*.wandb")).read_bytes()
    position, whole = 7, b""
    while position + 7 <= len(data):
        if (left := 32_768 - position % 32_768) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def history(folder: Path) -> list[JsonObject]:
    """The rows of an offline run, without the fields that W&B adds."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({"step": items["_step"]} | {k: v for k, v in items.items() if not k.startswith("_")})
    return rows


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values that TensorBoard shows, by tag."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The same of the rows of a log. Event files have single precision."""
    fields = {field for row in rows for field in row if field != "step"}
    return {
        field: [(row["step"], float(np.float32(row[field]))) for row in rows if row.get(field) is not None]
        for field in fields
    }


def test_tensorboard_shows_the_rows_of_the_log(small_run: Path, tmp_path: Path) -> None:
    rows = read_metrics(small_run / "metrics.jsonl")
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0, sinks=[TensorBoardLogger(tmp_path / "tensorboard")])
    for row in rows:
        log.write(row)
    log.close()
    assert points(tmp_path / "tensorboard") == expected(rows)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


@pytest.mark.process
def test_killed_run_has_no_repeated_points_in_tensorboard(small_run: Path, tmp_path: Path) -> None:
    """Killed with `kill -9` after step 9 and resumed from the checkpoint of step 4: the points of steps 4 to 9 are replaced."""
    killed = run_program("log_and_die.py", small_run / "metrics.jsonl", tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert points(tmp_path / "tensorboard")["loss"][4:10] == [(step, 99.0) for step in range(4, 10)]

    rows = read_metrics(small_run / "metrics.jsonl")
    resumed = MetricsLog(tmp_path / "metrics.jsonl", step=4, sinks=build_loggers(["tensorboard"], tmp_path))
    for row in rows[4:7]:
        resumed.write(row)
    resumed.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == rows[:7]
    assert points(tmp_path / "tensorboard") == expected(rows[:7])


def test_logger_that_is_added_later_receives_all_rows(small_run: Path, tmp_path: Path) -> None:
    rows = read_metrics(small_run / "metrics.jsonl")
    for sinks, first, last in (([], 0, 5), (build_loggers(["tensorboard"], tmp_path), 5, 8)):
        log = MetricsLog(tmp_path / "metrics.jsonl", step=first, sinks=sinks)
        for row in rows[first:last]:
            log.write(row)
        log.close()
    assert points(tmp_path / "tensorboard") == expected(rows[:8])


def test_wall_time_in_tensorboard_is_training_time(small_run: Path, tmp_path: Path) -> None:
    rows = read_metrics(small_run / "metrics.jsonl")
    mirror = TensorBoardLogger(tmp_path)
    for row in rows:
        mirror.write(row)
    mirror.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    assert times[-1] - times[0] == pytest.approx(sum(row["seconds"] for row in rows[1:]), abs=1e-5)


def test_only_numbers_are_sent_to_loggers(tmp_path: Path) -> None:
    numbers = {name: (0, float(k)) for k, name in enumerate(NUMBERS)}
    row: Any = {name: value for name, (_, value) in numbers.items()}
    row |= {"step": 0, "skipped": "the gradient norm is 9", "documents": [1, 2], "validation_bits_per_byte": None}
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0, sinks=build_loggers(["tensorboard"], tmp_path))
    log.write(row)
    log.close()
    assert points(tmp_path / "tensorboard") == {name: [point] for name, point in numbers.items()}


def test_nothing_is_written_before_the_first_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0, sinks=build_loggers(["tensorboard"], tmp_path))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'aim'.*tensorboard, wandb"):
        build_loggers(["tensorboard", "aim"], tmp_path)


@pytest.mark.process
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_missing_package_is_named_with_its_extra(name: str, tmp_path: Path) -> None:
    done = run_program("run_without.py", name, "demo", "--out", tmp_path / "run", "--logger", name, check=False)
    assert done.returncode == 1
    assert name in done.stderr and "pip install 'codekiln[loggers]'" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_wandb_resumes_offline_with_its_id_and_all_rows(small_run: Path, tmp_path: Path) -> None:
    """Stopped after step 9 and resumed from the checkpoint of step 4: the newest folder has all rows."""
    log, run = small_run / "metrics.jsonl", tmp_path / "run"
    log_to_wandb(log, run, 0, 10)
    name = read_json(run / "wandb.json")["id"]
    first = next((run / "wandb").glob(f"offline-run-*-{name}"))
    assert history(first) == read_metrics(log)[:10]
    time.sleep(1)  # W&B names a folder after its second: two runs within one second would share it
    assert "wandb sync" in log_to_wandb(log, run, 4, 12).stderr
    (second,) = set((run / "wandb").glob(f"offline-run-*-{name}")) - {first}
    assert history(second) == read_metrics(log)[:12] == read_metrics(run / "metrics.jsonl")
    begun = next(record.run for record in records(second) if record.WhichOneof("record_type") == "run")
    assert (begun.run_id, begun.project, begun.display_name, begun.git.commit) == (name, "codekiln", "small", "")


@pytest.mark.process
def test_missing_wandb_key_is_reported_before_any_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codekiln", "demo", "--out", str(tmp_path / "run"), "--logger", "wandb"],
        env=without_wandb_settings() | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "wandb login" in done.stderr and "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()
