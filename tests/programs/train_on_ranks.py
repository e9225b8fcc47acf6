"""Trains a tiny model on each rank that torchrun started, or in one process: train_on_ranks.py SOURCE RUN OPTIONS.

SOURCE is a finished run, whose tokens are read. OPTIONS is a JSON object; its keys are the fields of `Options`. Writes the
full weights to RUN/weights.safetensors.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch.distributed.tensor import DTensor

from codekiln.model.configs import CodeGenConfig, InCoderConfig, KilnConfig, Lfm2Config, ModelConfig
from codekiln.model.tensors import named_weights, save_safetensors
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.config import AdamWConfig, MuonConfig, RuntimeConfig, TrainConfig
from codekiln.train.loader import Batch, BatchLoader
from codekiln.train.loop import train
from codekiln.train.objectives import NextToken
from codekiln.train.parallel import full_tensor, init_distributed
from codekiln.train.schedules import WarmupCosine

CONTEXT, BATCH_SIZE = 64, 8
SHAPE: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 384, "context_length": CONTEXT}
CONFIGS: dict[str, ModelConfig] = {
    "kiln": KilnConfig(**SHAPE, n_kv_heads=2, d_head=16, d_ff=64),
    "kiln, untied": KilnConfig(**SHAPE, n_kv_heads=2, d_head=16, d_ff=64, tie_embeddings=False),
    "codegen": CodeGenConfig(**SHAPE, n_kv_heads=4, d_head=8, d_ff=128, rotary_dim=4),
    "lfm2": Lfm2Config(**SHAPE, n_kv_heads=2, d_head=8, d_ff=64, attention_layers=(1,)),
    "incoder": InCoderConfig(**SHAPE, n_kv_heads=4, d_head=8, d_ff=128),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a test can change."""

    config: str = "kiln"
    muon: bool = False
    n_steps: int = 8
    save_every: int = 6
    micro_batch_size: int = 2
    compile: bool = False
    tensor_parallel: int = 1
    activation_checkpointing: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    bad_step: int | None = None  # the step in whose batch the loss weight of one token is infinite


def main(source: Path, run: Path, options: Options) -> None:
    config = TrainConfig(
        objective=NextToken(),
        total_tokens=CONTEXT * BATCH_SIZE * options.n_steps,
        global_batch_size=BATCH_SIZE,
        optimizer=MuonConfig() if options.muon else AdamWConfig(lr=3e-3, schedule=WarmupCosine(warmup_steps=4)),
        eval_every=6,
        eval_sequences=8,
        save_every=options.save_every,
        z_loss=1e-4,
        dropout=options.dropout,
        attention_dropout=options.attention_dropout,
        packing="concat" if options.config == "codegen" else "packed",
    )
    runtime = RuntimeConfig(
        micro_batch_tokens=CONTEXT * options.micro_batch_size,
        compile=options.compile,
        tensor_parallel=options.tensor_parallel,
        activation_checkpointing=options.activation_checkpointing,
    )
    original = BatchLoader.batch

    def batch(self: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch, with an infinite loss weight in the fifth sequence of the bad step."""
        found = original(self, step, rank, world_size)
        at = 4 - rank * len(found.ids)
        if step == options.bad_step and self._packing == "packed" and 0 <= at < len(found.ids):
            found.loss_weights[at, 0] = float("inf")
        return found

    with (
        mock.patch.object(BatchLoader, "batch", batch),
        init_distributed("cpu", tensor_parallel=options.tensor_parallel) as world,
    ):
        model = train(
            config,
            CONFIGS[options.config],
            tokens=source / "tokens",
            tokenizer=Tokenizer.load(source / "tokenizer.json"),
            run=run,
            runtime=runtime,
            inputs={},
            world=world,
        )
        sharded = named_weights(model)
        assert world.world_size == 1 or all(isinstance(weight, DTensor) for weight in sharded.values())
        weights = {name: full_tensor(weight) for name, weight in sharded.items()}
        if world.is_main:
            save_safetensors(run / "weights.safetensors", weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Options(**json.loads(sys.argv[3])))
