"""TensorBoard and Weights & Biases: loggers that receive a copy of metrics.jsonl."""

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codekiln.errors import ConfigError
from codekiln.extras import import_optional
from codekiln.files import read_json, write_json
from codekiln.metrics_log import MetricSink, MetricsRow

FLUSH_SECONDS = 5
LOGGERS = ("tensorboard", "wandb")


def build_loggers(names: Sequence[str], run: Path) -> list[MetricSink]:
    """The loggers of a run by name. Raises ConfigError for an unknown name and MissingPackageError for a missing package."""
    if unknown := [name for name in names if name not in LOGGERS]:
        raise ConfigError(f"unknown logger {unknown[0]!r}: choose from {', '.join(LOGGERS)}")
    loggers: dict[str, MetricSink] = {}
    for name in names:
        if name == "tensorboard":
            loggers[name] = TensorBoardLogger(run / "tensorboard")
        else:
            loggers[name] = WandbLogger("codekiln", run.resolve().name, run)
    return list(loggers.values())


class TensorBoardLogger:
    """Event files in a folder, one scalar per field. Their wall time is the time of training.

    Each opening starts a new file, which makes TensorBoard drop the points of earlier files (`purge_step`).
    """

    def __init__(self, folder: Path) -> None:
        self._module = import_optional("torch.utils.tensorboard", "loggers")
        self._folder = folder
        self._writer: Any = None
        self._time = 0.0

    def write(self, row: MetricsRow) -> None:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(
                str(self._folder), purge_step=row["step"], max_queue=1000, flush_secs=FLUSH_SECONDS
            )
            self._time = time.time()
        self._time += row["seconds"]
        for field, value in _numbers(row).items():
            self._writer.add_scalar(field, value, row["step"], walltime=self._time)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """A run of Weights & Biases. It starts with the first row and resumes under the id in `folder`/wandb.json.

    W&B receives the rows and its own measurements of the machine, but not the terminal output or the state of git. Offline
    (WANDB_MODE=offline), each opening writes the complete log to a new folder in `folder`/wandb: sync the newest.
    """

    def __init__(self, project: str, run_name: str, folder: Path) -> None:
        self._wandb: Any = import_optional("wandb", "loggers")
        self._project, self._name, self._folder = project, run_name, folder
        self._run: Any = None
        if os.environ.get("WANDB_MODE", "online") == "online":
            with _wandb_errors(self._wandb):
                self._wandb.login(verify=False)  # asks for a key now, and not after hours of work

    def write(self, row: MetricsRow) -> None:
        if self._run is None:
            self._run = self._init_run()
        # W&B cannot remove rows: after a lost run, only rows that it did not send yet are sent.
        if row["step"] >= self._run.starting_step:
            self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _init_run(self) -> Any:
        path = self._folder / "wandb.json"
        if not path.is_file():
            write_json(path, {"id": uuid.uuid4().hex})
        with _wandb_errors(self._wandb):
            return self._wandb.init(
                project=self._project,
                name=self._name,
                id=read_json(path)["id"],
                resume="allow",
                dir=str(self._folder),
                settings=self._wandb.Settings(console="off", disable_git=True),
            )


def _numbers(row: MetricsRow) -> dict[str, float]:
    """The numeric fields of a row; texts and lists stay in the log."""
    return {field: value for field, value in row.items() if field != "step" and isinstance(value, int | float)}


@contextmanager
def _wandb_errors(wandb: Any) -> Iterator[None]:
    try:
        yield
    except wandb.Error as error:
        raise ConfigError(
            f"could not start W&B ({error}): run `wandb login`, or set WANDB_MODE=offline and run `wandb sync` later"
        ) from None
