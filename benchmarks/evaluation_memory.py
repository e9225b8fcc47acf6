"""The memory of an evaluation with many samples: `codekiln evaluate --samples` on HumanEval.

    evaluation_memory.py DATA [--per-problem N] [--characters N]

DATA is the folder with HumanEval.jsonl.gz. Each sample is a wrong body and a comment, which runs fast. Prints the peak resident
memory of the largest process, which is the evaluator, and how long it took.
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--per-problem", type=int, default=100)
    parser.add_argument("--characters", type=int, default=1000, help="of each sample")
    arguments = parser.parse_args()
    with gzip.open(arguments.data / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        task_ids = [json.loads(line)["task_id"] for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        with samples.open("w", encoding="utf-8") as file:
            for number in range(arguments.per_problem):
                completion = f"    return {number}  # {'x' * arguments.characters}\n"
                for task_id in task_ids:
                    file.write(json.dumps({"task_id": task_id, "completion": completion}) + "\n")
        command = [sys.executable, "-m", "codekiln", "evaluate", "--samples", str(samples), "--on", "humaneval"]
        command += ["--data", str(arguments.data), "--verdict", "compat", "--out", f"{folder}/out"]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{arguments.per_problem * len(task_ids):,} samples: {peak:,.0f} MiB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
