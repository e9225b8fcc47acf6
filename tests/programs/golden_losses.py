"""Trains a tiny model for 20 steps per objective, optimizer and family, and writes the losses of every step as JSON.

    python tests/programs/golden_losses.py FOLDER OUTPUT.json        one process
    torchrun --nproc-per-node 2 tests/programs/golden_losses.py ...  two ranks

`FOLDER` is for temporary data. `tests/golden/losses.json` holds what this program wrote before names changed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from codekiln.corpus.documents import FORMAT, SCHEMA
from codekiln.files import write_json
from codekiln.metrics_log import read_metrics
from codekiln.model.configs import CodeGenConfig, InCoderConfig, KilnConfig
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS, SPM_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import AdamWConfig, MuonConfig, RuntimeConfig, TrainConfig
from codekiln.train.loop import train
from codekiln.train.objectives import CausalMasking, FillInTheMiddle, NextToken, SpmInfill
from codekiln.train.parallel import init_distributed
from codekiln.train.prepare import prepare_shards
from codekiln.train.schedules import WSD, WarmupCosine, WarmupPolynomial
from tests.small import write_parts, write_tree

N_STEPS, ROWS, CONTEXT = 20, 8, 128
VOCAB = 640
SHAPE: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": VOCAB, "context_length": CONTEXT}
KILN = KilnConfig(**SHAPE, n_kv_heads=2, d_head=16, d_ff=64, tie_embeddings=False)
CODEGEN = CodeGenConfig(**SHAPE, n_kv_heads=4, d_head=8, d_ff=128, rotary_dim=4)
INCODER = InCoderConfig(**SHAPE, n_kv_heads=4, d_head=8, d_ff=128)
ADAMW = AdamWConfig(lr=3e-3, schedule=WarmupCosine(warmup_steps=4))
POLYNOMIAL = AdamWConfig(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01, schedule=WarmupPolynomial(warmup_steps=4))
MUON = MuonConfig(schedule=WSD(decay_fraction=0.5))

CASES: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "next-token, packed, kiln, AdamW": (KILN, SPM_SPECIAL_TOKENS, {"objective": NextToken(), "optimizer": ADAMW}),
    "next-token, concatenated, codegen, AdamW, z-loss": (
        CODEGEN, SPM_SPECIAL_TOKENS, {"objective": NextToken(), "optimizer": ADAMW, "packing": "concat", "z_loss": 1e-4},
    ),
    "causal masking, released, incoder, AdamW": (
        INCODER, INCODER_SPECIAL_TOKENS, {"objective": CausalMasking(sampling="released"), "optimizer": POLYNOMIAL},
    ),
    "causal masking, paper, kiln, Muon": (
        KILN, INCODER_SPECIAL_TOKENS, {"objective": CausalMasking(sampling="paper"), "optimizer": MUON},
    ),
    "fill in the middle, kiln, AdamW": (KILN, PSM_SPECIAL_TOKENS, {"objective": FillInTheMiddle(), "optimizer": ADAMW}),
    "suffix-prefix-middle, kiln, Muon": (KILN, SPM_SPECIAL_TOKENS, {"objective": SpmInfill(), "optimizer": MUON}),
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Token shards and a tokenizer per set of special tokens, without the corpus engine."""
    code = write_tree(folder / "code")
    texts = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    splits = {}
    for split, chosen in (("train", texts[4:] * 3), ("validation", texts[:4])):
        rows = [dict.fromkeys(SCHEMA.names, "x") | {"text": text} for text in chosen]
        parts = write_parts(folder / "corpus" / split, iter([pa.RecordBatch.from_pylist(rows, SCHEMA)]))
        n_bytes = sum(len(text.encode()) for text in chosen)
        splits[split] = {"documents": len(rows), "text_bytes": n_bytes, "parts": parts}
    write_json(folder / "corpus" / "manifest.json", {"format": FORMAT, "splits": splits})
    for k, control in enumerate((SPM_SPECIAL_TOKENS, INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS)):
        tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300 + len(control), special_tokens=control), texts)
        tokenizer.save(folder / str(k) / "tokenizer.json")
        prepare_shards(folder / "corpus", folder / str(k) / "tokenizer.json", folder / str(k) / "tokens")


def main(folder: Path, output: Path) -> None:
    from codekiln.tokenizer.bpe import Tokenizer

    losses: dict[str, dict[str, list[float]]] = {}
    with init_distributed("cpu") as world:
        if world.is_main:
            prepare(folder)
        world.broadcast_object(None)
        for name, (config, control, fields) in CASES.items():
            k = (SPM_SPECIAL_TOKENS, INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS).index(control)
            plan = TrainConfig(
                **fields, total_tokens=N_STEPS * ROWS * CONTEXT, global_batch_size=ROWS, eval_every=10, eval_sequences=8,
                save_every=N_STEPS,
            )  # fmt: skip
            run = folder / f"run{len(losses)}"
            tokenizer = Tokenizer.load(folder / str(k) / "tokenizer.json")
            train(
                plan, config, tokens=folder / str(k) / "tokens", tokenizer=tokenizer, run=run,
                runtime=RuntimeConfig(micro_batch_tokens=2 * CONTEXT, compile=False), inputs={}, world=world,
            )  # fmt: skip
            rows = read_metrics(run / "metrics.jsonl") if world.is_main else []
            losses[name] = {
                "loss": [float(f"{row['loss']:.7g}") for row in rows],
                "grad_norm": [float(f"{row['grad_norm']:.7g}") for row in rows],
                "valid": [
                    float(f"{r['validation_bits_per_byte']:.7g}") for r in rows if r.get("validation_bits_per_byte")
                ],
            }
        if world.is_main:
            output.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
