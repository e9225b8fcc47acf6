"""The cost of batches: microseconds per token of the data loader on one core, by objective and packing.

Run: `python benchmarks/loading.py RUN`. RUN is a finished run, whose tokens are read. In training, a batch is prepared
during the step before it.
"""

import argparse
import statistics
import time
from pathlib import Path

from codekiln.recipes.demo import demo
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.config import Packing
from codekiln.train.loader import BatchLoader
from codekiln.train.objectives import NextToken, Objective
from codekiln.train.prepare import open_token_shards

ROWS, CONTEXT, N_BATCHES = 16, 256, 100
CASES: tuple[tuple[str, Objective, Packing], ...] = (
    ("next token, joined", NextToken(), "concat"),
    ("next token, apart", NextToken(), "packed"),
    ("the demo's mixture", demo().train.objective, "packed"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    begun = time.perf_counter()
    shards, tokenizer = open_token_shards(run / "tokens", "train"), Tokenizer.load(run / "tokenizer.json")
    n_tokens = int(shards.lengths().sum())
    print(f"{n_tokens:,} tokens checked and opened in {time.perf_counter() - begun:.2f} s")
    for name, objective, packing in CASES:
        begun = time.perf_counter()
        loader = BatchLoader(
            shards, tokenizer, objective, context_length=CONTEXT, batch_size=ROWS, seed=0, packing=packing
        )
        loader.batch(0)
        planned = time.perf_counter() - begun
        seconds = []
        for step in range(1, N_BATCHES):
            begun = time.process_time()
            loader.batch(step)
            seconds.append(time.process_time() - begun)
        seconds_per_token = statistics.median(seconds) / (ROWS * CONTEXT)
        print(f"{name}: {1e6 * seconds_per_token:.2f} µs per token; an epoch planned in {planned:.2f} s")


if __name__ == "__main__":
    main()
