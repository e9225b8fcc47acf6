"""Models of the modern family, from a laptop to 7B parameters, which complete and infill.

They follow published rules, which `SOURCES` names. All other numbers are Codekiln's.

N is the number of parameters without embeddings, and D that of tokens.

- D = 100 N. For natural language, 20 tokens per parameter make the best use of compute (Chinchilla, arXiv 2203.15556). Code
  needs substantially more (arXiv 2510.08702), and a model that is served often should be smaller and trained for longer.
- The learning rate is 1.79 N^-0.713 D^0.307 and the batch has 0.58 D^0.571 tokens (Step Law, arXiv 2503.04715: 3,700 models of
  up to 1B parameters, with AdamW and a fixed last learning rate of 1e-5, also on code). The size 25M is below the models of the
  law, and 3B and 7B are above. The batch is rounded to a power of two sequences, so that ranks divide it.
- The parameters of the vocabulary grow as N^0.83 (arXiv 2407.13623), from 32,768 ids for 1B, rounded to a power of two.

The demo uses Muon; these use AdamW, because no published law gives Muon's learning rates for a size and a number of tokens.
"""

import math
from pathlib import Path

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.sources.files import Source
from codekiln.corpus.sources.installed import InstalledPackages
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.config import InfillingConfig
from codekiln.index.config import IndexConfig
from codekiln.model.configs import KilnConfig
from codekiln.model.configs import kiln as kiln_model
from codekiln.recipe import Recipe
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.objectives import SpmInfill
from codekiln.train.schedules import WarmupCosine

TOKENS_PER_PARAMETER = 100
LAST_LR = 1e-5

SIZES = ("25M", "110M", "350M", "1B", "3B", "7B")
_LONG_CONTEXT = ("1B", "3B", "7B")

SOURCES = {
    "tokenizer.vocab_size": "parameters of the vocabulary as N^0.83 (arXiv 2407.13623), 32,768 ids for 1B",
    "model.vocab_size": "parameters of the vocabulary as N^0.83 (arXiv 2407.13623), 32,768 ids for 1B",
    "model.qk_norm": "Qwen3 (arXiv 2505.09388)",
    "train.total_tokens": "100 N: more than the 20 of Chinchilla (arXiv 2203.15556), as code needs (arXiv 2510.08702)",
    "train.global_batch_size": "Step Law (arXiv 2503.04715): 0.58 D^0.571 tokens, to a power of two sequences",
    "train.optimizer.lr": "Step Law (arXiv 2503.04715): 1.79 N^-0.713 D^0.307",
    "train.optimizer.schedule.min_lr_ratio": "Step Law (arXiv 2503.04715): down to a learning rate of 1e-5",
}


def kiln(size: str, code: Path | None = None, license: str | None = None) -> Recipe:
    """A size on the installed Python packages, or on a folder of code under `license`."""
    source: Source = InstalledPackages()
    if code is not None:
        source = LocalRepositories(folder=code.absolute(), license=license)
    context = 4096 if size in _LONG_CONTEXT else 2048  # ours, as in Llama 2 with the same base of rotary positions
    model = kiln_model(size, vocab_size=vocab_size(size), context_length=context)
    n_parameters = non_embedding_parameters(model)
    n_tokens = TOKENS_PER_PARAMETER * n_parameters
    lr = float(f"{step_law_lr(n_parameters, n_tokens):.2g}")
    return Recipe(
        name=f"kiln-{size}",
        corpus=CorpusConfig(sources=(source,)),
        tokenizer=TokenizerConfig(vocab_size=model.vocab_size, memory_bytes=5_000_000_000),  # ours
        model=model,
        train=TrainConfig(
            objective=SpmInfill(middle_loss_weight=3.0, min_prefix_fraction=0.3),  # ours, as in the demo
            total_tokens=n_tokens,
            global_batch_size=power_of_two(step_law_batch_tokens(n_tokens) / context),
            optimizer=AdamWConfig(
                lr=lr,
                betas=(0.9, 0.95),  # ours, as in GPT-3 and Llama
                weight_decay=0.1,  # ours, as in GPT-3 and Llama
                schedule=WarmupCosine(warmup_steps=2000, min_lr_ratio=LAST_LR / lr),  # the warm-up is ours, as in Llama
            ),
            eval_every=500,
            save_every=500,
            keep_every=10_000,
        ),
        index=IndexConfig(memory_bytes=4_000_000_000),
        infilling=InfillingConfig(n_problems=1000),
    )


def non_embedding_parameters(model: KilnConfig) -> int:
    """Parameters of the blocks and the last norm."""
    tables = 1 if model.tie_embeddings else 2
    return model.n_parameters - tables * model.vocab_size * model.d_model


def step_law_lr(n_parameters: int, n_tokens: int) -> float:
    """The peak learning rate of AdamW (Step Law, arXiv 2503.04715)."""
    return float(1.79 * n_parameters**-0.713 * n_tokens**0.307)


def step_law_batch_tokens(n_tokens: int) -> float:
    """Tokens per step (Step Law, arXiv 2503.04715)."""
    return float(0.58 * n_tokens**0.571)


def vocab_size(size: str) -> int:
    """The ids of a size: parameters of the vocabulary as N^0.83 (arXiv 2407.13623), rounded to a power of two."""
    model, known = (kiln_model(name, vocab_size=1, context_length=1) for name in (size, "1B"))
    ratio = non_embedding_parameters(model) / non_embedding_parameters(known)
    return power_of_two(32_768 * known.d_model * ratio**0.83 / model.d_model)


def power_of_two(value: float) -> int:
    """The closest power of two by ratio."""
    return int(2 ** round(math.log2(value)))
