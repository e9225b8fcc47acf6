"""How far the estimates of `codekiln plan` are from real runs.

Run: `python benchmarks/plan_errors.py`. It takes about ten minutes. Memory: one, two and four gloo ranks on this machine
take a step of a model of 25M parameters, and the peak memory that each adds is compared with the estimate. Throughput: the
estimates are compared with figures that others published: llm-foundry (FSDP, bfloat16, context 2,048, not compiled;
scripts/train/benchmarking/README.md) and torchtitan (Llama 3.1 8B, context 8,192, compiled;
benchmarks/llama3_h100_202412_torchtitan.md). `Accelerator.matmul_efficiency` was fitted to llm-foundry's figures.
torchtitan's were not used for it.
"""

import argparse
import gc
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from processes import memory_kilobytes, python_on

from codekiln.model.configs import InCoderConfig, KilnConfig, ModelConfig, kiln
from codekiln.model.initialization import init_weights
from codekiln.planning.estimate import ACCELERATORS, Accelerator, ParallelSettings, estimate_step
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.loop import forward_backward
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import OptimizerGroup
from codekiln.train.parallel import build_sharded_model, copy_full_, init_distributed, scale_grads, total_grad_norm

SMALL = kiln("25M", vocab_size=8192, context_length=512)
SMALL_ROWS, SMALL_MICRO_ROWS = 16, 2
HERE = Accelerator(
    peak=1e11,
    matmul_efficiency=1.0,
    dtype=torch.float32,
    memory=24e9,
    memory_bandwidth=1e10,
    node_size=8,
    link_bandwidth=1e10,
    node_network=1e10,
    price=0.0,
)


@dataclass(frozen=True)
class Published:
    """Tokens per second and device that others measured, `rows` a step on `n_ranks`, `micro_rows` of them at once."""

    config: ModelConfig
    accelerator: str
    n_ranks: int
    rows: int
    micro_rows: int
    tokens_per_second: float
    activation_checkpointing: bool = False
    compile: bool = False


def _gpt(layers: int, d_model: int, heads: int) -> InCoderConfig:
    """The shape of llm-foundry's models: InCoder's family is the nearest one."""
    return InCoderConfig(
        n_layers=layers,
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=d_model // heads,
        d_ff=4 * d_model,
        vocab_size=50_368,
        context_length=2048,
    )


_1B, _3B, _7B, _13B = _gpt(24, 2048, 16), _gpt(32, 2560, 20), _gpt(32, 4096, 32), _gpt(40, 5120, 40)
LLAMA_8B = KilnConfig(
    n_layers=32,
    d_model=4096,
    n_heads=32,
    n_kv_heads=8,
    d_head=128,
    d_ff=14_336,
    vocab_size=128_256,
    context_length=8192,
    tie_embeddings=False,
    qk_norm=False,
)
ROWS = (
    Published(_1B, "a100", 8, 448, 14, 20513),
    Published(_3B, "a100", 8, 160, 10, 10811),
    Published(_7B, "a100", 8, 96, 6, 4641),
    Published(_13B, "a100", 8, 48, 2, 2262),
    Published(_1B, "h100", 8, 112, 14, 45455),
    Published(_1B, "h100", 64, 1280, 20, 44402),
    Published(_3B, "h100", 64, 1152, 6, 22525),
    Published(_7B, "h100", 8, 48, 6, 10643),
    Published(_13B, "h100", 8, 16, 2, 4792),
    Published(_13B, "h100", 64, 128, 2, 4800),
    # llm-foundry recomputes every second layer, Codekiln all.
    Published(LLAMA_8B, "h100", 8, 16, 2, 5762, activation_checkpointing=True),
    Published(LLAMA_8B, "h100", 8, 16, 2, 6667, activation_checkpointing=True, compile=True),
    Published(LLAMA_8B, "h100", 128, 256, 2, 6514, activation_checkpointing=True, compile=True),
)


def plan_of(rows: int) -> TrainConfig:
    return TrainConfig(objective=NextToken(), total_tokens=1, global_batch_size=rows, optimizer=AdamWConfig(lr=1e-4))


def work(*, activation_checkpointing: bool) -> None:
    """One rank: two real steps, the second measured; rank 0 prints the most that it added to its memory."""
    torch.set_num_threads(1)
    with init_distributed("cpu") as world:
        gc.collect()
        before = memory_kilobytes("VmRSS")
        model = build_sharded_model(SMALL, world, activation_checkpointing=activation_checkpointing)
        model.to_empty(device="cpu")
        model.tie_weights()
        init_weights(model, torch.Generator().manual_seed(0), copy_full_)
        optimizers = OptimizerGroup(model, plan_of(SMALL_ROWS).optimizer)
        ids = torch.randint(0, SMALL.vocab_size, (SMALL_MICRO_ROWS, SMALL.context_length))
        micro = (ids, ids, torch.ones(ids.shape), torch.zeros_like(ids))
        n_micro = SMALL_ROWS // world.dp_size // SMALL_MICRO_ROWS
        for _ in range(2):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
            forward_backward(model.loss, [micro] * n_micro, z_loss=0.0, scale=1.0, world=world)
            float(total_grad_norm(model, world))
            scale_grads(model, 1.0)
            optimizers.step(0, 1)
        if world.is_main:
            print((memory_kilobytes() - before) * 1024.0, flush=True)


def measured_bytes(n_ranks: int, *, activation_checkpointing: bool) -> float:
    """The most that the first of real ranks added to its memory in a step."""
    # Memory that is free goes back at once, or the peak would be of what is kept and not of what is used.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [
        *python_on(n_ranks),
        __file__,
        "--work",
        *(["--activation-checkpointing"] if activation_checkpointing else []),
    ]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", action="store_true", help="be one of the ranks")
    parser.add_argument("--activation-checkpointing", action="store_true")
    arguments = parser.parse_args()
    if arguments.work:
        work(activation_checkpointing=arguments.activation_checkpointing)
        return
    print("| ranks | recompute | planned GB | measured GB | error |\n|---|---|---|---|---|")
    for n_ranks in (1, 2, 4):
        for activation_checkpointing in (False, True):
            settings = ParallelSettings(
                n_ranks=n_ranks,
                micro_batch_size=SMALL_MICRO_ROWS,
                tensor_parallel=1,
                activation_checkpointing=activation_checkpointing,
                compile=False,
            )
            planned = estimate_step(plan_of(SMALL_ROWS), SMALL, HERE, settings).peak_bytes
            real = measured_bytes(n_ranks, activation_checkpointing=activation_checkpointing)
            answer = "yes" if activation_checkpointing else "no"
            print(
                f"| {n_ranks} | {answer} | {planned / 1e9:.3f} | {real / 1e9:.3f} | {planned / real - 1:+.0%} |",
                flush=True,
            )
    print("\n| published | ranks | recompute, compiled | tokens/s per device | planned | error | planned GB |")
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        settings = ParallelSettings(
            n_ranks=row.n_ranks,
            micro_batch_size=row.micro_rows,
            tensor_parallel=1,
            activation_checkpointing=row.activation_checkpointing,
            compile=row.compile,
        )
        step = estimate_step(plan_of(row.rows), row.config, ACCELERATORS[row.accelerator], settings)
        rate = step.tokens_per_second / row.n_ranks
        how = f"{'yes' if row.activation_checkpointing else 'no'}, {'yes' if row.compile else 'no'}"
        print(
            f"| {row.config.n_parameters / 1e9:.1f}B {row.accelerator} | {row.n_ranks} | {how} | "
            f"{row.tokens_per_second:,.0f} | {rate:,.0f} | {rate / row.tokens_per_second - 1:+.0%} | "
            f"{step.peak_bytes / 1e9:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
