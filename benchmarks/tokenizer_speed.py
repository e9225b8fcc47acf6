"""Megabytes of Python encoded per second and core: Codekiln, Hugging Face's tokenizers and tiktoken, with equal ids.

Run: `python benchmarks/tokenizer_speed.py [--megabytes 12]`. The libraries encode the same files of this machine's Python
packages in turn, with one thread each, by the fastest call of each. Every round has other files. Ids are compared on all of
them. Then a corpus in Parquet is converted to token shards, and a tokenizer of 16,384 ids is trained; processor time is
printed for both.
"""

import argparse
import os
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

# Both libraries read this when they are loaded.
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import tiktoken
import tokenizers
from processes import memory_kilobytes

from codekiln.corpus.documents import SCHEMA, write_part
from codekiln.files import write_json
from codekiln.tokenizer.bpe import Tokenizer, save_tokenizer
from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges
from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, WORD_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.special_tokens import END_OF_TEXT
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.prepare import prepare_shards

ROUNDS = 3
# GPT-2's rule, and the same with the runs that CodeGen adds; runs of other white space are bounded, or tiktoken panics.
_SPACE = r"(?:[^\S \t]| (?! )|\t(?!\t))"
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
PATTERNS = {
    "GPT-2": rf"{_WORDS}|\s{{1,4096}}(?!\S)|\s",
    "CodeGen": rf" {{2,31}}|\t{{2,9}}|{_WORDS}|(?:{_SPACE}(?!\S)){{1,4096}}|{_SPACE}",
    "words": WORD_SPLIT_PATTERN,
    "lines": LINE_SPLIT_PATTERN,
}
Encode = Callable[[list[str]], Any]


def python_files() -> list[str]:
    """All Python files here that are UTF-8, in an order drawn by a seed."""
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    paths = sorted({path for folder in folders for path in Path(folder).rglob("*.py") if path.stat().st_size < 300_000})
    random.Random(0).shuffle(paths)
    texts = []
    for path in paths:
        try:
            texts.append(path.read_bytes().decode())
        except UnicodeDecodeError:
            continue
    return texts


def take(texts: list[str], n_bytes: int) -> list[str]:
    """Texts off the end of the list until they are `n_bytes` long."""
    taken: list[str] = []
    held = 0
    while held < n_bytes and texts:
        taken.append(texts.pop())
        held += len(taken[-1].encode())
    return taken


def peers(name: str, tokenizer: Tokenizer, folder: Path) -> dict[str, Encode]:
    """The three libraries on the same vocabulary."""
    save_tokenizer(folder / name, tokenizer)
    reference = tokenizers.Tokenizer.from_file(str(folder / name / "tokenizer.json"))
    reference.encode_special_tokens = True
    world = {token: i for i, token in enumerate(tokenizer.token_bytes) if token}
    other = tiktoken.Encoding(
        name, pat_str=PATTERNS[name], mergeable_ranks=world, special_tokens={END_OF_TEXT: tokenizer.eos_id}
    )
    return {
        "Hugging Face": lambda texts: [e.ids for e in reference.encode_batch_fast(texts, add_special_tokens=False)],
        "tiktoken": lambda texts: [other.encode_to_numpy(text, disallowed_special=()) for text in texts],
        "ours": tokenizer.encode_flat,
    }


def encoding(name: str, tokenizer: Tokenizer, texts: list[str], n_bytes: int, folder: Path) -> None:
    libraries = peers(name, tokenizer, folder)
    for encode in libraries.values():
        encode(["warm = up\n"])
    rates: dict[str, list[float]] = {library: [] for library in libraries}
    for _ in range(ROUNDS):
        chosen = take(texts, n_bytes // ROUNDS)
        size = sum(len(text.encode()) for text in chosen)
        ids = {}
        for library, encode in libraries.items():
            begun = time.process_time()
            ids[library] = encode(chosen)
            rates[library].append(size / 1e6 / (time.process_time() - begun))
        for library, found in ids.items():
            rows = found if library != "ours" else [found[0][i:j] for i, j in pairwise(found[1])]
            pairs = zip(rows, ids["Hugging Face"], strict=True)
            differing = sum(not np.array_equal(row, wanted) for row, wanted in pairs)
            if differing:
                print(f"{name}: {library} differs from Hugging Face on {differing} of {len(chosen)} files")
    medians = {library: statistics.median(values) for library, values in rates.items()}
    shown = ", ".join(f"{library} {rate:.1f}" for library, rate in medians.items())
    times = {library: medians["ours"] / rate for library, rate in medians.items()}
    print(
        f"{name} ({tokenizer.vocab_size:,} ids): {shown} MB per processor second; "
        f"ours is {times['Hugging Face']:.1f} x Hugging Face and {times['tiktoken']:.1f} x tiktoken"
    )


def shards(tokenizer: Tokenizer, texts: list[str], folder: Path) -> None:
    """Parquet to token shards, reading, checking and writing included."""
    rows = [dict.fromkeys(SCHEMA.names, "x") | {"text": text} for text in texts]
    (folder / "corpus" / "train").mkdir(parents=True)
    parts = [write_part(folder / "corpus" / "train" / "part-00000.parquet", pa.Table.from_pylist(rows, SCHEMA))]
    size = sum(len(text.encode()) for text in texts)
    entry = {"documents": len(rows), "text_bytes": size, "parts": parts}
    write_json(folder / "corpus" / "manifest.json", {"splits": {"train": entry}})
    begun, used = time.perf_counter(), time.process_time()
    prepare_shards(folder / "corpus", folder / "CodeGen" / "tokenizer.json", folder / "tokens")
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    print(f"shards: {size / 1e6:.0f} MB of Parquet in {seconds:.1f} s, {size / 1e6 / used:.1f} MB per processor second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=12.0)
    n_bytes = int(parser.parse_args().megabytes * 1e6)
    texts = python_files()
    plan = TokenizerConfig(vocab_size=16_384, pattern=LINE_SPLIT_PATTERN, memory_bytes=2_500_000_000)
    sample = take(texts, plan.sample_bytes)
    before, begun = memory_kilobytes(), time.process_time()
    lines = train_tokenizer(plan, sample)
    print(
        f"training: 16,384 ids on {plan.sample_bytes / 1e6:.0f} MB of whole lines in {time.process_time() - begun:.0f} "
        f"processor seconds and {(memory_kilobytes() - before) * 1024 / 1e6:.0f} MB"
    )
    words = train_tokenizer(TokenizerConfig(vocab_size=16_384, memory_bytes=2_500_000_000), sample)
    codegen = codegen_tokenizer(load_gpt2_merges())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        encoding("GPT-2", codegen_tokenizer(load_gpt2_merges(), added={}), texts, n_bytes, folder)
        encoding("CodeGen", codegen, texts, n_bytes, folder)
        encoding("words", words, texts, n_bytes, folder)
        encoding("lines", lines, texts, n_bytes, folder)
        shards(codegen, texts, folder)


if __name__ == "__main__":
    main()
