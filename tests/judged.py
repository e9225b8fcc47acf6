"""Problems and stored samples of benchmarks for tests of the sandbox. They are not part of the repository."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from codekiln.evaluate.programs import TestedProgram
from codekiln.files import JsonObject
from tests.peers import DATA, peer

# HumanEval problems whose tests use a function of the prompt.
HELPED = ("HumanEval/32", "HumanEval/38", "HumanEval/50")


def read_lines(path: Path) -> list[Any]:
    """The objects of a file of JSON lines. Skips the test where the file is missing."""
    if not path.exists():
        pytest.skip(f"{path} is missing: it is not part of the repository")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def human_eval() -> list[JsonObject]:
    return read_lines(DATA / "HumanEval.jsonl.gz")


def human_eval_program(problem: JsonObject, completion: str) -> TestedProgram:
    """Also of the infilling benchmarks, whose problems have a suffix."""
    return TestedProgram(
        source=problem["prompt"] + completion + problem.get("suffix", ""),
        tests=f"{problem['test']}\ncheck({problem['entry_point']})",
        functions=(problem["entry_point"],),
        helpers=problem["prompt"] + "    pass\n" if problem["task_id"] in HELPED else "",
        cpu_seconds=6.0,
    )


def samples_of_codegen(n: int) -> list[tuple[JsonObject, str]]:
    """The first samples of CodeGen-16B for each problem of HumanEval. Their prompts have no examples, and another order."""
    rows = read_lines(peer("CodeT/codegen16B_samples.jsonl"))
    problems = human_eval()
    return [(problem_of(row["prompt"], problems), sample) for row in rows for sample in row["samples"][:n]]


def problem_of(prompt: str, problems: list[JsonObject]) -> JsonObject:
    """The problem with the same function and the longest common beginning."""
    name = re.findall(r"^def (\w+)\(", prompt, re.MULTILINE)[-1]
    candidates = [problem for problem in problems if problem["entry_point"] == name]
    return max(
        candidates,
        key=lambda problem: len(os.path.commonprefix([prompt, problem["prompt"]])),  # noqa: RUF071  # of characters
    )
