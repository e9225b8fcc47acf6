"""How the time of a training step grows with the size of the model and with the context.

Run: `python benchmarks/growth.py`. It takes about 15 minutes on two cores. Models have 1M to 110M weights, contexts 256 to
4,096 tokens. Each row is a process of its own. It trains on 16,384 tokens per step in micro-batches of 4,096: float32,
AdamW, compiled, one document per sequence. Prints seconds per token, the fraction of the matmul peak (measured around the
same steps), and the peak memory of the process. If time grew only with FLOPs, the fraction would be constant.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from processes import memory_kilobytes

from codekiln.model.configs import kiln
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.flops import measure_peak_flops
from codekiln.train.loop import forward_backward
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import OptimizerGroup
from codekiln.train.parallel import SINGLE_PROCESS

VOCAB, MICRO_TOKENS, N_MICRO = 8192, 4096, 4
SIZES, CONTEXTS = ("1M", "5M", "25M", "110M"), (256, 512, 1024, 2048, 4096)
SIZE, CONTEXT = "5M", 512  # of the rows in which the other grows


def work(size: str, context: int, n_rounds: int) -> None:
    """One row: after a step that compiles, the medians of micro-batches and of updates make a step's time."""
    config = kiln(size, vocab_size=VOCAB, context_length=context)
    plan = TrainConfig(objective=NextToken(), total_tokens=1, optimizer=AdamWConfig(lr=1e-3))
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))
    optimizers = OptimizerGroup(model, plan.optimizer)
    loss_fn = torch.compile(model.loss, dynamic=False)
    ids = torch.randint(0, VOCAB, (MICRO_TOKENS // context, context + 1))
    documents = torch.zeros(ids.shape[0], context, dtype=torch.long)
    tensors = (ids[:, :-1], ids[:, 1:], torch.ones(documents.shape), documents)
    micro_seconds, update_seconds, peaks = [], [], []
    for k in range(n_rounds + 1):
        begun = time.perf_counter()
        forward_backward(loss_fn, [tensors], z_loss=0.0, scale=1 / MICRO_TOKENS, world=SINGLE_PROCESS)
        between = time.perf_counter()
        optimizers.step(k, 1000)
        ended = time.perf_counter()
        if k:
            micro_seconds.append(between - begun)
            update_seconds.append(ended - between)
        peaks.append(measure_peak_flops(torch.device("cpu"), torch.float32))
    seconds = N_MICRO * statistics.median(micro_seconds) + statistics.median(update_seconds)
    n_tokens = N_MICRO * MICRO_TOKENS
    flops = config.flops_per_token * n_tokens / seconds
    print(
        f"| {size} | {config.n_parameters / 1e6:.1f} M | {context} | {config.flops_per_token / 1e6:.0f} | "
        f"{seconds / n_tokens * 1e6:.0f} | {flops / max(peaks):.0%} of {max(peaks) / 1e9:.0f} | "
        f"{memory_kilobytes() / 1e6:.2f} | {16e-9 * config.n_parameters:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=2, metavar=("SIZE", "CONTEXT"), help="be this row")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], int(arguments.work[1]), arguments.rounds)
        return
    print(
        "| model | weights | context | MFLOP per token | µs per token | of the peak, GFLOP/s | GB | of it weights and moments |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = [(size, CONTEXT) for size in SIZES] + [(SIZE, context) for context in CONTEXTS if context != CONTEXT]
    for size, context in rows:
        command = [sys.executable, __file__, "--work", size, str(context), "--rounds", str(arguments.rounds)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
