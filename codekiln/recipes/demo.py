"""A small model of the Python code on this machine, in minutes on two cores. Every number is Codekiln's."""

from pathlib import Path

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.sources.installed import InstalledPackages
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.caps import RepositoryCap
from codekiln.corpus.steps.copyright import CopyrightNotices
from codekiln.corpus.steps.exact import ExactDuplicates
from codekiln.corpus.steps.filters import CODEGEN_FILTERS, INCODER_FILTERS, Filters
from codekiln.corpus.steps.generated import GeneratedFiles
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.corpus.steps.near import NearDuplicates
from codekiln.corpus.steps.redact import Redact
from codekiln.evaluate.config import InfillingConfig
from codekiln.index.config import IndexConfig
from codekiln.model.configs import Lfm2Config, kiln
from codekiln.recipe import Recipe
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import MuonConfig, TrainConfig
from codekiln.train.objectives import SpmInfill
from codekiln.train.schedules import WSD

VOCAB_SIZE, CONTEXT = 2048, 256


def demo_model(size: str = "1M") -> Lfm2Config:
    """The model of the demo, or a larger one: a size of `kiln` with short convolutions in layers 0, 2, 4 and so on.

    Convolutions lower the loss and are faster on CPUs. An untied output layer learns faster (docs/log.md).
    """
    shape = kiln(size, vocab_size=VOCAB_SIZE, context_length=CONTEXT)
    return Lfm2Config(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.d_model // shape.d_head,
        n_kv_heads=shape.n_kv_heads,
        d_head=shape.d_head,
        d_ff=shape.d_ff,
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT,
        tie_embeddings=False,
        attention_layers=tuple(range(1, shape.n_layers, 2)),
    )


def demo(code: Path | None = None, license: str | None = None) -> Recipe:
    """The recipe on the installed Python packages, or on a folder of code under `license`."""
    if code is None:
        source: InstalledPackages | LocalRepositories = InstalledPackages()
    else:
        source = LocalRepositories(folder=code.absolute(), license=license, languages=("Python",))
    return Recipe(
        name="demo",
        corpus=CorpusConfig(
            sources=(source,),
            steps=(
                LicenseGate(),
                Filters(filters=CODEGEN_FILTERS + INCODER_FILTERS),
                GeneratedFiles(),
                CopyrightNotices(),
                Redact(),
                ExactDuplicates(),
                RepositoryCap(max_bytes=2_000_000),  # without it, a few large packages would be most of the corpus
                NearDuplicates(),
            ),
            validation_fraction=0.03,
        ),
        tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE, memory_bytes=1_500_000_000),
        model=demo_model(),
        train=TrainConfig(
            objective=SpmInfill(
                fim_rate=0.8,
                line_rate=0.6,
                max_lines=2,
                max_characters=40,
                middle_loss_weight=3.0,
                min_prefix_fraction=0.3,
            ),
            total_tokens=4_800_000,
            global_batch_size=8,
            initialization="induction",
            optimizer=MuonConfig(muon_lr=0.02, adamw_lr=6e-3, betas=(0.8, 0.96), schedule=WSD(decay_fraction=0.5)),
        ),
        index=IndexConfig(memory_bytes=1_000_000_000),
        infilling=InfillingConfig(n_problems=1000),
    )
