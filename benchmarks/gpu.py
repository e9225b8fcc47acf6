"""Training and generation on one GPU: Codekiln and Transformers with the same shape, and what `codekiln plan` estimates.

Run: `python benchmarks/gpu.py [training generation] [--rounds 3]`. It takes about four minutes on an H200.

All models have random weights and the shape of `kiln` 350M (Qwen3's architecture), or that of CodeGen 350M where the name says
so. Each measurement is a process of its own; all start and compile at the same time, and then take turns on the GPU. Prints
medians of the rounds.

Training: bfloat16 with weights in float32, AdamW, context 2,048, 8 sequences per step, all at once. "packed" has document
borders that attention does not cross, "concat" has none, like Transformers. MFU is the fraction of the GPU's fastest matrix
product, counted with attention over half of the scores of a document. Memory is the most that PyTorch held.

Generation: bfloat16, greedy, no drafts, prompts of random ids. Tokens per second of new tokens, and of prompt tokens for
"prefill".
"""

# ruff: noqa: PLC0415 - a measurement imports only what it measures

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codekiln.model.configs import ModelConfig, codegen, kiln
from codekiln.model.transformer import Transformer
from codekiln.train.flops import measure_peak_flops

CONTEXT, ROWS, STEPS = 2048, 8, 4
KILN = kiln("350M", vocab_size=49_152, context_length=CONTEXT)
DEVICE = torch.device("cuda")
N_DOCUMENTS = (3, 5, 7)  # in each packed sequence, in turn
TRAINING = {
    "Codekiln, packed": (KILN, "packed"),
    "Codekiln, concat": (KILN, "concat"),
    "Codekiln, CodeGen, packed": (codegen("350M"), "packed"),
    "Transformers, compiled": (KILN, ""),
}
# Prompts, tokens of each, new tokens of each, samples of each prompt.
GENERATION = {
    "decode 1": (1, 256, 128, 1),
    "decode 64": (64, 256, 128, 1),
    "prefill": (1, 1900, 1, 1),
    "200 samples": (1, 256, 64, 200),
}
ENGINES = ("Codekiln", "Transformers")


def our_step(config: ModelConfig, packing: str) -> Callable[[], None]:
    from codekiln.model.initialization import init_weights
    from codekiln.train.config import AdamWConfig, RuntimeConfig
    from codekiln.train.loader import Batch
    from codekiln.train.loop import compile_loss, forward_backward, micro_batches_of
    from codekiln.train.optimizer import OptimizerGroup
    from codekiln.train.parallel import World, copy_full_, scale_grads, total_grad_norm

    world = World(device=DEVICE, dtype=torch.bfloat16)
    model = Transformer(config).to(DEVICE)
    init_weights(model, torch.Generator().manual_seed(0), copy_full_)
    optimizers = OptimizerGroup(model, AdamWConfig(lr=1e-4))
    loss_fn = compile_loss(model, world, RuntimeConfig(device="cuda"))
    ids, targets = np.random.default_rng(0).integers(0, config.vocab_size, (2, ROWS, CONTEXT))
    weights = np.ones((ROWS, CONTEXT), np.float32)
    turns = itertools.cycle(N_DOCUMENTS)

    def step() -> None:
        """On the same tokens, with other borders in each step."""
        documents = np.tile(np.arange(CONTEXT) * next(turns) // CONTEXT, (ROWS, 1)) if packing == "packed" else None
        batch = Batch(ids, targets, weights, documents, n_bytes=0)
        micro_batches = list(micro_batches_of(batch, ROWS, DEVICE))
        forward_backward(loss_fn, micro_batches, z_loss=0.0, scale=1 / (ROWS * CONTEXT), world=world)
        norm = float(total_grad_norm(model, world))
        scale_grads(model, min(1.0, 1 / norm))
        optimizers.step(1, 100)

    return step


def transformers_model() -> Any:
    import transformers

    config = transformers.Qwen3Config(
        num_hidden_layers=KILN.n_layers,
        hidden_size=KILN.d_model,
        num_attention_heads=KILN.n_heads,
        num_key_value_heads=KILN.n_kv_heads,
        head_dim=KILN.d_head,
        intermediate_size=KILN.d_ff,
        vocab_size=KILN.vocab_size,
        max_position_embeddings=KILN.context_length,
        tie_word_embeddings=KILN.tie_embeddings,
    )
    return transformers.Qwen3ForCausalLM(config).to(DEVICE)


def their_step() -> Callable[[], None]:
    model = transformers_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, KILN.vocab_size, (ROWS, CONTEXT), device=DEVICE)

    def loss_of(ids: Tensor) -> Any:
        return model(input_ids=ids, labels=ids).loss

    forward: Any = torch.compile(loss_of, dynamic=False)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = forward(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train(name: str) -> Callable[[str], dict[str, float]]:
    """Steps of one contender: the seconds of one, and the peak memory."""
    config, packing = TRAINING[name]
    step = our_step(config, packing) if packing else their_step()
    step()
    torch.cuda.synchronize()

    def measure(_: str) -> dict[str, float]:
        step()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _step in range(STEPS):
            step()
        torch.cuda.synchronize()
        return {"seconds": (time.perf_counter() - begun) / STEPS, "bytes": torch.cuda.max_memory_allocated()}

    return measure


def generate(name: str) -> Callable[[str], dict[str, float]]:
    """Generation by one engine: tokens per second of a case."""
    run = our_generation() if name == "Codekiln" else their_generation()
    turn = 0

    def measure(case: str) -> dict[str, float]:
        nonlocal turn
        n_prompts, length, n_new, n = GENERATION[case]
        for _attempt in range(2):  # the first warms up
            turn += 1
            generator = torch.Generator().manual_seed(turn)
            prompts = torch.randint(0, KILN.vocab_size, (n_prompts, length), generator=generator)
            begun = time.perf_counter()
            run(prompts, n_new, n)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
        n_tokens = n_prompts * (length if case == "prefill" else n_new * n)
        return {"rate": n_tokens / seconds, "bytes": torch.cuda.max_memory_allocated()}

    return measure


def our_generation() -> Callable[[Tensor, int, int], None]:
    from codekiln.generate.engine import Engine
    from codekiln.generate.sampling import GREEDY, SamplingParams
    from codekiln.model.make_decoder import make_decoder

    torch.manual_seed(0)
    model = Transformer(KILN).to(DEVICE).requires_grad_(False)
    none = frozenset[int]()
    decoder = make_decoder(model, "bfloat16")
    engine = Engine(decoder, stop_token_ids=none, forbidden_token_ids=none, has_drafts=False)

    def run(prompts: Tensor, n_new: int, n: int) -> None:
        sampling = GREEDY if n == 1 else SamplingParams(temperature=0.8, top_p=0.95)
        requests = [engine.add(row, sampling, max_new_tokens=n_new, n=n) for row in prompts.tolist()]
        while not all(request.is_finished for request in requests):
            engine.step()

    return run


def their_generation() -> Callable[[Tensor, int, int], None]:
    model = transformers_model().to(torch.bfloat16).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None

    def run(prompts: Tensor, n_new: int, n: int) -> None:
        sampling: dict[str, Any] = {"do_sample": False} if n == 1 else {"do_sample": True, "top_p": 0.95, "top_k": 0}
        ids = prompts.to(DEVICE)
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, min_new_tokens=n_new,
            num_return_sequences=n, pad_token_id=0, **sampling,
        )  # fmt: skip

    return run


class Worker:
    """A contender in a process of its own, which makes a measurement for each line on its standard input."""

    def __init__(self, kind: str, name: str) -> None:
        self.name = name
        command = [sys.executable, __file__, "--work", kind, name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, case: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(kind: str, name: str) -> None:
    measure = train(name) if kind == "training" else generate(name)
    print(json.dumps({}), flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(measure(line.strip())), flush=True)


def estimate(config: ModelConfig) -> tuple[float, float]:
    """What `codekiln plan` estimates for a step of `config`: seconds, and bytes that PyTorch allocates."""
    from codekiln.planning.estimate import ACCELERATORS, ParallelSettings, estimate_step
    from codekiln.train.config import AdamWConfig, TrainConfig
    from codekiln.train.objectives import NextToken

    plan = TrainConfig(
        objective=NextToken(), total_tokens=10**9, global_batch_size=ROWS, optimizer=AdamWConfig(lr=1e-4)
    )
    settings = ParallelSettings(n_ranks=1, micro_batch_size=ROWS)
    step = estimate_step(plan, config, ACCELERATORS["h100"], settings)
    return step.seconds, step.peak_bytes


def training(rounds: int) -> None:
    workers = [Worker("training", name) for name in TRAINING]
    for worker in workers:
        worker.answer()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TRAINING}
    for _ in range(rounds):
        for worker in workers:
            found[worker.name].append(worker.ask("step"))
    for worker in workers:
        worker.close()
    peak = measure_peak_flops(DEVICE, torch.bfloat16)
    print(f"\n{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, fastest product {peak / 1e12:.0f} TFLOP/s")
    print("| training | parameters | tokens per second | MFU | memory, GB |\n|---|---|---|---|---|")
    for name, (config, packing) in TRAINING.items():
        length = CONTEXT // statistics.mean(N_DOCUMENTS) if packing == "packed" else CONTEXT  # of a document
        rate = ROWS * CONTEXT / statistics.median(each["seconds"] for each in found[name])
        print(
            f"| {name} | {config.n_parameters:,} | {rate:,.0f} | {rate * config.training_flops(int(length)) / peak:.1%} | "
            f"{max(each['bytes'] for each in found[name]) / 1e9:.1f} |"
        )


def generation(rounds: int) -> None:
    workers = [Worker("generation", name) for name in ENGINES]
    for worker in workers:
        worker.answer()
    found: dict[tuple[str, str], list[float]] = {}
    memory: dict[str, float] = {}
    for _round in range(rounds):
        for case in GENERATION:
            for worker in workers:
                answer = worker.ask(case)
                found.setdefault((worker.name, case), []).append(answer["rate"])
                memory[worker.name] = answer["bytes"]
    for worker in workers:
        worker.close()
    print("\n| tokens per second | " + " | ".join(GENERATION) + " | memory, GB |")
    print("|---" * (len(GENERATION) + 2) + "|")
    for name in ENGINES:
        rates = " | ".join(f"{statistics.median(found[name, case]):,.0f}" for case in GENERATION)
        print(f"| {name} | {rates} | {memory[name] / 1e9:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", default=["training", "generation"], help="training, generation, plan")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs=2, help="be one contender: its kind and name")
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    if "plan" in arguments.kinds:  # needs no GPU
        for config in (KILN, codegen("350M")):
            seconds, n_bytes = estimate(config)
            print(f"plan: {config.family}: {ROWS * CONTEXT / seconds:,.0f} tokens per second, {n_bytes / 1e9:.1f} GB")
    if "training" in arguments.kinds:
        training(arguments.rounds)
    if "generation" in arguments.kinds:
        generation(arguments.rounds)


if __name__ == "__main__":
    main()
