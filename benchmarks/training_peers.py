"""Tokens per second and memory of whole training steps: Codekiln, nanoGPT, and Transformers' CodeGen, eager and compiled.

Run: `python benchmarks/training_peers.py --nanogpt model.py [--rounds 3]`. It takes about 12 minutes on two cores.
`model.py` is the file of nanoGPT's repository. All have one shape: 6 layers, d_model 384, 8 heads (CodeGen needs a multiple
of four), context 512, vocabulary 8,192; 16,384 tokens per step, float32, fused AdamW. Codekiln and one peer at a time are
two processes that take steps in turn, in alternating order. Prints medians and ratios to Codekiln. The peers process all
sequences of a step at once, as their scripts do by default. Codekiln uses micro-batches, as its trainer does by default.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
from processes import memory_kilobytes

from codekiln.model.configs import CodeGenConfig, KilnConfig, ModelConfig
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.train.flops import measure_peak_flops

ROWS, CONTEXT, VOCAB = 32, 512, 8192
MICRO_ROWS = 4
CODEGEN = CodeGenConfig(
    n_layers=6,
    d_model=384,
    n_heads=8,
    n_kv_heads=8,
    d_head=48,
    d_ff=1536,
    vocab_size=VOCAB,
    context_length=CONTEXT,
    rotary_dim=32,
)
KILN = KilnConfig(
    n_layers=6, d_model=384, n_heads=8, n_kv_heads=8, d_head=48, d_ff=1024, vocab_size=VOCAB, context_length=CONTEXT
)
OURS = "ours, codegen"
PEERS = ("Transformers' CodeGen, eager", "Transformers' CodeGen, compiled", "nanoGPT, compiled", "ours, kiln")


def ours(config: ModelConfig) -> Callable[[], None]:
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss_fn = torch.compile(model.loss, dynamic=False)
    ids = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1))
    documents = torch.zeros(MICRO_ROWS, CONTEXT, dtype=torch.long)
    weights = torch.ones(MICRO_ROWS, CONTEXT)

    def step() -> None:
        for start in range(0, ROWS, MICRO_ROWS):
            rows = ids[start : start + MICRO_ROWS]
            losses = loss_fn(rows[:, :-1], rows[:, 1:], weights, documents)
            (losses.nats / (ROWS * CONTEXT)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def theirs(*, is_compiled: bool) -> Callable[[], None]:
    import transformers  # noqa: PLC0415 - in the peers' processes alone

    config = transformers.CodeGenConfig(
        vocab_size=VOCAB, n_positions=CONTEXT, n_ctx=CONTEXT, n_embd=384, n_layer=6, n_head=8, rotary_dim=32
    )
    plain = transformers.CodeGenForCausalLM(config)
    model = torch.compile(plain) if is_compiled else plain
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, VOCAB, (ROWS, CONTEXT))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanogpt(path: str) -> Callable[[], None]:
    plain = peers.nanogpt(Path(path), context=CONTEXT, vocab_size=VOCAB, n_layers=6, n_heads=8, d_model=384)
    model: Callable[..., Any] = torch.compile(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1))

    def step() -> None:
        model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1].backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def work(name: str, path: str) -> None:
    """One contender: a step for each line that comes, its seconds and the process' peak of memory for each that goes."""
    step = {
        OURS: lambda: ours(CODEGEN),
        "ours, kiln": lambda: ours(KILN),
        "Transformers' CodeGen, compiled": lambda: theirs(is_compiled=True),
        "Transformers' CodeGen, eager": lambda: theirs(is_compiled=False),
        "nanoGPT, compiled": lambda: nanogpt(path),
    }[name]()
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        seconds = time.perf_counter() - begun
        print(seconds, memory_kilobytes() / 1e6, flush=True)


def compare(peer: str, path: str, n_rounds: int) -> None:
    """Ours and a peer in turn."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--nanogpt", path, "--work", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in (OURS, peer)
    }

    def turn(name: str) -> tuple[float, float]:
        stdin, stdout = processes[name].stdin, processes[name].stdout
        assert stdin is not None and stdout is not None
        stdin.write("step\n")
        stdin.flush()
        seconds, gigabytes = stdout.readline().split()[-2:]
        return float(seconds), float(gigabytes)

    first = {name: turn(name)[0] for name in processes}
    for name in processes:
        turn(name)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    peaks = []
    for k in range(n_rounds):
        for name in list(processes) if k % 2 == 0 else reversed(processes):
            peaks.append(measure_peak_flops(torch.device("cpu"), torch.float32))
            seen[name].append(turn(name))
    for process in processes.values():
        process.communicate()
    peak = max(peaks)
    rates = {name: ROWS * CONTEXT / statistics.median(seconds for seconds, _ in turns) for name, turns in seen.items()}
    for name in processes:
        flops = (KILN if "kiln" in name else CODEGEN).flops_per_token
        print(
            f"| {name} | {first[name]:.0f} | {rates[name]:,.0f} | {rates[name] * flops / peak:.0%} of {peak / 1e9:.0f} | "
            f"{max(gigabytes for _, gigabytes in seen[name]):.1f} | {rates[name] / rates[OURS]:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", required=True, help="model.py of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the peers")
    parser.add_argument("--work", help="be this contender")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.nanogpt)
        return
    print(f"{CODEGEN.flops_per_token / 1e6:.0f} MFLOP per token, kiln {KILN.flops_per_token / 1e6:.0f}\n")
    print("| | first step, s | tokens/s | of the peak, GFLOP/s | GB | of ours |\n|---|---|---|---|---|---|", flush=True)
    for k, peer in enumerate(PEERS):
        if arguments.only is None or k in arguments.only:
            compare(peer, arguments.nanogpt, arguments.rounds)


if __name__ == "__main__":
    main()
