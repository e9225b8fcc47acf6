"""The time to trace completions, and to check a limit for copies token by token.

    provenance.py RUN [--texts N]

RUN has an index and a model. Texts are 64 tokens of held-out documents, of which little is verbatim, and of training documents,
which are verbatim as a whole: the most that a completion can have. Times are processor time, because other programs use the
machine. A decode step is one token of one request on the engine that `serve` uses.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from codekiln.corpus.licenses import is_permissive
from codekiln.generate.complete import Completer, CompletionParams
from codekiln.generate.copying import CopyLimiter, CopyLimits
from codekiln.generate.provenance import open_tracer
from codekiln.generate.sampling import GREEDY
from codekiln.train.prepare import open_token_shards

N_TOKENS = 64
N_CONTEXT = 64


def texts_of(run: Path, split: str, n: int) -> list[list[int]]:
    """Random parts of documents, with the ids before them."""
    shards = open_token_shards(run / "tokens", split)
    rng = np.random.default_rng(0)
    length = N_CONTEXT + N_TOKENS
    long_enough = np.flatnonzero(shards.lengths() > length)
    found = []
    for document in rng.choice(long_enough, n):
        start = int(rng.integers(shards.lengths()[document] - length))
        found.append(shards.slice(int(document), start, start + length).tolist())
    return found


def milliseconds(run_one: Callable[[list[int]], object], texts: list[list[int]]) -> tuple[float, float]:
    """Median and 99th percentile of the processor time per text."""
    seconds = []
    for text in texts:
        begun = time.thread_time()
        run_one(text)
        seconds.append(1000 * (time.thread_time() - begun))
    return statistics.median(seconds), float(np.quantile(seconds, 0.99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", type=int, default=500)
    arguments = parser.parse_args()
    run = arguments.run
    completer = Completer.load(run, "auto")
    tracer = open_tracer(run, run / "model" / "tokenizer.json")
    limiter = CopyLimiter(tracer.index, CopyLimits(permissive=200, other=16), is_permissive)
    decode = completer.tokenizer.decode

    def trace(text: list[int]) -> None:
        tracer.find(decode(text[N_CONTEXT:]), text[N_CONTEXT:], text[:N_CONTEXT])

    def guard(text: list[int]) -> None:
        guarded = limiter.guard()
        all(guarded.allows(token) for token in text[N_CONTEXT:])

    table = Table("", "texts", "median ms", "99% ms", "median µs per token")
    for split in ("validation", "train"):
        texts = texts_of(run, split, arguments.texts)
        for name, run_one in (("trace", trace), ("limit", guard)):
            run_one(texts[0])
            median, high = milliseconds(run_one, texts)
            table.add_row(
                f"{name}, {split}", f"{len(texts)}", f"{median:.2f}", f"{high:.2f}", f"{1000 * median / N_TOKENS:.1f}"
            )
    params = CompletionParams(sampling=GREEDY, max_new_tokens=N_TOKENS)
    completer.warm_up()
    decode_ms, _ = milliseconds(lambda text: completer.complete([text[:N_CONTEXT]], params), texts[:20])
    table.add_row("completion of 64 tokens", "20", f"{decode_ms:.2f}", "", f"{1000 * decode_ms / N_TOKENS:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
