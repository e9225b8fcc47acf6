"""Helpers of the tests: a folder of twenty small files, a recipe that trains on them in seconds, and programs."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import write_part
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.config import InfillingConfig
from codekiln.files import JsonObject
from codekiln.generate.engine import Engine
from codekiln.index.config import IndexConfig
from codekiln.metrics_log import MetricsRow, read_metrics
from codekiln.model.configs import KilnConfig
from codekiln.model.decoder import Precision
from codekiln.model.huggingface import save_model
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import Transformer
from codekiln.recipe import Recipe
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import RuntimeConfig, TrainConfig
from codekiln.train.loop import train
from codekiln.train.objectives import NextToken, SpmInfill

ROOT = Path(__file__).parent.parent
PROGRAMS = ROOT / "tests" / "programs"
EAGER = RuntimeConfig(compile=False)
TINY = KilnConfig(
    n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_head=16, d_ff=64, vocab_size=384, context_length=64
)

VERBS = ("open", "close", "start", "stop", "read", "write", "load", "store", "push", "pull")
NOUNS = ("door", "window")
SPELLED = 'END = "<|endoftext|>" + "<|fim_middle|>"\n'  # ordinary text, in one file of each repository


@dataclasses.dataclass
class RunningServer:
    """A process of `codekiln serve`. What it prints on stderr goes to a file, because a full pipe would block it."""

    url: str
    process: "subprocess.Popen[str]"
    lines: Sequence[str] = ()  # what it printed on stderr, after its end


@contextmanager
def running_server(model: Path, *options: str) -> Iterator[RunningServer]:
    """`codekiln serve` on a free port of 127.0.0.1. It is interrupted at the end, and must not have printed a traceback."""
    command = [sys.executable, "-m", "codekiln", "serve", str(model), "--port", "0", *options]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stderr"
        with path.open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert " on http://127.0.0.1:" in line, path.read_text(encoding="utf-8")
            server = RunningServer(line.split(" on ")[1].split(" ")[0], process)
            try:
                yield server
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=30)
                server.lines = path.read_text(encoding="utf-8").splitlines()
        assert not any("Traceback" in each for each in server.lines), server.lines[-30:]


def write_parts(folder: Path, batches: Iterable[pa.RecordBatch]) -> list[JsonObject]:
    """Writes each batch as one part of a corpus. Returns their records."""
    folder.mkdir(parents=True)
    return [write_part(folder / f"part-{k:05}.parquet", [batch]) for k, batch in enumerate(batches)]


def write_tree(folder: Path) -> Path:
    """Writes twenty files in four repositories, each with two functions of its own."""
    for n, (verb, noun) in enumerate((verb, noun) for verb in VERBS for noun in NOUNS):
        path = folder / f"repository{n % 4}" / f"{verb}_{noun}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'"""How to {verb} a {noun}."""\n\nLIMIT_{verb.upper()} = {n * 37 + 11}\n\n\n'
            f"def {verb}_{noun}(name, count={n + 1}):\n"
            f"    steps = [name.{verb}({noun}) for {noun} in range(count)]\n"
            f"    if len(steps) > LIMIT_{verb.upper()}:\n"
            f'        raise ValueError("cannot {verb} so many {noun}s")\n'
            f"    return steps\n\n\n"
            f"def count_{noun}s(items):\n"
            f"    return sum(item.is_{verb} for item in items)\n" + SPELLED * (n in (4, 5, 6, 7)),
            encoding="utf-8",
        )
    return folder


def small_recipe(code: Path, *, total_tokens: int = 20_000) -> Recipe:
    """A recipe of a 60,000-parameter model on the code in a folder."""
    return Recipe(
        name="small",
        corpus=CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),), validation_fraction=0.2),
        tokenizer=TokenizerConfig(vocab_size=384),
        model=KilnConfig(
            n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, d_head=16, d_ff=128, vocab_size=384, context_length=256
        ),
        train=TrainConfig(
            objective=SpmInfill(),
            total_tokens=total_tokens,
            global_batch_size=4,
            eval_every=5,
            eval_sequences=4,
            save_every=4,
        ),
        index=IndexConfig(memory_bytes=16_000_000),
        infilling=InfillingConfig(n_problems=8, context_characters=300, max_new_tokens=24, max_span_characters=20),
        n_report_samples=2,
        min_free_bytes=1_000_000,
    )


def save_random_model(folder: Path, tokenizer: Tokenizer) -> Path:
    """Writes a model directory with random weights and a context of 256 tokens. Takes less than a second."""
    tokenizer.save(folder / "tokenizer.json")
    config = dataclasses.replace(TINY, context_length=256)
    ids: JsonObject = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    configs = hugging_face_configs(tokenizer, config.context_length)
    torch.manual_seed(0)
    save_model(folder / "model", Transformer(config), folder / "tokenizer.json", configs, ids)
    return folder / "model"


def with_train(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with other fields of its TrainConfig."""
    train = dataclasses.replace(recipe.train, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, train=train)


def assert_greedy(
    logits_of: Callable[[Tensor], Tensor],
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    tolerance: float,
    forbidden: Iterable[int] = (),
) -> None:
    """Each of `tokens` after `prompt` has the greatest logit by `logits_of` (1, T) -> (1, T, V), up to `tolerance`.

    With random weights the two greatest logits are often nearly equal. Processors and libraries round differently, so two
    correct greedy decoders may choose different tokens.
    """
    ids = [*prompt, *tokens]
    with torch.inference_mode():
        logits = logits_of(torch.tensor([ids]))[0].float()
    logits = logits.clone()  # tensors of inference mode cannot be changed
    logits[:, list(forbidden)] = -torch.inf
    for at, token in enumerate(tokens, start=len(prompt)):
        best = logits[at - 1].max()
        assert logits[at - 1, token] >= best - tolerance, f"token {at - len(prompt)}: {token} is not the most likely"


def make_engine(model: Transformer, precision: Precision = "float32", *, has_drafts: bool = True) -> Engine:
    """An engine that may sample every token, and never stops."""
    none = frozenset[int]()
    decoder = make_decoder(model, precision)
    return Engine(decoder, stop_token_ids=none, forbidden_token_ids=none, has_drafts=has_drafts)


def program(name: str, *arguments: object) -> list[str]:
    """The command that runs a program of tests/programs."""
    return [sys.executable, str(PROGRAMS / name), *map(str, arguments)]


def program_environment(**changes: str) -> dict[str, str]:
    """The environment of a program: it can import `tests`."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


def run_program(
    name: str, *arguments: object, check: bool = True, **changes: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a program of tests/programs to its end. `changes` are environment variables."""
    done = subprocess.run(
        program(name, *arguments),
        env=program_environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stderr[-4000:]
    return done


def resident_bytes() -> int:
    """The memory of this process that is not a mapped file."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("RssAnon:")[1].split()[0]) * 1024


def train_tiny(source: Path, run: Path, **changes: Any) -> list[MetricsRow]:
    """Trains a model of one layer on the tokens of the run `source`. Returns the metrics."""
    config: dict[str, Any] = {"total_tokens": 4096, "global_batch_size": 4, "save_every": 100} | changes
    train(
        TrainConfig(objective=NextToken(), **config),
        TINY,
        tokens=source / "tokens",
        tokenizer=Tokenizer.load(source / "tokenizer.json"),
        run=run,
        runtime=RuntimeConfig(compile=False),
        inputs={},
    )
    return read_metrics(run / "metrics.jsonl")


def printed_rng() -> random.Random:
    """A random generator whose seed is printed, so that a failure can be repeated with CODEKILN_TEST_SEED."""
    seed = int(os.environ.get("CODEKILN_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CODEKILN_TEST_SEED={seed}")  # noqa: T201 - pytest shows it if the test fails
    return random.Random(seed)
