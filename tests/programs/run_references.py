"""Runs programs of benchmarks with their own answers, each in a child: `run_references.py PROGRAMS.json RESULTS.json`.

Answers of models need the sandbox. Here there are only references of published files.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def run(program: dict[str, str], cpu_seconds: int) -> bool:
    """Whether a program with its tests ends without an exception, as the official code runs it."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        try:
            exec("\n".join([program["source"], program["setup"], program["tests"]]), {})  # noqa: S102
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    programs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = {}
    for task_id, program in programs.items():
        started = time.monotonic()
        results[task_id] = [run(program, int(program["cpu_seconds"]) + 1), time.monotonic() - started]
    Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
