"""Runs tasks on Daft: on the threads of this machine, or on the workers of a Ray cluster. Each finished task leaves a file.

A task is a number below n. It writes its result atomically, and is not run again once that exists, so that interrupted work
resumes, and a worker that is lost costs one task. On a cluster, all workers must see the folder of the run.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Literal

from codekiln.errors import CodekilnError, ConfigError, MissingPackageError
from codekiln.extras import import_optional
from codekiln.machine import usable_cores
from codekiln.progress import print_line, progress_bar

EngineKind = Literal["native", "ray"]
MIN_MEMORY_BYTES = 200_000_000
CONNECT_SECONDS = 10
MAX_FAILURES = 3  # of workers, without a task that was finished in between


class EngineError(CodekilnError):
    """The engine failed, and trying again did not help."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where tasks run, and how much memory they may use on each machine."""

    kind: EngineKind = "native"
    ray_address: str | None = None  # None starts Ray on this machine
    memory_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise ConfigError(f"--memory is {self.memory_bytes:,} bytes: at least {MIN_MEMORY_BYTES:,} are needed")
        if self.ray_address is not None and self.kind != "ray":
            raise ConfigError("--ray-address is the address of a Ray cluster: add --engine ray")

    def start(self) -> None:
        """Selects the runner of Daft. Raises EngineError if the Ray cluster cannot be reached."""
        # No engine reports to its makers, and Codekiln draws the progress.
        os.environ.update({"DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0"})
        os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
        daft = import_optional("daft", "corpus")
        try:
            if self.kind == "native":
                _use_native(daft)
                return
            ray = import_optional("ray", "ray")
            if self.ray_address is not None:
                _require_listener(self.ray_address)
            if not ray.is_initialized():
                ray.init(
                    address=self.ray_address, include_dashboard=False, log_to_driver=False, logging_level="warning"
                )
            daft.set_runner_ray(noop_if_initialized=True)
        except (MissingPackageError, ConfigError):
            raise
        except (ConnectionError, RuntimeError, ValueError, OSError, daft.exceptions.DaftCoreException) as error:
            where = "" if self.kind == "native" else f" ({self.ray_address or 'on this machine'})"
            raise EngineError(f"the engine {self.kind} does not start{where}: {_first_line(error)}") from None

    @property
    def n_workers(self) -> int:
        """Processors that run tasks."""
        if self.kind == "ray":
            return max(1, int(import_optional("ray", "ray").cluster_resources().get("CPU", 1)))
        return usable_cores()

    @property
    def worker_memory_bytes(self) -> int:
        """The share of a worker in the memory of its machine. All have the share of those on the machine with the most."""
        if self.kind == "native":
            return self.memory_bytes // self.n_workers
        processors = [
            node["Resources"].get("CPU", 0) for node in import_optional("ray", "ray").nodes() if node["Alive"]
        ]
        return self.memory_bytes // max(1, int(max(processors, default=1)))

    def run(
        self, title: str, task: Callable[[int], None], finished: Callable[[int], Path], sizes: Sequence[int]
    ) -> None:
        """Runs task(k) for each k below len(sizes) unless the file finished(k) exists. Progress is in units of `sizes`.

        An exception of a task is raised. If a worker of Ray dies, its tasks are run again.
        """
        left = [k for k in range(len(sizes)) if not finished(k).is_file()]
        done = sum(sizes) - sum(sizes[k] for k in left)
        failures = 0
        with count_interrupts() as interrupts, progress_bar(title, sum(sizes), done=done) as progress:
            while left:
                try:
                    for k in self._map(task, left):
                        progress.advance(sizes[k])
                    error = None
                except Exception as found:
                    if self.kind == "native" or isinstance(found, CodekilnError):
                        raise
                    error = found
                if interrupts:  # the engine may return after Ctrl-C as if it had finished
                    raise KeyboardInterrupt
                still_left = [k for k in left if not finished(k).is_file()]
                failures = failures + 1 if len(still_left) == len(left) else 0
                if still_left and (error is None or failures == MAX_FAILURES):
                    raise EngineError(f"{title}: {len(still_left)} of {len(sizes)} tasks did not finish") from error
                if still_left:
                    print_line(f"{title}: a worker was lost ({_first_line(error)}); {len(still_left)} tasks run again")
                left = still_left

    def _map(self, task: Callable[[int], None], numbers: Sequence[int]) -> Iterator[int]:
        """Runs the task for each number, in parallel; yields each number when its task is finished."""
        import daft  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415

        @daft.func.batch(return_dtype=daft.DataType.int64(), batch_size=1)
        def run(batch: daft.Series) -> list[int]:
            for k in batch.to_pylist():
                task(k)
                pa.default_memory_pool().release_unused()
            return list(batch.to_pylist())

        frame = daft.from_pydict({"task": list(numbers)})
        if self.kind == "ray":
            frame = frame.into_partitions(len(numbers))
        for row in frame.into_batches(1).select(run(daft.col("task")).alias("task")).iter_rows(results_buffer_size=1):
            yield int(row["task"])


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """How the corpus is built, which does not change it. `keep` continues with a corpus although its code has changed."""

    engine: Engine = field(default_factory=Engine)
    keep: bool = False
    keep_dropped: bool = False


def parse_bytes(text: str) -> int:
    """A number of bytes: "2GB", "500MB" or "1000000". Raises ConfigError."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    plain = text.strip().upper()
    number = plain.rstrip("KMGTB")
    with contextlib.suppress(ValueError, OverflowError):
        if (unit := plain[len(number) :]) in units and float(number) > 0:
            return int(float(number) * units[unit])
    raise ConfigError(f"{text!r} is not a size: write for example 2GB or 500MB")


@contextlib.contextmanager
def count_interrupts() -> Iterator[list[int]]:
    """Within the block, Ctrl-C is recorded in the list before it interrupts: the engine may swallow the exception.

    Has no effect outside of the main thread.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def _require_listener(address: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT. Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--ray-address is {address!r}: write HOST:PORT, for example 10.0.0.1:6379")
    socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _use_native(daft: ModuleType) -> None:
    """Selects the runner, which a process does once. Without, Daft imports Ray to find out whether it runs."""
    try:
        daft.set_runner_native()
    except daft.exceptions.DaftCoreException:
        if daft.get_or_infer_runner_type() != "native":
            raise


def _first_line(error: Exception | None) -> str:
    return (str(error).splitlines() or [""])[0][:200]
