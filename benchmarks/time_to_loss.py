"""Loss after equal processor time: Codekiln against nanochat, nanoGPT and Transformers' CodeGen.

Run: `python benchmarks/time_to_loss.py RUN --nanochat FOLDER [--ablations] [--nanogpt FILE] [--size 1M] [--seconds 60 240]
[--seeds 0 1 2]`. RUN is a run of the demo with a corpus, whose training split all contenders read. FOLDER is nanochat's
repository, FILE is `model.py` of nanoGPT's. All models have the number of layers and the width of the demo's model, or of
`--size`.

Each contender is a process with one thread, and two run at a time, so that both have the same machine. Seconds are
processor seconds of training steps; the first step, which compiles, is not counted. All are compiled. nanoGPT and
Transformers' CodeGen train with AdamW as nanoGPT trains small models, at two learning rates. nanochat trains with its own
optimizer, schedules and rates, a tenth of its weight decay, and 8 sequences per step. Bits per byte are measured on the same
held-out documents, left to right, in windows of 256 tokens.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.corpus.documents import read_documents
from codekiln.corpus.sample import balanced_sample
from codekiln.metrics_log import bits_per_byte
from codekiln.model.configs import Initialization, ModelConfig
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer
from codekiln.recipes.demo import demo, demo_model
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.codegen import load_pretrained
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import RuntimeConfig
from codekiln.train.loader import BatchLoader
from codekiln.train.loop import compile_loss, forward_backward, micro_batches_of
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import OptimizerGroup
from codekiln.train.parallel import SINGLE_PROCESS, scale_grads, total_grad_norm
from codekiln.train.prepare import open_token_shards, prepare_shards

CONTEXT = 256
TEXT_CHARACTERS = 4000
MICRO_ROWS = 8  # sequences of a forward pass
WEIGHT_DECAY = 0.028  # of nanochat: a tenth of its own, which is for longer runs (docs/log.md)
SCHEDULE_STEPS = 1_000_000  # in which our schedules count the used part of the seconds


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to train. `rate` is the learning rate of AdamW, or a factor of the rates of the contender's own recipe."""

    name: str
    tokenizer: str
    rate: float
    rows: int


OURS = Contender("Codekiln", "ours", 1.0, demo().train.global_batch_size)
NANOCHAT = [Contender("nanochat", "ours", 1.0, 8)]
WITHOUT_HEAD = "Codekiln without the induction head"
WITHOUT_VALUES = "nanochat without value embeddings"
WITHOUT_SCALARS = "nanochat without residual scalars"
ABLATIONS = [
    dataclasses.replace(OURS, name=WITHOUT_HEAD),
    *(dataclasses.replace(NANOCHAT[0], name=name) for name in (WITHOUT_VALUES, WITHOUT_SCALARS)),
]
NANOGPT = [Contender("nanoGPT", "ours", rate, 16) for rate in (1e-3, 3e-3)]
CODEGEN = [Contender("Transformers' CodeGen", "codegen", rate, 16) for rate in (1e-3, 3e-3)]
Loss = Callable[[Tensor, Tensor], Tensor]
# Updates the weights. Arguments: the number of the step, and `share`, the fraction of the run's seconds that are used so far.
Update = Callable[[int, float], None]


def held_out_bits(logits_of: Callable[[Tensor], Tensor], tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Bits per byte of the texts, each read from its beginning in windows that do not overlap."""
    windows = []
    for text in texts:
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        windows += [ids[at : at + CONTEXT + 1] for at in range(0, len(ids) - 1, CONTEXT)]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(windows), MICRO_ROWS):
            rows = windows[start : start + MICRO_ROWS]
            padded = torch.zeros(MICRO_ROWS, CONTEXT + 1, dtype=torch.long)
            known = torch.zeros(MICRO_ROWS, CONTEXT)
            for r, row in enumerate(rows):
                padded[r, : len(row)] = torch.tensor(row)
                known[r, : len(row) - 1] = 1
            logits = logits_of(padded[:, :-1].contiguous()).float().flatten(0, 1)
            losses = F.cross_entropy(logits, padded[:, 1:].flatten(), reduction="none")
            nats += float((losses * known.flatten()).sum())
    return bits_per_byte(nats, sum(len(text.encode()) for text in texts))


def nanochat(config: ModelConfig, vocab_size: int, contender: Contender) -> tuple[nn.Module, Loss, Update]:
    """Its model, and its optimizer with the schedules of its base_train.py. The contender's rate scales its learning rates."""
    factor = contender.rate
    model: Any = peers.nanochat(
        context=CONTEXT,
        vocab_size=vocab_size,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_model=config.d_model,
        has_value_embeddings=contender.name != WITHOUT_VALUES,
    )
    scalar_lr = 0.5 * factor
    if contender.name == WITHOUT_SCALARS:
        scalar_lr = 0.0
        with torch.no_grad():
            model.resid_lambdas.fill_(1.0)
            model.x0_lambdas.zero_()
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * factor, embedding_lr=0.3 * factor, matrix_lr=0.02 * factor, scalar_lr=scalar_lr
    )
    compiled = torch.compile(model, dynamic=False)

    def update(step: int, share: float) -> None:
        decay = max(0.0, (share - 0.35) / 0.65)
        # 10 steps of warm-up instead of 40: the shortest runs have 60 steps.
        lr_factor = min(1.0, (step + 1) / 10) * (1 - 0.95 * decay)
        momentum = 0.85 + 0.12 * min(1.0, step / 400)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor
            if group["kind"] == "muon":
                group["momentum"] = min(momentum, 0.97 - 0.07 * decay)
                group["weight_decay"] = WEIGHT_DECAY * 0.5 * (1 + math.cos(math.pi * share))
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return model, compiled, update


def adamw(model: nn.Module, rate: float) -> Update:
    """AdamW as nanoGPT trains small models: warm-up, then a cosine to a tenth."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)

    def update(step: int, share: float) -> None:
        factor = share / 0.02 if share < 0.02 else 0.1 + 0.45 * (1 + math.cos(math.pi * (share - 0.02) / 0.98))
        for group in optimizer.param_groups:
            group["lr"] = rate * max(factor, 0.01)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def nanogpt(config: ModelConfig, vocab_size: int, file: Path) -> tuple[nn.Module, Loss, Callable[[Tensor], Tensor]]:
    model = peers.nanogpt(
        file,
        context=CONTEXT,
        vocab_size=vocab_size,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_model=config.d_model,
    )
    compiled: Any = torch.compile(model)
    return model, lambda ids, targets: compiled(ids, targets)[1], lambda ids: compiled(ids, ids)[0]


def codegen(config: ModelConfig, vocab_size: int) -> tuple[nn.Module, Loss, Callable[[Tensor], Tensor]]:
    import transformers  # noqa: PLC0415 - in its own process alone

    heads = max(4, config.n_heads)  # its heads come in groups of four
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

    def forward(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    logits_of: Any = torch.compile(forward)
    return model, lambda ids, targets: F.cross_entropy(logits_of(ids).flatten(0, 1), targets.flatten()), logits_of


def train_peer(contender: Contender, config: ModelConfig, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    vocab_size = -(-tokenizer.vocab_size // 64) * 64
    torch.manual_seed(seed)
    match contender.name:
        case name if name.startswith("nanochat"):
            model, loss_of, update = nanochat(config, vocab_size, contender)
            logits_of: Any = loss_of
        case "nanoGPT":
            model, loss_of, logits_of = nanogpt(config, vocab_size, Path(os.environ["NANOGPT"]))
            update = adamw(model, contender.rate)
        case _:
            model, loss_of, logits_of = codegen(config, vocab_size)
            update = adamw(model, contender.rate)
    shards = open_token_shards(folder / "tokens", "train")
    order = np.random.default_rng(seed).permutation(shards.n_documents)
    stream = np.concatenate(
        [part for i in order.tolist() for part in ([tokenizer.eos_id], shards.slice(i, 0, int(shards.lengths()[i])))]
    ).astype(np.int64)
    rng = np.random.default_rng((seed, 1))
    n_parts = max(1, contender.rows // MICRO_ROWS)
    used, n_steps = 0.0, 0
    while used < seconds:
        begun = time.process_time()
        for _ in range(n_parts):
            starts = rng.integers(0, len(stream) - CONTEXT - 1, contender.rows // n_parts)
            ids = torch.from_numpy(np.stack([stream[at : at + CONTEXT + 1] for at in starts]))
            loss = loss_of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) / n_parts
            loss.backward()  # type: ignore[no-untyped-call]
        update(n_steps, used / seconds)
        used += time.process_time() - begun if n_steps else 0.0
        n_steps += 1
    bits = held_out_bits(logits_of, tokenizer, held_out_texts(folder))
    parameters = sum(p.numel() for p in model.parameters())
    return {"bits": bits, "tokens": n_steps * contender.rows * CONTEXT, "seconds": used, "parameters": parameters}


def train_ours(
    config: ModelConfig, folder: Path, seconds: float, seed: int, *, initialization: Initialization
) -> dict[str, Any]:
    """By the parts of our trainer, until the seconds are used. The schedule follows the part that is used."""
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    plan = demo().train
    rows, tokens = plan.global_batch_size, plan.global_batch_size * CONTEXT
    loader = BatchLoader(
        open_token_shards(folder / "tokens", "train"),
        tokenizer,
        NextToken(),
        context_length=CONTEXT,
        batch_size=rows,
        seed=seed,
        packing=plan.packing,
    )
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(seed), initialization=initialization)
    optimizers = OptimizerGroup(model, plan.optimizer)
    loss_fn = compile_loss(model, SINGLE_PROCESS, RuntimeConfig())
    torch.use_deterministic_algorithms(True)  # as our trainer on CPUs
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    used, n_steps = 0.0, 0
    while used < seconds:
        begun = time.process_time()
        batch = loader.batch(n_steps, 0, 1)
        micro_batches = list(micro_batches_of(batch, MICRO_ROWS, SINGLE_PROCESS.device))
        forward_backward(loss_fn, micro_batches, z_loss=plan.z_loss, scale=1 / tokens, world=SINGLE_PROCESS)
        scale = tokens / max(1.0, float(batch.loss_weights.sum()))
        norm = float(total_grad_norm(model, SINGLE_PROCESS)) * scale
        scale_grads(model, scale * min(1.0, plan.optimizer.max_grad_norm / (norm + 1e-6)))
        optimizers.step(int(used / seconds * SCHEDULE_STEPS), SCHEDULE_STEPS)
        used += time.process_time() - begun if n_steps else 0.0
        n_steps += 1
    bits = held_out_bits(model, tokenizer, held_out_texts(folder))
    return {"bits": bits, "tokens": n_steps * tokens, "seconds": used, "parameters": config.n_parameters}


def held_out_texts(folder: Path) -> list[str]:
    texts: list[str] = json.loads((folder / "texts.json").read_text())
    return texts


def prepare(run: Path, name: str, folder: Path) -> None:
    """A tokenizer, the shards of the corpus in its ids, and the held-out texts."""
    folder.mkdir()
    if name == "ours":
        sample = [document.text for document in balanced_sample(run / "corpus", "train", 6_000_000, 0)]
        tokenizer = train_tokenizer(TokenizerConfig(vocab_size=demo().model.vocab_size), sample)
    else:
        tokenizer = load_pretrained(name)
    tokenizer.save(folder / "tokenizer.json")
    prepare_shards(run / "corpus", folder / "tokenizer.json", folder / "tokens")
    # The other half of the documents was used to choose the settings of the demo (docs/log.md).
    documents = [each for i, each in enumerate(read_documents(run / "corpus", "validation")) if i % 4 >= 2]
    (folder / "texts.json").write_text(json.dumps([document.text[:TEXT_CHARACTERS] for document in documents]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--nanochat", type=Path, help="nanochat's repository")
    parser.add_argument("--ablations", action="store_true", help="also Codekiln and nanochat without single parts")
    parser.add_argument("--nanogpt", type=Path, help="model.py of nanoGPT")
    parser.add_argument("--codegen", action="store_true", help="also Transformers' CodeGen")
    parser.add_argument("--size", default="1M")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 240.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", nargs=4, help="be one contender: its fields, folder, seconds and seed")
    arguments = parser.parse_args()
    config = demo_model(arguments.size)
    if arguments.work:
        torch.set_num_threads(1)
        fields, folder, seconds, seed = arguments.work
        contender = Contender(**json.loads(fields))
        if contender.name in (OURS.name, WITHOUT_HEAD):
            initialization = demo().train.initialization if contender == OURS else "codekiln"
            found = train_ours(config, Path(folder), float(seconds), int(seed), initialization=initialization)
        else:
            found = train_peer(contender, config, Path(folder), float(seconds), int(seed))
        print(json.dumps(found))
        return
    contenders = [
        OURS,
        *(NANOCHAT if arguments.nanochat else []),
        *(ABLATIONS if arguments.ablations else []),
        *(NANOGPT if arguments.nanogpt else []),
        *(CODEGEN if arguments.codegen else []),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NANOGPT": str(arguments.nanogpt), "NANOCHAT_DTYPE": "float32"}
    if arguments.nanochat:
        paths = [str(arguments.nanochat), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    with tempfile.TemporaryDirectory() as temporary:
        for name in {contender.tokenizer for contender in contenders}:
            prepare(arguments.run, name, Path(temporary) / name)
        results: dict[tuple[Contender, float], list[float]] = defaultdict(list)

        def result(contender: Contender, seconds: float, seed: int) -> None:
            fields = json.dumps(dataclasses.asdict(contender))
            work = ["--work", fields, str(Path(temporary) / contender.tokenizer), str(seconds), str(seed)]
            command = [sys.executable, __file__, str(arguments.run), "--size", arguments.size, *work]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            one = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {contender.name} | {contender.tokenizer} | {one['parameters']:,} | {contender.rate:g} | "
                f"{contender.rows} | {seed} | {one['seconds']:.0f} | {one['tokens']:,} | {one['bits']:.3f} |",
                flush=True,
            )
            results[contender, seconds].append(one["bits"])

        print("| | tokenizer | parameters | rate | sequences | seed | seconds | tokens | bits per byte |")
        print("|---|---|---|---|---|---|---|---|---|")
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(result, contender, seconds, seed)
                for seconds in arguments.seconds
                for seed in arguments.seeds
                for contender in contenders
            ]
            for job in jobs:
                job.result()
    print("\n| | rate | sequences | seconds | mean bits per byte | lowest to highest |\n|---|---|---|---|---|---|")
    for (contender, at), bits in results.items():
        print(
            f"| {contender.name} | {contender.rate:g} | {contender.rows} | {at:g} | {statistics.mean(bits):.3f} | "
            f"{min(bits):.3f} to {max(bits):.3f} |"
        )


if __name__ == "__main__":
    main()
