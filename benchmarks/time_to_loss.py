"""Loss after equal time: Codekiln in a third of the time, against nanoGPT and Transformers' CodeGen.

Run: `python benchmarks/time_to_loss.py RUN --nanogpt model.py [--seconds 180] [--size 1M]`. RUN is a finished run of the
demo, whose corpus is read. `model.py` is the file of nanoGPT's repository. All models have the shape of the demo's model, or
of `--size`, and see the same documents. The peers are compiled and train for `--seconds` with AdamW as nanoGPT trains small
models: warm-up, then a cosine to a tenth, at two learning rates. Codekiln trains for a third of that time. The first step,
which compiles, is not timed. Bits per byte are measured on the same held-out documents, left to right, in windows of 256
tokens.
"""

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.corpus.documents import read_documents
from codekiln.corpus.sample import balanced_sample
from codekiln.metrics_log import bits_per_byte, read_metrics
from codekiln.model.configs import ModelConfig, kiln
from codekiln.recipes.demo import demo
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.codegen import load_pretrained
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import RuntimeConfig
from codekiln.train.loop import train
from codekiln.train.objectives import NextToken
from codekiln.train.prepare import open_token_shards, prepare_shards

CONTEXT, ROWS = 256, 16
N_TEXTS, TEXT_CHARACTERS = 150, 4000
RATES = (1e-3, 3e-3)
PEERS = (
    ("nanoGPT", "ours"),
    ("nanoGPT", "codegen-nl"),
    ("Transformers' CodeGen", "codegen"),
)


def shape(size: str) -> ModelConfig:
    if size == "1M":
        return demo().model
    config = kiln(size, vocab_size=demo().model.vocab_size, context_length=CONTEXT)
    return dataclasses.replace(config, tie_embeddings=True)


def held_out_bits(logits_of: Callable[[Tensor], Tensor], tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Bits per byte of the texts, each read from its beginning in windows that do not overlap."""
    windows = []
    for text in texts:
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        windows += [ids[at : at + CONTEXT + 1] for at in range(0, len(ids) - 1, CONTEXT)]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(windows), ROWS):
            rows = windows[start : start + ROWS]
            padded = torch.zeros(ROWS, CONTEXT + 1, dtype=torch.long)
            known = torch.zeros(ROWS, CONTEXT)
            for r, row in enumerate(rows):
                padded[r, : len(row)] = torch.tensor(row)
                known[r, : len(row) - 1] = 1
            logits = logits_of(padded[:, :-1]).float().flatten(0, 1)
            losses = F.cross_entropy(logits, padded[:, 1:].flatten(), reduction="none")
            nats += float((losses * known.flatten()).sum())
    return bits_per_byte(nats, sum(len(text.encode()) for text in texts))


def peer(name: str, config: ModelConfig, vocab_size: int, nanogpt: Path) -> tuple[nn.Module, Callable[..., Any]]:
    """A peer's model, and what computes (logits, loss) of ids and targets."""
    if name == "nanoGPT":
        model = peers.nanogpt(
            nanogpt,
            context=CONTEXT,
            vocab_size=vocab_size,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            d_model=config.d_model,
        )
        return model, torch.compile(model)
    import transformers  # noqa: PLC0415 - in its own process alone

    # Its heads come in groups of four.
    heads = max(4, config.n_heads)
    model = transformers.CodeGenForCausalLM(
        transformers.CodeGenConfig(
            vocab_size=vocab_size,
            n_positions=CONTEXT,
            n_ctx=CONTEXT,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=heads,
            rotary_dim=config.d_model // heads // 2,
        )
    )

    def both(ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=ids, use_cache=False).logits
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return model, torch.compile(both)


def train_peer(
    name: str, config: ModelConfig, folder: Path, texts: Sequence[str], seconds: float, rate: float, nanogpt: Path
) -> dict[str, float]:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    vocab_size = -(-tokenizer.vocab_size // 64) * 64
    torch.manual_seed(0)
    model, both = peer(name, config, vocab_size, nanogpt)
    shards = open_token_shards(folder / "tokens", "train")
    order = np.random.default_rng(0).permutation(shards.n_documents)
    stream = np.concatenate(
        [part for i in order.tolist() for part in ([tokenizer.eos_id], shards.slice(i, 0, int(shards.lengths()[i])))]
    ).astype(np.int64)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)
    rng = np.random.default_rng(1)
    used, n_steps = 0.0, 0
    while used < seconds:
        begun = time.perf_counter()
        starts = rng.integers(0, len(stream) - CONTEXT - 1, ROWS)
        ids = torch.from_numpy(np.stack([stream[at : at + CONTEXT + 1] for at in starts]))
        share = used / seconds
        factor = share / 0.02 if share < 0.02 else 0.1 + 0.45 * (1 + math.cos(math.pi * (share - 0.02) / 0.98))
        for group in optimizer.param_groups:
            group["lr"] = rate * max(factor, 0.01)
        both(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        used += time.perf_counter() - begun if n_steps else 0.0
        n_steps += 1
    bits = held_out_bits(lambda ids: both(ids.contiguous(), ids.contiguous())[0], tokenizer, texts)
    parameters = sum(p.numel() for p in model.parameters())
    return {"bits": bits, "tokens": n_steps * ROWS * CONTEXT, "seconds": used, "parameters": parameters}


def train_ours(config: ModelConfig, folder: Path, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """By our trainer, on as many tokens as the seconds are enough for at the speed of twenty steps before."""
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    plan = dataclasses.replace(
        demo().train,
        objective=NextToken(),
        global_batch_size=ROWS,
        eval_every=10**6,
        eval_sequences=1,
        save_every=10**6,
    )
    speed = 1.0
    for n_tokens in (20 * ROWS * CONTEXT, None):
        with tempfile.TemporaryDirectory() as run:
            model = train(
                dataclasses.replace(plan, total_tokens=n_tokens or int(speed * seconds)),
                config,
                tokens=folder / "tokens",
                tokenizer=tokenizer,
                run=Path(run),
                runtime=RuntimeConfig(),
                inputs={},
            )
            rows = read_metrics(Path(run) / "metrics.jsonl")
        speed = ROWS * CONTEXT / statistics.median(row["seconds"] for row in rows[1:])
    bits = held_out_bits(model, tokenizer, texts)
    used = sum(row["seconds"] for row in rows[1:])
    return {"bits": bits, "tokens": rows[-1]["tokens"], "seconds": used, "parameters": config.n_parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--nanogpt", type=Path, required=True, help="model.py of nanoGPT")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--size", default="1M")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the peers")
    parser.add_argument("--work", nargs=4, help="be one contender: name, folder, seconds, rate")
    arguments = parser.parse_args()
    config = shape(arguments.size)
    documents = islice(read_documents(arguments.run / "corpus", "validation"), N_TEXTS)
    texts = [document.text[:TEXT_CHARACTERS] for document in documents]
    if arguments.work:
        name, folder, seconds, rate = arguments.work
        if name == "ours":
            found = train_ours(config, Path(folder), texts, float(seconds))
        else:
            found = train_peer(name, config, Path(folder), texts, float(seconds), float(rate), arguments.nanogpt)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("ours", "codegen-nl", "codegen")}
        for name, folder in folders.items():
            folder.mkdir()
            if name == "ours":
                sample = [
                    document.text for document in balanced_sample(arguments.run / "corpus", "train", 6_000_000, 0)
                ]
                train_tokenizer(TokenizerConfig(vocab_size=demo().model.vocab_size), sample).save(
                    folder / "tokenizer.json"
                )
            else:
                load_pretrained(name).save(folder / "tokenizer.json")
            prepare_shards(arguments.run / "corpus", folder / "tokenizer.json", folder / "tokens")

        def result(name: str, tokenizer: str, seconds: float, rate: float) -> float:
            work = ["--work", name, str(folders[tokenizer]), str(seconds), str(rate)]
            command = [sys.executable, __file__, *sys.argv[1:], *work]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {name} | {tokenizer} | {found['parameters']:,} | {rate or '–'} | {found['seconds']:.0f} | "
                f"{found['tokens']:,} | {found['bits']:.3f} |",
                flush=True,
            )
            return float(found["bits"])

        print("| | tokenizer | parameters | rate | seconds | tokens | bits per byte |\n|---|---|---|---|---|---|---|")
        ours = result("ours", "ours", arguments.seconds / 3, 0)
        wanted = [peer for k, peer in enumerate(PEERS) if arguments.only is None or k in arguments.only]
        best = min(result(name, tokenizer, arguments.seconds, rate) for name, tokenizer in wanted for rate in RATES)
        print(f"\nours in a third of the time: {ours:.3f}, the best of the others: {best:.3f}")


if __name__ == "__main__":
    main()
