"""The index over token ids: speed and memory of building it, and the time of a query.

    index.py RUN [--queries N]

The input is the training documents of a run. Token shards are written to a temporary folder if the run has none. Each build is
a process of its own on one or two cores; its time includes names, checksums and waiting for the disk, and its peak memory is
that of the process less the memory before building. A query is the longest match of the end of a context, of at most 64
tokens, and the counts of its next tokens. Contexts are 64 tokens of held-out documents, and of training documents, which the
index has whole. In the last rows, a decoder asks after each token of a held-out text, with the last length as the guess. Times
of queries are processor time, because other programs use the machine. Queries from the disk are milliseconds on the clock.

Peers answer the same queries over the first 300,000 tokens: a dictionary of the n-grams of up to 8 tokens with the counts of
the next token, and a search for the bytes of each length in the bytes of all ids. Lengths up to 8 must be equal.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from codekiln.corpus.documents import read_names
from codekiln.files import sha256_of
from codekiln.index import continuations
from codekiln.index.build import IndexedTokens, build_index
from codekiln.index.config import IndexConfig
from codekiln.index.continuations import find_continuations
from codekiln.index.search import Index
from codekiln.train.prepare import TokenShards, open_token_shards, prepare_shards

Ids = npt.NDArray[np.int64]
LIMIT = 64
MAX_N = 8
PEER_TOKENS = 300_000
ROUNDS = 3
FEW_BYTES = 40_000_000  # of memory, so that there are many shards


def indexed(tokens: Path) -> IndexedTokens:
    shards = open_token_shards(tokens, "train")
    vocab_size = json.loads((tokens / "manifest.json").read_text())["vocab_size"]
    return IndexedTokens(shards.ids, shards.document_offsets, vocab_size)


def build_in_child(run: Path, tokens: Path, out: Path, memory: int, cores: int) -> None:
    """Builds on some cores and prints the seconds, the processor seconds and the peak memory in MB."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    small = IndexedTokens([np.zeros(9, np.uint16)], [np.array([9])], 3)
    with tempfile.TemporaryDirectory() as folder:  # compiles, or reads what was compiled
        names = read_names(run / "corpus", "train")
        build_index(Path(folder), small, [next(names).slice(0, 1)], IndexConfig(memory_bytes=memory), {"tokenizer": ""})
    inputs = {"tokenizer": sha256_of(run / "tokenizer.json")}
    source = indexed(tokens)
    for ids in source.ids:
        ids.sum()  # into memory
    before, cpu, begun = peak_megabytes(), time.process_time(), time.perf_counter()
    build_index(out, source, read_names(run / "corpus", "train"), IndexConfig(memory_bytes=memory), inputs)
    print(json.dumps([time.perf_counter() - begun, time.process_time() - cpu, peak_megabytes() - before]))


def peak_megabytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def contexts_of(shards: TokenShards, n: int, seed: int) -> list[Ids]:
    """Random contexts of `LIMIT` tokens, each from the same document."""
    rng = np.random.default_rng(seed)
    long_enough = np.flatnonzero(shards.lengths() > LIMIT)
    found = []
    for document in rng.choice(long_enough, n):
        length = int(shards.lengths()[document])
        start = int(rng.integers(length - LIMIT))
        found.append(shards.slice(int(document), start, start + LIMIT))
    return found


class Times(NamedTuple):
    """Microseconds of processor time per query: the median and the mean over contexts, each the fastest of some rounds."""

    median: float
    mean: float


def microseconds(ask: Callable[[Ids], object], contexts: list[Ids]) -> Times:
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for context in contexts:
            begun = time.thread_time_ns()
            ask(context)
            times.append((time.thread_time_ns() - begun) / 1e3)
        rounds.append(times)
    fastest = [min(times) for times in zip(*rounds, strict=True)]
    return Times(statistics.median(fastest), statistics.mean(fastest))


def ask(index: Index, context: Ids) -> int:
    return find_continuations(index.shards, np.array(context), LIMIT).length


def decode(index: Index, document: Ids) -> None:
    """Asks after each token, as a decoder does."""
    longest = 0
    for i in range(len(document)):
        context = np.array(document[max(0, i + 1 - LIMIT) : i + 1])
        longest = find_continuations(index.shards, context, min(LIMIT, longest + 1), guess=longest + 1).length


def first_documents(source: IndexedTokens, n_tokens: int) -> list[list[int]]:
    ids, ends = source.ids[0], source.document_ends[0]
    n = int(np.searchsorted(ends, n_tokens))
    return [ids[start:stop].tolist() for start, stop in zip([0, *ends[: n - 1]], ends[:n], strict=True)]


def ngrams_of(documents: list[list[int]]) -> dict[tuple[int, ...], Counter[int]]:
    table: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for document in documents:
        for i in range(len(document)):
            following = document[i + 1] if i + 1 < len(document) else -1
            for n in range(1, min(MAX_N, i + 1) + 1):
                table[tuple(document[i + 1 - n : i + 1])][following] += 1
    return table


def ask_ngrams(table: dict[tuple[int, ...], Counter[int]], context: Ids) -> int:
    tail = context[-MAX_N:].tolist()
    return next((n for n in range(MAX_N, 0, -1) if tuple(tail[MAX_N - n :]) in table), 0)


def ask_scan(data: bytes, width: int, context: Ids, dtype: npt.DTypeLike) -> int:
    """The longest end of the context of at most `MAX_N` tokens in the bytes, at a multiple of the width."""
    pattern = context[-MAX_N:].astype(dtype)
    for n in range(len(pattern), 0, -1):
        wanted = pattern[len(pattern) - n :].tobytes()
        at = data.find(wanted)
        while at >= 0 and at % width:
            at = data.find(wanted, at + 1)
        if at >= 0:
            return n
    return 0


def print_rows(title: str, heading: list[str], rows: list[list[str]]) -> None:
    table = Table(*heading, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def measure(run: Path, n_queries: int, work: Path) -> None:
    tokens = run / "tokens"
    if not (tokens / "manifest.json").is_file():
        tokens = work / "tokens"
        prepare_shards(run / "corpus", run / "tokenizer.json", tokens)
    source = indexed(tokens)
    n_tokens = sum(map(len, source.ids))
    print(f"{n_tokens:,} tokens in {len(source.lengths()):,} documents, vocabulary {source.vocab_size:,}")
    rows, indexes = [], {}
    for cores, memory in ((1, 1_000_000_000), (2, 1_000_000_000), (1, 400_000_000), (2, 400_000_000), (2, 100_000_000)):
        out = work / f"index-{cores}-{memory}"
        arguments = [str(run), str(tokens), str(out), str(memory), str(cores)]
        done = subprocess.run(
            [sys.executable, __file__, "--child", *arguments], check=True, capture_output=True, text=True
        )
        seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
        indexes[memory] = index = Index(out)
        size = sum(path.stat().st_size for path in out.iterdir())
        rows.append([f"{memory / 1e6:.0f}", str(len(index.shards)), str(cores), f"{seconds:.1f}", f"{cpu:.1f}"])
        rows[-1] += [f"{n_tokens / seconds / 1e6:.1f}", f"{peak:.0f}", f"{size / n_tokens:.1f}"]
    heading = ["memory, MB", "shards", "cores", "seconds", "CPU seconds", "M tokens/s", "peak MB", "bytes per token"]
    print_rows("building", heading, rows)
    validation, training = open_token_shards(tokens, "validation"), open_token_shards(tokens, "train")
    held_out, seen = contexts_of(validation, n_queries, 0), contexts_of(training, n_queries, 1)
    rows = []
    for index in indexes.values():
        name = str(len(index.shards))
        ask(index, held_out[0])
        index.longest_matches(held_out[0])
        for kind, contexts in (("held-out", held_out), ("training", seen)):
            lengths = [ask(index, context) for context in contexts]
            times = microseconds(partial(ask, index), contexts)
            rows.append([name, kind, f"{statistics.mean(lengths):.1f}", f"{times.median:.1f}", f"{times.mean:.1f}"])
        times = microseconds(partial(decode, index), held_out)
        rows.append(
            [name, "each token of held-out text", "", f"{times.median / LIMIT:.1f}", f"{times.mean / LIMIT:.1f}"]
        )
        times = microseconds(lambda context, index=index: index.longest_matches(context, LIMIT), held_out)  # type: ignore[misc]
        rows.append(
            [name, "the same at once, lengths only", "", f"{times.median / LIMIT:.1f}", f"{times.mean / LIMIT:.1f}"]
        )
    print_rows("queries", ["shards", "contexts", "mean length", "median, CPU µs", "mean, CPU µs"], rows)
    measure_from_disk(source, held_out[:50], run, work)
    compare(source, held_out, run, work)


def measure_from_disk(source: IndexedTokens, contexts: list[Ids], run: Path, work: Path) -> None:
    """An index of many shards, of which nothing is in memory before each query."""
    folder = work / "many"
    build_index(
        folder, source, read_names(run / "corpus", "train"), IndexConfig(memory_bytes=FEW_BYTES), {"tokenizer": ""}
    )
    index = Index(folder)
    n_cached = continuations._cached_bytes()
    rows = []
    for kind, n_bytes in (("one shard after the other", n_cached), ("in threads", 0)):
        vars(continuations)["_cached_bytes"] = lambda n_bytes=n_bytes: n_bytes
        times: dict[str, list[float]] = {"memory": [], "disk": []}
        for place, found in times.items():
            for context in contexts:
                if place == "disk":
                    drop_from_memory(index)
                else:
                    ask(index, context)
                begun = time.perf_counter()
                ask(index, context)
                found.append(1e3 * (time.perf_counter() - begun))
        rows.append([kind, *(f"{statistics.median(found):.2f}" for found in times.values())])
    vars(continuations)["_cached_bytes"] = lambda: n_cached
    print_rows(f"{len(index.shards)} shards", ["", "in memory, ms", "from the disk, ms"], rows)


def drop_from_memory(index: Index) -> None:
    """Removes the files of an index from the memory of this process, and from the cache of the system."""
    for shard in index.shards:
        for array in (shard.text, shard.suffixes, shard.keys):
            mapped: Any = array
            while not isinstance(mapped, mmap.mmap):
                mapped = mapped.obj if isinstance(mapped, memoryview) else mapped.base
            mapped.madvise(mmap.MADV_DONTNEED)
    for path in index.folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(source: IndexedTokens, contexts: list[Ids], run: Path, work: Path) -> None:
    """The index and its peers over the same tokens."""
    documents = first_documents(source, PEER_TOKENS)
    dtype = source.ids[0].dtype
    rows: list[tuple[str, float, Times]] = []
    begun = time.process_time()
    table = ngrams_of(documents)
    rows.append(
        ("n-grams of up to 8", time.process_time() - begun, microseconds(lambda c: ask_ngrams(table, c), contexts))
    )
    # 0xFFFF is no id here, and separates documents.
    data = b"".join(np.array(document, dtype).tobytes() + b"\xff" * dtype.itemsize for document in documents)
    few = contexts[:100]
    rows.append(("scan of bytes", 0.0, microseconds(lambda c: ask_scan(data, dtype.itemsize, c, dtype), few)))
    ends = np.cumsum([len(document) for document in documents])
    small = IndexedTokens([source.ids[0][: ends[-1]]], [ends], source.vocab_size)
    names = pa.Table.from_batches(read_names(run / "corpus", "train")).slice(0, len(documents)).to_batches()
    begun = time.process_time()
    build_index(work / "small", small, names, IndexConfig(memory_bytes=10**9), {"tokenizer": ""})
    seconds = time.process_time() - begun
    index = Index(work / "small")
    rows.append(("index", seconds, microseconds(lambda c: ask(index, c), contexts)))
    for context in contexts:
        expected = min(MAX_N, ask(index, context))
        assert ask_ngrams(table, context) == expected
    for context in few:
        assert ask_scan(data, dtype.itemsize, context, dtype) == min(MAX_N, ask(index, context))
    shown = [[name, f"{seconds:.2f}", f"{times.median:,.1f}", f"{times.mean:,.1f}"] for name, seconds, times in rows]
    heading = ["", "CPU seconds to build", "median, CPU µs", "mean, CPU µs"]
    print_rows(f"peers, over {int(ends[-1]):,} tokens", heading, shown)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run, tokens, out, memory, cores = sys.argv[2:]
        build_in_child(Path(run), Path(tokens), Path(out), int(memory), int(cores))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--queries", type=int, default=3000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        measure(arguments.run, arguments.queries, Path(work))


if __name__ == "__main__":
    main()
