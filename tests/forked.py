"""Functions in processes of their own, forked from a process that has imported PyTorch: an import takes seconds of CPU time.

The forked processes can be signalled and killed as any other. They inherit the environment of the process that they are forked
from, not of a test.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from uuid import uuid4

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["codekiln.pipeline", "tests.programs.train_on_ranks"])


def start_forked(function: Callable[..., object], *arguments: object, **options: object) -> BaseProcess:
    """Starts a function. Its exit status is 1 after an exception, and minus the number of a signal that killed it."""
    process = _FORKS.Process(target=function, args=arguments, kwargs=options)
    process.start()
    return process


def run_on_ranks(n: int, function: Callable[..., object], *arguments: object, restarts: int = 0) -> None:
    """Runs a function on n ranks, which torchrun's agent starts, and restarts up to `restarts` times if one fails.

    Raises ChildFailedError if one fails again.
    """
    config = LaunchConfig(  # as `torchrun --standalone` fills it
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(uuid4()),
        max_restarts=restarts,
        start_method="forkserver",
    )
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        elastic_launch(config, _run_on_one_thread)(function, *arguments)
    finally:
        for number, handler in handlers.items():  # the agent replaces them
            signal.signal(number, handler)


def _run_on_one_thread(function: Callable[..., object], *arguments: object) -> None:
    """Runs a function as torchrun does: several ranks have one thread each. After SIGTERM, a rank has done its work."""
    torch.set_num_threads(1)
    with suppress(KeyboardInterrupt):
        function(*arguments)


def signal_ranks(number: int, *, only_one: bool = False) -> None:
    """Sends a signal to the ranks that `run_on_ranks` runs in another thread, or to the last one only."""
    pids = sorted(process.pid for process in multiprocessing.active_children() if process.pid is not None)
    for pid in pids[-1:] if only_one else pids:
        os.kill(pid, number)
