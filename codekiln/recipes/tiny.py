"""The small twins of the published systems: the recipes of 16B and 6B, with other sizes, sources and lengths.

Everything that is not replaced here is what the large recipe has: architecture, steps of the corpus, objective, packing,
optimizer, clipping, decay, initialization and losses. docs/papers.md lists each field that differs.

With `data`, they read the folders that `benchmarks/twin_data.py` writes, in the forms of the papers' data sets. Repositories
are read from folders, because there is no forge to fetch them from.

All steps of CodeGen are divided by 500, except the warm-up: 6 steps would be too few for Adam's second moments. The steps of
InCoder keep the ratio of its warm-up. Learning rates are Codekiln's, with the papers' ratios between stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.sources.data_sets import pile
from codekiln.corpus.sources.files import Source
from codekiln.corpus.sources.github_export import GitHubExport
from codekiln.corpus.sources.stackexchange import StackExchange
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.config import InfillingConfig
from codekiln.model.configs import CodeGenConfig, InCoderConfig
from codekiln.recipe import InheritedTokenizer, Recipe, StagedRecipe
from codekiln.recipes import codegen, incoder
from codekiln.recipes.tokenizers import INCODER_TOKENIZER
from codekiln.tokenizer.config import GPT2_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.special_tokens import GPT2_SPECIAL_TOKENS
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.schedules import WarmupCosine, WarmupPolynomial

CONTEXT, BATCH_SIZE = 256, 8
VALIDATION_FRACTION = 0.03  # a hundredth of a small corpus would be a few files
MEMORY_BYTES = 500_000_000  # of the tokenizer: 2 MB of text
EVAL_EVERY, SAVE_EVERY = 25, 50


_SIZES = "Codekiln: about 1M parameters; the ratios of d_ff and of rotary channels are those of 350M"
CODEGEN_SOURCES = codegen.SOURCES | {
    "nl: corpus.sources": "Codekiln: texts that packages ship, in The Pile's form",
    "multi: corpus.sources": "Codekiln: files that packages ship, in the form of BigQuery's export",
    "mono: corpus.sources": "Codekiln: Python of installed packages",
    "tokenizer": "section 2.2: GPT-2's rule of splitting; trained on the first stage, and with white space from Multi on",
    "model": _SIZES,
    "train.total_tokens": "jaxformer's steps, divided by 500",
    "train.global_batch_size": "Codekiln",
    "train.optimizer.lr": "Codekiln; the ratio of the stages is that of 350M",
    "train.optimizer.schedule": "jaxformer's steps, divided by 500; the warm-up is Codekiln's",
}
INCODER_SOURCES = incoder.SOURCES | {
    "corpus.sources": "Codekiln: files and texts that packages ship, in the forms of section 3.1",
    "tokenizer.vocab_size": "Codekiln",
    "model": "Codekiln: about 1M parameters; d_ff is 4 times d_model as in appendix A.1",
    "train.total_tokens": "Codekiln",
    "train.global_batch_size": "Codekiln",
    "train.optimizer.lr": "Codekiln",
    "train.optimizer.schedule": "appendix A.1: polynomial decay; the fraction of warm-up steps is that of the paper",
}


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Steps of a stage, those until the end of the cosine after the warm-up, and the peak learning rate."""

    n_steps: int
    decay_steps: int
    lr: float


_STAGES: Mapping[str, _Stage] = {  # 350k, 150k and 150k steps; 300k and 147k until the end of the cosine
    "nl": _Stage(n_steps=700, decay_steps=600, lr=3.0e-3),
    "multi": _Stage(n_steps=300, decay_steps=294, lr=1.8e-3),
    "mono": _Stage(n_steps=300, decay_steps=294, lr=1.8e-3),
}
_CODEGEN_WARMUP = 30

_SHAPE: dict[str, Any] = {
    "n_layers": 4, "d_model": 128, "n_heads": 4, "n_kv_heads": 4, "d_head": 32, "d_ff": 512, "context_length": CONTEXT
}  # fmt: skip
# 1,024 ids of NL, 38 for white space, and rows without an id, as the released models have them.
_CODEGEN_MODEL = CodeGenConfig(**_SHAPE, vocab_size=1088, rotary_dim=16)
_CODEGEN_TOKENIZER = TokenizerConfig(
    vocab_size=1024, pattern=GPT2_SPLIT_PATTERN, special_tokens=GPT2_SPECIAL_TOKENS, memory_bytes=MEMORY_BYTES
)
_INCODER_MODEL = InCoderConfig(**_SHAPE, vocab_size=1536)


def codegen_tiny(code: Path | None = None, license: str | None = None, data: Path | None = None) -> StagedRecipe:
    """The three stages of CodeGen with 1.1M parameters. Each stage after the first continues with its weights and ids."""
    large = codegen.codegen("16B", code, license)
    sources = _codegen_sources(data) if data is not None else {}
    stages = tuple(_codegen_stage(stage, sources.get(stage.name)) for stage in large.recipes)
    return StagedRecipe(name="codegen-tiny", recipes=stages)


def _codegen_sources(data: Path) -> dict[str, Source]:
    return {
        "nl": pile((str(data / "pile"),)),
        "multi": GitHubExport(folder=str(data / "bigquery"), languages=codegen.LANGUAGES),
        "mono": LocalRepositories(folder=data / "bigpython", languages=("Python",)),
    }


def _codegen_stage(large: Recipe, source: Source | None) -> Recipe:
    optimizer = large.train.optimizer
    assert isinstance(optimizer, AdamWConfig) and isinstance(optimizer.schedule, WarmupCosine)
    stage = _STAGES[large.name]
    schedule = replace(optimizer.schedule, warmup_steps=_CODEGEN_WARMUP, decay_steps=stage.decay_steps)
    return replace(
        large,
        corpus=_small_corpus(large.corpus, None if source is None else (source,)),
        tokenizer=_CODEGEN_TOKENIZER
        if large.name == "nl"
        else InheritedTokenizer(has_white_space=large.name == "multi"),
        model=_CODEGEN_MODEL,
        train=_short_training(large.train, stage.n_steps, replace(optimizer, lr=stage.lr, schedule=schedule)),
    )


def _small_corpus(corpus: CorpusConfig, sources: tuple[Source, ...] | None) -> CorpusConfig:
    """The corpus of the large recipe, from other sources if there are any."""
    return replace(
        corpus,
        sources=corpus.sources if sources is None else sources,
        validation_fraction=VALIDATION_FRACTION,
    )


def _short_training(train: TrainConfig, n_steps: int, optimizer: AdamWConfig) -> TrainConfig:
    """The training of the large recipe, in fewer and smaller steps."""
    return replace(
        train,
        total_tokens=n_steps * BATCH_SIZE * CONTEXT,
        global_batch_size=BATCH_SIZE,
        optimizer=optimizer,
        eval_every=EVAL_EVERY,
        save_every=SAVE_EVERY,
        keep_every=0,
    )


def incoder_tiny(code: Path | None = None, license: str | None = None, data: Path | None = None) -> Recipe:
    """InCoder with 1.0M parameters: causal masking, file tags, and threads next to code."""
    large = incoder.incoder("6B", code, license)
    optimizer = large.train.optimizer
    assert isinstance(optimizer, AdamWConfig) and isinstance(optimizer.schedule, WarmupPolynomial)
    n_steps = 600
    warmup_steps = 70  # 1,500 of 12,798 in the paper, if nothing was accumulated
    return replace(
        large,
        name="incoder-tiny",
        corpus=_small_corpus(large.corpus, None if data is None else _incoder_sources(data)),
        tokenizer=replace(INCODER_TOKENIZER, vocab_size=_INCODER_MODEL.vocab_size, memory_bytes=MEMORY_BYTES),
        model=_INCODER_MODEL,
        train=_short_training(
            large.train,
            n_steps,
            replace(optimizer, lr=3.0e-3, schedule=replace(optimizer.schedule, warmup_steps=warmup_steps)),
        ),
        infilling=InfillingConfig(n_problems=100),
    )


def _incoder_sources(data: Path) -> tuple[Source, ...]:
    return (
        LocalRepositories(folder=data / "github"),
        LocalRepositories(folder=data / "gitlab"),
        GitHubExport(folder=str(data / "bigquery"), languages=("Python", "Jupyter")),
        StackExchange(folder=data / "stackexchange"),
    )
