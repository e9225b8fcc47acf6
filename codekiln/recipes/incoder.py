"""InCoder: causal masking over whole documents, its own tokenizer (arXiv 2204.05999, sections 2 and 3, appendix A.1).

What the paper leaves open is ours and marked so: the learning rates are those of GPT-3's sizes. Not done yet: its metadata
tags, StackOverflow, and the dropout of 1.3B.
"""

import dataclasses
from pathlib import Path

from codekiln.corpus.filters import INCODER as RULES
from codekiln.corpus.licenses import INCODER as LICENSES
from codekiln.corpus.pipeline import CorpusConfig
from codekiln.corpus.sources.installed import InstalledPackages
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.infilling import InfillingConfig
from codekiln.model.configs import incoder as incoder_model
from codekiln.recipe import Recipe
from codekiln.recipes.tokenizers import TOKENIZERS
from codekiln.train.loop import TrainConfig
from codekiln.train.objectives import CausalMasking
from codekiln.train.optimizer import AdamWConfig, WarmupPolynomial

_LR = {"1B": 2.0e-4, "6B": 1.2e-4}  # ours


def incoder(size: str, code: Path | None = None, license: str | None = None) -> Recipe:
    """A published size on one pass over 52 billion tokens."""
    model = incoder_model(size)
    return Recipe(
        name=f"incoder-{size}",
        corpus=CorpusConfig(
            sources=(InstalledPackages() if code is None else LocalRepositories(code.absolute(), license),),
            licenses=LICENSES,
            filters=RULES,
        ),
        # Of fairseq's four ids of its own in the released vocabulary two have a use, and stand behind the merges here.
        tokenizer=dataclasses.replace(TOKENIZERS["incoder"], vocab_size=50_516),
        model=model,
        train=TrainConfig(
            objective=CausalMasking("released"),
            total_tokens=52_000_000_000,
            global_batch_size=8 * 248,  # 8 on each of 248 GPUs, if nothing was accumulated
            optimizer=AdamWConfig(
                lr=_LR[size],
                betas=(0.9, 0.98),
                eps=1e-8,  # fairseq's default
                weight_decay=0.01,  # ours
                schedule=WarmupPolynomial(1500),
            ),
            eval_every=500,  # ours
            save_every=500,  # ours
            keep_every=5_000,  # ours
        ),
        infilling=InfillingConfig(),
    )
