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
from codekiln.model.configs import KilnConfig
from codekiln.recipe import Recipe
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import MuonConfig, TrainConfig
from codekiln.train.objectives import SpmInfill
from codekiln.train.schedules import WSD


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
        tokenizer=TokenizerConfig(vocab_size=2048, memory_bytes=1_500_000_000),
        model=KilnConfig(
            n_layers=4,
            d_model=128,
            n_heads=2,
            n_kv_heads=2,
            d_head=64,
            d_ff=384,
            vocab_size=2048,
            context_length=256,
        ),
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
            global_batch_size=16,
            optimizer=MuonConfig(muon_lr=0.03, adamw_lr=6e-3, schedule=WSD(decay_fraction=0.5)),
        ),
        index=IndexConfig(memory_bytes=1_000_000_000),
        infilling=InfillingConfig(n_problems=1000),
    )
