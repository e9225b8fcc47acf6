"""Tokens per second of a training step: Codekiln and Transformers' Qwen3 of the same shape, and the matmul peak.

Run: `python benchmarks/training_speed.py [--rounds 3]`. Both run forward, loss and backward in float32 on the same ids, in
one process, in turn, without an optimizer. Prints the medians of the rounds and their ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from codekiln.model.configs import ModelConfig, kiln
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.recipes.demo import CONTEXT, VOCAB_SIZE
from codekiln.train.flops import measure_peak_flops

STEPS = 6


def ours(config: ModelConfig, *, compiled: bool) -> Callable[[Tensor], None]:
    """A training step of Codekiln with packed documents, as `codekiln train` runs it."""
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))

    def loss_sum(ids: Tensor, documents: Tensor) -> Tensor:
        logits = model(ids, document_ids=documents)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum")

    function = torch.compile(loss_sum, dynamic=False) if compiled else loss_sum

    def step(ids: Tensor) -> None:
        length = ids.shape[1]
        documents = (torch.arange(length) // (length // 2 + 7)).expand(ids.shape).contiguous()
        function(ids, documents).backward()  # type: ignore[no-untyped-call]

    return step


def theirs(config: ModelConfig) -> Callable[[Tensor], None]:
    """Transformers' class of the same shape, with its own loss and SDPA."""
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            num_hidden_layers=config.n_layers,
            hidden_size=config.d_model,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.d_head,
            intermediate_size=config.d_ff,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            tie_word_embeddings=True,
        )
    )

    def step(ids: Tensor) -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per step")
    arguments = parser.parse_args()
    config = kiln("1M", vocab_size=VOCAB_SIZE, context_length=CONTEXT)
    ids = torch.randint(0, config.vocab_size, (arguments.tokens // config.context_length, config.context_length))
    steps = {
        "ours, compiled": ours(config, compiled=True),
        "ours, eager": ours(config, compiled=False),
        "Transformers, eager": theirs(config),
    }
    for name, step in steps.items():
        begun = time.perf_counter()
        step(ids)
        print(f"{name}: first step after {time.perf_counter() - begun:.1f} s")
        step(ids)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    peaks: list[float] = []
    for turn in range(arguments.rounds):
        peaks.append(measure_peak_flops(torch.device("cpu"), torch.float32))
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            begun = time.perf_counter()
            for _ in range(STEPS):
                steps[name](ids)
            rates[name].append(STEPS * ids.numel() / (time.perf_counter() - begun))
    peak = max(peaks)
    slowest = statistics.median(rates["Transformers, eager"])
    print(
        f"{config.n_parameters:,} parameters, {config.flops_per_token / 1e6:.1f} MFLOP per token, peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name, seen in rates.items():
        rate = statistics.median(seen)
        mfu = rate * config.flops_per_token / peak
        print(f"{name:22} {rate:8,.0f} tokens/s  {mfu:4.0%} of the peak  {rate / slowest:.2f}x Transformers")


if __name__ == "__main__":
    main()
