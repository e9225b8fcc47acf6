"""Tokens per byte of held-out Python: CodeGen's tokenizer, InCoder's rule and other rules, compared with GPT-2.

Run: `python benchmarks/tokenizer_compression.py [--large]`. Tokenizers are trained on 10 MB of this machine's Python
packages (25 MB with --large), and tested on other packages.
"""

import argparse
import random
import sysconfig
import time
from pathlib import Path

from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges
from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, WORD_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer

RULES = {
    "whole lines (InCoder's rule)": LINE_SPLIT_PATTERN,
    "GPT-2's": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k's": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen's": WORD_SPLIT_PATTERN,
}


def packages() -> tuple[list[str], list[str]]:
    """Training and held-out texts; a package is on one side only."""
    root = Path(sysconfig.get_path("purelib"))
    by_package: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.py")):
        by_package.setdefault(path.relative_to(root).parts[0], []).append(path)
    names = sorted(by_package)
    random.Random(0).shuffle(names)
    validation: list[str] = []
    train: list[str] = []
    for name in names:
        side = validation if sum(map(len, validation)) < 1_000_000 and len(by_package[name]) < 400 else train
        side += [path.read_bytes().decode("utf-8", errors="replace") for path in by_package[name]]
    random.Random(1).shuffle(train)
    return train, validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true")
    is_large = parser.parse_args().large
    train, validation = packages()
    text = "".join(validation)
    size = len(text.encode())
    print(f"held out: {size / 1e6:.2f} MB")
    merges = load_gpt2_merges()
    n_gpt2 = count(codegen_tokenizer(merges, added={}), validation)

    def show(name: str, tokenizer: Tokenizer, seconds: float | None = None) -> None:
        n = count(tokenizer, validation)
        trained = f", trained in {seconds:.0f} processor seconds" if seconds is not None else ""
        print(
            f"{name}, {tokenizer.vocab_size:,} ids: {n / size:.4f} tokens per byte, "
            f"{n / n_gpt2 - 1:+.1%} compared with GPT-2{trained}"
        )

    show("GPT-2", codegen_tokenizer(merges, added={}))
    show("CodeGen", codegen_tokenizer(merges))
    sizes = (16_384, 50_257) if is_large else (8_192, 16_384)
    memory = 6_250_000_000 if is_large else 2_500_000_000
    for rule, pattern in RULES.items():
        for vocab_size in sizes:
            plan = TokenizerConfig(vocab_size=vocab_size, pattern=pattern, memory_bytes=memory)
            sample, held = [], 0
            for document in train:
                if held >= plan.sample_bytes:
                    break
                sample.append(document)
                held += len(document.encode())
            begun = time.process_time()
            show(rule, train_tokenizer(plan, sample), time.process_time() - begun)


def count(tokenizer: Tokenizer, texts: list[str]) -> int:
    return len(tokenizer.encode_flat(texts)[0])


if __name__ == "__main__":
    main()
