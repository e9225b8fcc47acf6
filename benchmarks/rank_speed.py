"""Tokens per second of two gloo ranks with one thread each, compared with one process with two threads.

Run: `python benchmarks/rank_speed.py RUN [--size 5M] [--rounds 2]`. It takes about ten minutes on two cores. RUN is a
finished run, whose tokens are read. Both train the same model on the same batches with the defaults of
`codekiln.train.loop.train`, in alternating order. Prints the median of the steps, without the first step and those with an
evaluation.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from processes import python_on

from codekiln.metrics_log import read_metrics
from codekiln.model.configs import kiln
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.config import RuntimeConfig, TrainConfig
from codekiln.train.loop import train
from codekiln.train.objectives import NextToken
from codekiln.train.parallel import init_distributed

CONTEXT, BATCH_ROWS, N_STEPS = 512, 32, 8


def work(source: Path, out: Path, size: str) -> None:
    """What each rank does, or the process alone."""
    tokenizer = Tokenizer.load(source / "tokenizer.json")
    config = kiln(size, vocab_size=tokenizer.vocab_size, context_length=CONTEXT)
    n_tokens = N_STEPS * BATCH_ROWS * CONTEXT
    plan = TrainConfig(objective=NextToken(), total_tokens=n_tokens, global_batch_size=BATCH_ROWS, save_every=N_STEPS)
    with init_distributed("cpu") as world:
        train(
            plan,
            config,
            tokens=source / "tokens",
            tokenizer=tokenizer,
            run=out,
            runtime=RuntimeConfig(),
            inputs={},
            world=world,
        )


def tokens_per_second(n_ranks: int, source: Path, size: str) -> list[float]:
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [*python_on(n_ranks), __file__, str(source), "--size", size, "--work", out],
            env=os.environ | {"OMP_NUM_THREADS": str(2 // n_ranks)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = read_metrics(Path(out) / "metrics.jsonl")[1:]
        return [row["tokens_per_second"] for row in rows if "validation_bits_per_byte" not in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", default="5M")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="be a rank that writes here")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.run, arguments.work, arguments.size)
        return
    seen: dict[int, list[float]] = {1: [], 2: []}
    for k in range(arguments.rounds):
        for n in (1, 2) if k % 2 == 0 else (2, 1):
            seen[n] += tokens_per_second(n, arguments.run, arguments.size)
    alone, two = (statistics.median(seen[n]) for n in (1, 2))
    print(f"{arguments.size}: one process {alone:,.0f} tokens/s, two ranks {two:,.0f}: {two / alone:.0%}")


if __name__ == "__main__":
    main()
