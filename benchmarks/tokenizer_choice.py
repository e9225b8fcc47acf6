"""Which tokenizer a small model learns best with: held-out bits per byte at equal training FLOPs.

Run: `python benchmarks/tokenizer_choice.py RUN [--teraflops 15] [--size 5M] [--seeds 0 1 2]`. RUN is a finished run, whose
corpus is read. Trains a tokenizer for every split rule and vocabulary size, and with each tokenizer and seed a model of the
demo's shape or of `--size`, left to right, for the same FLOPs. Bits per byte can be compared between vocabularies; loss per
token cannot.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import models, trainers

from codekiln.corpus.sample import balanced_sample
from codekiln.metrics_log import read_metrics
from codekiln.model.configs import kiln
from codekiln.recipes.demo import demo
from codekiln.tokenizer.bpe import Tokenizer, bytes_to_unicode
from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, WORD_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.special_tokens import SPM_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import RuntimeConfig
from codekiln.train.loop import train
from codekiln.train.objectives import NextToken
from codekiln.train.prepare import prepare_shards

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Qwen's, but nothing joins a newline and there are no contractions.
CODE = r"[^\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n{1,64}|[^\S\n]+(?!\S)|[^\S\n]+"
# Lines whose indentation is a piece of its own: its tokens are whole levels, and no token is indentation and code.
INDENT = r"\n{1,64}|(?<=\n)[ \t]{1,64}|[^\n]{1,1024}"
# The same as lines, but a digit is always a token.
DIGITS = r"\n{1,64}|\p{N}|[^\n\p{N}]{1,1024}"
# Qwen's, but numbers in threes, as cl100k has them.
THREES = WORD_SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# Qwen's, but two and more spaces before a word are a piece of their own, as in CodeGen, and the word has none.
RUNS = WORD_SPLIT_PATTERN.replace(r"|\s+(?!\S)|", r"|[ \t]{2,}|\s+(?!\S)|")
# Runs of words and spaces, and runs of other signs: tokens cross spaces, and names are separate from the signs around them.
SPACED = r"\n{1,64}|[\w ]{1,1024}|[^\w\n]{1,1024}"
CANDIDATES = (
    ("lines", LINE_SPLIT_PATTERN, 1024),
    ("lines", LINE_SPLIT_PATTERN, 2048),
    ("lines", LINE_SPLIT_PATTERN, 4096),
    ("Qwen's", WORD_SPLIT_PATTERN, 1024),
    ("Qwen's", WORD_SPLIT_PATTERN, 2048),
    ("Qwen's", WORD_SPLIT_PATTERN, 4096),
    ("GPT-2's", GPT2, 2048),
    ("words and spaces", SPACED, 2048),
    ("lines, indentation apart", INDENT, 2048),
    ("lines, digits apart", DIGITS, 2048),
    ("words of code", CODE, 2048),
    ("words of code, then lines", None, 2048),
    ("Qwen's, numbers in threes", THREES, 2048),
    ("Qwen's, white space apart", RUNS, 2048),
    ("Qwen's", WORD_SPLIT_PATTERN, 8192),
)
FIRST_PHASE = 0.9  # of the merges, where there are two phases


def two_phases(vocab_size: int, texts: list[str]) -> Tokenizer:
    """Merges inside words first, then merges of those tokens inside lines (SuperBPE, arXiv 2503.13423).

    The second phase is a BPE over private characters, one for each token of the first.
    """
    n_first = int(FIRST_PHASE * (vocab_size - len(SPM_SPECIAL_TOKENS)))
    first = train_tokenizer(TokenizerConfig(vocab_size=n_first + len(SPM_SPECIAL_TOKENS), pattern=CODE), texts)
    private = [chr(0xF0000 + i) for i in range(n_first)]

    def lines() -> Iterator[str]:
        for ids in first.encode_batch(texts):
            line = ""
            for i in ids:
                if b"\n" in first.token_bytes[i]:
                    yield line
                    line = ""
                else:
                    line += private[i]
            yield line

    backend = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPM_SPECIAL_TOKENS),
        initial_alphabet=private,
        max_token_length=6,
        show_progress=False,
    )
    backend.train_from_iterator(lines(), trainer)
    spelled = {i: token for token, i in first.record["model"]["vocab"].items()}

    def bytes_of(symbol: str) -> str:
        return "".join(spelled[ord(character) - 0xF0000] for character in symbol)

    merges = [tuple(map(bytes_of, merge)) for merge in json.loads(backend.to_str())["model"]["merges"]]
    record = json.loads(json.dumps(first.record))
    model = record["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < n_first}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    model["merges"] += [list(merge) for merge in merges]
    model["vocab"] = vocab
    record["added_tokens"] = [token | {"id": len(vocab) + k} for k, token in enumerate(record["added_tokens"])]
    record["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": LINE_SPLIT_PATTERN}
    assert set(bytes_to_unicode().values()) <= set(vocab)
    return Tokenizer(record, origin="two phases")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--teraflops", type=float, default=15.0, help="floating-point operations of each training, in 10^12"
    )
    parser.add_argument("--size", help="a size of our ladder; the demo's model without it")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of weights and of the order of rows")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the candidates")
    arguments = parser.parse_args()
    recipe = demo()
    sample = [document.text for document in balanced_sample(arguments.run / "corpus", "train", 6_000_000, 0)]
    for k, (rule, pattern, vocab_size) in enumerate(CANDIDATES):
        if arguments.only and k not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if pattern is None:
                tokenizer = two_phases(vocab_size, sample)
            else:
                tokenizer = train_tokenizer(TokenizerConfig(vocab_size=vocab_size, pattern=pattern), sample)
            tokenizer.save(folder / "tokenizer.json")
            manifest = prepare_shards(arguments.run / "corpus", folder / "tokenizer.json", folder / "tokens")
            rows = -(-tokenizer.vocab_size // 64) * 64
            config = dataclasses.replace(recipe.model, vocab_size=rows)
            if arguments.size:
                config = kiln(arguments.size, vocab_size=rows, context_length=recipe.model.context_length)
                config = dataclasses.replace(config, tie_embeddings=True)
            plan = dataclasses.replace(
                recipe.train,
                objective=NextToken(),
                total_tokens=int(arguments.teraflops * 1e12 / config.flops_per_token),
                eval_sequences=256,
                eval_every=10**6,
                save_every=10**6,
            )
            split = manifest["splits"]["validation"]
            for seed in arguments.seeds:
                run = folder / str(seed)
                train(
                    dataclasses.replace(plan, seed=seed),
                    config,
                    tokens=folder / "tokens",
                    tokenizer=tokenizer,
                    run=run,
                    runtime=RuntimeConfig(),
                    inputs={},
                )
                found = read_metrics(run / "metrics.jsonl")[-1]
                print(
                    f"{rule}, {vocab_size} ids, {config.n_parameters:,} parameters, seed {seed}: "
                    f"{found['validation_bits_per_byte']:.4f} bits per byte after {found['tokens']:,} tokens, "
                    f"{split['text_bytes'] / split['tokens']:.2f} held-out bytes per token",
                    flush=True,
                )


if __name__ == "__main__":
    main()
