"""Trains a tokenizer on text whose pieces are all distinct, and prints the memory that this took and its limit.

    train_tokenizer_memory.py lines|words code|base64|signs|letters VOCAB_SIZE

Memory is counted from before the training, so that the start of the process is not part of it.
"""
# ruff: noqa: T201 - prints its result

import random
import string
import sys
from collections.abc import Callable
from pathlib import Path

from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, WORD_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer

rng = random.Random(0)
WORDS = ["".join(rng.choices("abcdefghij_", k=rng.randint(2, 9))) for _ in range(5000)]
LINES: dict[str, Callable[[], str]] = {
    "code": lambda: " " * rng.choice((0, 4, 8)) + " ".join(rng.choices(WORDS, k=7)) + "\n",
    "base64": lambda: "".join(rng.choices(string.ascii_letters + string.digits + "+/", k=76)) + "\n",
    "signs": lambda: "".join(rng.choices(string.printable[:94], k=290)) + "\n",
    "letters": lambda: " ".join("".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(7)) + "\n",
}


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024


def main(rule: str, kind: str, vocab_size: int) -> None:
    pattern = LINE_SPLIT_PATTERN if rule == "lines" else WORD_SPLIT_PATTERN
    config = TokenizerConfig(vocab_size=vocab_size, pattern=pattern, memory_bytes=200_000_000)
    texts: list[str] = []
    n_bytes = 0
    while n_bytes < config.sample_bytes:
        texts.append("".join(LINES[kind]() for _ in range(50)))
        n_bytes += len(texts[-1])
    before = peak_bytes()
    train_tokenizer(config, texts)
    print(peak_bytes() - before, config.memory_bytes)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
