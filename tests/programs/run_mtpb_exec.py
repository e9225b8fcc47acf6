"""Judges programs with CodeGen's mtpb_exec.py: [program, expected] as JSON in, its own lines out."""

import importlib.util
import json
import sys
from typing import Any

spec = importlib.util.spec_from_file_location("mtpb_exec", sys.argv[1])
assert spec is not None and spec.loader is not None
mtpb_exec: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mtpb_exec)
guard = mtpb_exec.reliability_guard
mtpb_exec.reliability_guard = lambda _: guard(
    None
)  # it passes a limit of memory as a float, which Python refuses since 3.10
problems = [
    {"id": "x", "test_id": 0, "completions": program, "gold_output": expected}
    for program, expected in json.load(sys.stdin)
]
mtpb_exec.eval_problems(problems, verbose=False)
