"""Metrics told to TensorBoard and Weights & Biases, read back by their own readers."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from codekiln.files import JsonObject, read_json
from codekiln.metrics_log import MetricsLog, read_metrics
from codekiln.train.loggers import TensorBoardLogger, build_loggers

# Writes the rows of the log argv[1] from step argv[3] to before argv[4] into the log of the run argv[2].
SENDS = """
import sys
from pathlib import Path
from codekiln.train.metrics import MetricsLog, read_metrics
from codekiln.train.loggers import WandbLogger
log, run, first, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
opened = MetricsLog(run / "metrics.jsonl", step=first, mirrors=[WandbLogger("ours", "small", run)])
for row in read_metrics(log)[first:last]:
    opened.write(row)
opened.close()
"""

# Writes the first ten rows of the log argv[1] into the run argv[2], wrong losses from the fourth, and dies of `kill -9`.
KILLED = """
import os, signal, sys, time
from pathlib import Path
from codekiln.train.metrics import MetricsLog, read_metrics
from codekiln.train.loggers import FLUSH_SECONDS, build_loggers
log, run = Path(sys.argv[1]), Path(sys.argv[2])
opened = MetricsLog(run / "metrics.jsonl", step=0, mirrors=build_loggers(["tensorboard"], run))
for row in read_metrics(log)[:10]:
    opened.write(row | {"loss": 99.0} if row["step"] >= 4 else row)
time.sleep(FLUSH_SECONDS + 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def sent(log: Path, run: Path, first: int, last: int) -> "subprocess.CompletedProcess[str]":
    """W&B in a process of its own, for it leaves threads and a service behind; offline, and without anyone's settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", SENDS, str(log), str(run), str(first), str(last)],
        env=environment | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def records(folder: Path) -> Iterator[Any]:
    """What W&B keeps of an offline run: a log of protocol buffers in LevelDB's format, after a header of 7 bytes."""
    data = next(folder.glob("*.wandb")).read_bytes()
    position, whole = 7, b""
    while position + 7 <= len(data):
        if (left := 32_768 - position % 32_768) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.JsonObject.FromString(whole)
            whole = b""


def history(folder: Path) -> list[JsonObject]:
    """The rows of an offline run, without what W&B adds of its own."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({"step": items["_step"]} | {k: v for k, v in items.items() if not k.startswith("_")})
    return rows


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: by tag, steps and values."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(rows: list[JsonObject]) -> dict[str, list[tuple[int, float]]]:
    """The same of a log; event files hold single precision."""
    fields = {field for row in rows for field in row if field != "step"}
    return {
        field: [(row["step"], float(np.float32(row[field]))) for row in rows if row.get(field) is not None]
        for field in fields
    }


def test_tensorboard_shows_what_stands_in_the_log(small_run: Path, tmp_path: Path) -> None:
    rows = read_metrics(small_run / "metrics.jsonl")
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0, loggers=[TensorBoardLogger(tmp_path / "tensorboard")])
    for row in rows:
        log.write(row)
    log.close()
    assert points(tmp_path / "tensorboard") == expected(rows)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


def test_a_killed_run_leaves_no_point_twice_in_tensorboard(small_run: Path, tmp_path: Path) -> None:
    """Killed with `kill -9` after step 9, gone on with from the checkpoint of step 4: what stood at 4 to 9 is told anew."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(small_run / "metrics.jsonl"), str(tmp_path)], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert points(tmp_path / "tensorboard")["loss"][4:10] == [(step, 99.0) for step in range(4, 10)]

    rows = read_metrics(small_run / "metrics.jsonl")
    resumed = MetricsLog(tmp_path / "metrics.jsonl", step=4, loggers=build_loggers(["tensorboard"], tmp_path))
    for row in rows[4:7]:
        resumed.write(row)
    resumed.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == rows[:7]
    assert points(tmp_path / "tensorboard") == expected(rows[:7])


def test_a_run_that_is_watched_late_is_shown_whole(small_run: Path, tmp_path: Path) -> None:
    rows = read_metrics(small_run / "metrics.jsonl")
    for loggers, first, last in (([], 0, 5), (build_loggers(["tensorboard"], tmp_path), 5, 8)):
        log = MetricsLog(tmp_path / "metrics.jsonl", step=first, loggers=loggers)
        for row in rows[first:last]:
            log.write(row)
        log.close()
    assert points(tmp_path / "tensorboard") == expected(rows[:8])


def test_time_in_tensorboard_is_time_of_training(small_run: Path, tmp_path: Path) -> None:
    rows = read_metrics(small_run / "metrics.jsonl")
    mirror = TensorBoardLogger(tmp_path)
    for row in rows:
        mirror.write(row)
    mirror.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    assert times[-1] - times[0] == pytest.approx(sum(row["seconds"] for row in rows[1:]), abs=1e-5)


def test_words_and_lists_stay_in_the_log(tmp_path: Path) -> None:
    row = {"step": 0, "seconds": 0.5, "loss": 2.0, "skipped": "the gradient's norm is 9", "documents": [1, 2]}
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0, loggers=build_loggers(["tensorboard"], tmp_path))
    log.write(row | {"validation_bits_per_byte": None})
    log.close()
    assert points(tmp_path / "tensorboard") == {"seconds": [(0, 0.5)], "loss": [(0, 2.0)]}


def test_nothing_is_written_before_the_first_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0, loggers=build_loggers(["tensorboard"], tmp_path))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to watch with is called 'aim': known are tensorboard, wandb"):
        build_loggers(["tensorboard", "aim"], tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_by_its_extra(name: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules[{name!r}] = None; from pathlib import Path\n"
        "from codekiln.train.loggers import build_loggers\n"
        f"try:\n build_loggers([{name!r}], Path({str(tmp_path)!r}))\n"
        "except ValueError as error:\n print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{name} is not installed: pip install 'codekiln[watch]'\n"


def test_wandb_goes_on_offline_under_its_id_with_the_whole_log(small_run: Path, tmp_path: Path) -> None:
    """Stopped after step 9, gone on with from the checkpoint of step 4; the newest folder alone is the whole run."""
    log, run = small_run / "metrics.jsonl", tmp_path / "run"
    sent(log, run, 0, 10)
    name = read_json(run / "wandb.json")["id"]
    first = next((run / "wandb").glob(f"offline-run-*-{name}"))
    assert history(first) == read_metrics(log)[:10]
    assert "wandb sync" in sent(log, run, 4, 12).stderr
    (second,) = set((run / "wandb").glob(f"offline-run-*-{name}")) - {first}
    assert history(second) == read_metrics(log)[:12] == read_metrics(run / "metrics.jsonl")
    begun = next(record.run for record in records(second) if record.WhichOneof("record_type") == "run")
    assert (begun.run_id, begun.project, begun.display_name, begun.git.commit) == (name, "ours", "small", "")


def test_wandb_without_a_key_is_told_before_any_work(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from codekiln.train.loggers import build_loggers\n"
        "try:\n build_loggers(['wandb'], Path('.'))\nexcept ValueError as error:\n print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith("W&B does not start (") and "set WANDB_MODE=offline" in done.stdout
