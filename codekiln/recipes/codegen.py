"""CodeGen: natural language, then six languages, then Python, each stage on the weights of the one before.

Numbers are the paper's (arXiv 2203.13474, section 2 and table 6) and the released code's and configs' (jaxformer); those
marked # unconfirmed stand in neither. Its corpora are not public: every stage reads what there is in one folder, or in the
Python installed here. Departures, all ours: no name of the language before a file of Multi (its spelling is not published),
duplicates by the alphanumeric tokens instead of all bytes, e-mail addresses redacted, our initialization.
"""

from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.filters import CODEGEN as RULES
from codekiln.corpus.languages import PROSE
from codekiln.corpus.pipeline import CorpusConfig
from codekiln.corpus.sources.installed import InstalledPackages
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.model.configs import codegen as codegen_model
from codekiln.recipe import PretrainedTokenizer, Recipe, StagedRecipe
from codekiln.train.loop import TrainConfig
from codekiln.train.objectives import NextToken
from codekiln.train.optimizer import AdamWConfig, WarmupCosine

LANGUAGES = ("C", "C++", "Go", "Java", "JavaScript", "Python")
CONTEXT = 2048


@dataclass(frozen=True)
class _Size:
    """Rows a step, and the peak learning rates of the natural-language stage and of the two of code."""

    rows: int
    nl_lr: float
    code_lr: float


_SIZES = {
    "350M": _Size(256, 3.0e-4, 1.8e-4),  # rate on Python unconfirmed
    "2B": _Size(512, 1.6e-4, 0.8e-4),  # rate on code unconfirmed
    "6B": _Size(512, 1.2e-4, 0.4e-4),  # the config's rows, half of the paper's 2M tokens; rate on code unconfirmed
    "16B": _Size(1024, 0.9e-4, 0.5e-4),  # rate on natural language unconfirmed
}


def codegen(size: str, code: Path | None = None, license: str | None = None) -> StagedRecipe:
    """The three stages of a published size: NL, Multi, Mono."""
    shape = _SIZES[size]
    floor = 3.0e-5 / 1.8e-4  # of 350M-Multi; of the other sizes unconfirmed
    return StagedRecipe(
        f"codegen-{size}",
        (
            _stage("nl", size, code, license, PROSE, 350_000, shape.nl_lr, WarmupCosine(3000, 300_000, 0.1)),
            _stage("multi", size, code, license, LANGUAGES, 150_000, shape.code_lr, WarmupCosine(3000, 147_000, floor)),
            _stage(
                "mono", size, code, license, ("Python",), 150_000, shape.code_lr, WarmupCosine(3000, 147_000, floor)
            ),
        ),
    )


def _stage(
    name: str,
    size: str,
    code: Path | None,
    license: str | None,
    languages: tuple[str, ...],
    steps: int,
    lr: float,
    schedule: WarmupCosine,
) -> Recipe:
    rows = _SIZES[size].rows
    return Recipe(
        name=name,
        corpus=CorpusConfig(
            sources=(
                InstalledPackages(languages)
                if code is None
                else LocalRepositories(code.absolute(), license, languages=languages),
            ),
            filters=() if name == "nl" else RULES,  # the paper's rules are for code
            validation_fraction=0.01,  # ours
        ),
        tokenizer=PretrainedTokenizer("codegen-nl" if name == "nl" else "codegen"),
        model=codegen_model(size),
        train=TrainConfig(
            objective=NextToken(),
            packing="concat",
            total_tokens=steps * rows * CONTEXT,
            global_batch_size=rows,
            optimizer=AdamWConfig(lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, schedule=schedule),
            z_loss=1e-4,
            eval_every=1000,  # ours
            save_every=1000,  # ours
            keep_every=50_000,  # ours
        ),
        infilling=None,
    )
