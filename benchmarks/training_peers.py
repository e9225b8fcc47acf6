"""Tokens a second and memory of whole training steps against Transformers' CodeGen, eager and compiled.

Run: `python benchmarks/training_peers.py [--rounds 3]`, about ten minutes on two cores. One shape for all, but ours of the
family kiln: 6 layers, d_model 384, 8 heads (CodeGen's are in groups of four), context 512, vocabulary 8,192; 16,384 tokens a
step, float32, fused AdamW. Every contender is a process of its own that stays alive; they take steps in turn, in alternating
order, and medians are told. The peers take a step's rows at once, as the library's trainer does by default; ours go by
micro-batches, which is what our trainer does.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from codekiln.model.families import CodeGenConfig, KilnConfig, ModelConfig
from codekiln.model.transformer import Transformer, initialize
from codekiln.train.metrics import matmul_peak

ROWS, CONTEXT, VOCAB = 32, 512, 8192
MICRO_ROWS = 8
CODEGEN = CodeGenConfig(6, 384, 8, 8, 48, 1536, VOCAB, CONTEXT, rotary_dim=32)
KILN = KilnConfig(6, 384, 8, 8, 48, 1024, VOCAB, CONTEXT)
CONTENDERS = ("ours, codegen", "ours, kiln", "Transformers' CodeGen, compiled", "Transformers' CodeGen, eager")


def ours(config: ModelConfig) -> Callable[[], None]:
    model = Transformer(config)
    initialize(model, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss_sums = torch.compile(model.loss_sums, dynamic=False)
    ids = torch.randint(0, VOCAB, (ROWS, CONTEXT + 1))
    documents = torch.zeros(MICRO_ROWS, CONTEXT, dtype=torch.long)
    weights = torch.ones(MICRO_ROWS, CONTEXT)

    def step() -> None:
        for start in range(0, ROWS, MICRO_ROWS):
            rows = ids[start : start + MICRO_ROWS]
            nats, _ = loss_sums(rows[:, :-1], rows[:, 1:], weights, documents)
            (nats / (ROWS * CONTEXT)).backward()  # type: ignore[no-untyped-call]
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


def work(name: str) -> None:
    """One contender: a step for each line that comes, its seconds and the process' peak of memory for each that goes."""
    step = {
        "ours, codegen": lambda: ours(CODEGEN),
        "ours, kiln": lambda: ours(KILN),
        "Transformers' CodeGen, compiled": lambda: theirs(is_compiled=True),
        "Transformers' CodeGen, eager": lambda: theirs(is_compiled=False),
    }[name]()
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        seconds = time.perf_counter() - begun
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(seconds, int(status.split("VmHWM:")[1].split()[0]) / 1e6, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", help="be this contender")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    processes = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in CONTENDERS
    }

    def turn(name: str) -> tuple[float, float]:
        stdin, stdout = processes[name].stdin, processes[name].stdout
        assert stdin is not None and stdout is not None
        stdin.write("step\n")
        stdin.flush()
        seconds, gigabytes = stdout.readline().split()
        return float(seconds), float(gigabytes)

    for name in CONTENDERS:
        print(f"{name}: first step after {turn(name)[0]:.1f} s", flush=True)
        turn(name)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    peaks = []
    for k in range(arguments.rounds):
        for name in CONTENDERS if k % 2 == 0 else CONTENDERS[::-1]:
            peaks.append(matmul_peak(torch.device("cpu"), torch.float32))
            seen[name].append(turn(name))
    for process in processes.values():
        process.communicate()
    rates = {name: ROWS * CONTEXT / statistics.median(seconds for seconds, _ in turns) for name, turns in seen.items()}
    memory = {name: max(gigabytes for _, gigabytes in turns) for name, turns in seen.items()}
    flops = {name: (KILN if "kiln" in name else CODEGEN).flops_per_token for name in CONTENDERS}
    peak = max(peaks)
    print(
        f"peak {peak / 1e9:.0f} GFLOP/s; {flops['ours, codegen'] / 1e6:.0f} MFLOP a token, kiln {flops['ours, kiln'] / 1e6:.0f}"
    )
    for name in CONTENDERS:
        ratios = ", ".join(f"{rates[name] / rates[peer]:.2f}x {peer.rpartition(' ')[2]}" for peer in CONTENDERS[2:])
        print(
            f"{name:32} {rates[name]:7,.0f} tokens/s  {rates[name] * flops[name] / peak:4.0%} of the peak  "
            f"{memory[name]:.1f} GB  {ratios}"
        )


if __name__ == "__main__":
    main()
