"""A small model of the Python code on this machine, in minutes on two cores. Every number here is ours."""

from pathlib import Path

from codekiln.corpus.build import CorpusPlan
from codekiln.corpus.sources.installed import Installed
from codekiln.corpus.sources.tree import Tree
from codekiln.evaluate.infilling import InfillingPlan
from codekiln.model.families import KilnConfig
from codekiln.recipe import Recipe
from codekiln.tokenizer.training import TokenizerPlan
from codekiln.train.loop import TrainPlan
from codekiln.train.objectives import InfillMixture
from codekiln.train.optimizer import MuonPlan, WarmupStableDecay


def demo(code: Path | None = None, license: str | None = None) -> Recipe:
    """The recipe on the Python installed here, or on a folder of code, under `license` if that is given."""
    source = Installed() if code is None else Tree(code.absolute(), license, languages=("Python",))
    return Recipe(
        name="demo",
        corpus=CorpusPlan(
            sources=(source,),
            max_repository_bytes=2_000_000,  # or a few large distributions would be most of it
            heldout_share=0.03,
        ),
        tokenizer=TokenizerPlan(vocab_size=2048, memory_bytes=1_500_000_000),
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
        train=TrainPlan(
            objective=InfillMixture(
                infill_rate=0.8, line_rate=0.6, max_lines=2, max_characters=40, middle_weight=3.0, left_share=0.3
            ),
            total_tokens=4_800_000,
            batch_rows=16,
            optimizer=MuonPlan(muon_rate=0.03, adamw_rate=6e-3, schedule=WarmupStableDecay(decay_share=0.5)),
        ),
        infilling=InfillingPlan(n_problems=1000),
    )
