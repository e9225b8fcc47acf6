"""Helpers of the benchmarks: the memory of processes, and programs that run as several ranks."""

import sys
from pathlib import Path


def memory_kilobytes(line: str = "VmHWM") -> int:
    """A line of this process' memory, its peak without a name, as Linux reports it: in kilobytes of 1,024."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{line}:")[1].split()[0])


def python_on(n_ranks: int) -> list[str]:
    """What starts a program on as many ranks of this machine; on one, in a process alone."""
    world = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
    return [sys.executable, *(world if n_ranks > 1 else [])]
