"""CodeGen (arXiv 2203.13474): natural language, then six languages, then Python, each from the weights of the one before.

Numbers are those of the paper (section 2 and table 6) and of the released code and configs (jaxformer). `SOURCES` names the
source of each; "unconfirmed" are numbers that no primary source has. All other numbers are Codekiln's.

With `data`, the stages read The Pile in `pile`, the GitHub export of BigQuery in `bigquery`, and Python repositories of GitHub
in `bigpython`, which are fetched to this folder: BigPython is not public, and what is known of it (permissive licenses, not
personal, October 2021) selects them. Without, every stage reads one folder of code, or the installed Python packages.

docs/papers.md lists what the paper states next to what is set here, with the differences.
"""

from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.languages import PROSE
from codekiln.corpus.licenses import INCODER_LICENSES
from codekiln.corpus.redaction.emails import EMAILS
from codekiln.corpus.sources.data_sets import pile
from codekiln.corpus.sources.files import Source
from codekiln.corpus.sources.forge import Forge
from codekiln.corpus.sources.forge_selection import Selection
from codekiln.corpus.sources.github_export import GitHubExport
from codekiln.corpus.sources.installed import InstalledPackages
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.exact import ExactDuplicates
from codekiln.corpus.steps.filters import CODEGEN_FILTERS, Filters
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.corpus.steps.metadata import LanguagePrefix
from codekiln.corpus.steps.redact import Redact
from codekiln.model.configs import codegen as codegen_model
from codekiln.recipe import PretrainedTokenizer, Recipe, StagedRecipe
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.objectives import NextToken
from codekiln.train.schedules import WarmupCosine

LANGUAGES = ("C", "C++", "Go", "Java", "JavaScript", "Python")
CONTEXT = 2048

DATA_FOLDERS = ("pile", "bigquery", "bigpython")

SOURCES = {
    "nl: corpus.sources": "section 2.1: The Pile",
    "multi: corpus.sources": "section 2.1: BigQuery's GitHub data, six languages",
    "mono: corpus.sources": "section 2.1: BigPython, October 2021; the licenses are those that InCoder names",
    "corpus.steps": "section 2.1 and appendix A; licenses and redaction are Codekiln's",
    "multi: corpus.steps": "section 2.1 and appendix A; licenses, redaction and the form of the prefix are Codekiln's",
    "tokenizer": "section 2.2: GPT-2's BPE; with tokens for white space from Multi on",
    "model": "table 6 and the released configs",
    "train.objective": "section 2.2",
    "train.packing": "jaxformer: documents are concatenated and cut",
    "train.total_tokens": "steps x batch x 2048: 350k steps for NL, 150k for Multi and Mono (jaxformer)",
    "train.global_batch_size": "jaxformer configs, 16B table 6; the config of 6B has half of the 2M tokens of table 6",
    "train.initialization": "jaxformer: modules.py",
    "train.dropout": "the released configs",
    "train.attention_dropout": "the released configs",
    "train.optimizer.kind": "section 2.3",
    "train.optimizer.lr": "jaxformer configs for NL but 16B, and 350M Multi; 16B code by a survey; others unconfirmed",
    "train.optimizer.betas": "section 2.3",
    "train.optimizer.eps": "section 2.3",
    "train.optimizer.weight_decay": "jaxformer configs",
    "train.optimizer.max_grad_norm": "jaxformer configs",
    "train.optimizer.schedule": "jaxformer; the final ratio of code stages is that of 350M-Multi, unconfirmed for others",
    "train.z_loss": "jaxformer",
}


@dataclass(frozen=True, kw_only=True)
class _Size:
    """Sequences per step, and the peak learning rates of the natural-language stage and of both code stages."""

    batch_size: int
    nl_lr: float
    code_lr: float


_SIZES = {
    "350M": _Size(batch_size=256, nl_lr=3.0e-4, code_lr=1.8e-4),
    "2B": _Size(batch_size=512, nl_lr=1.6e-4, code_lr=0.8e-4),
    "6B": _Size(batch_size=512, nl_lr=1.2e-4, code_lr=0.4e-4),
    "16B": _Size(batch_size=1024, nl_lr=0.9e-4, code_lr=0.5e-4),
}


def codegen(size: str, code: Path | None = None, license: str | None = None, data: Path | None = None) -> StagedRecipe:
    """The three stages of a published size: NL, Multi, Mono."""
    numbers = _SIZES[size]
    sources = _data_sources(data) if data is not None else _code_sources(code, license)
    nl = WarmupCosine(warmup_steps=3000, decay_steps=300_000, min_lr_ratio=0.1)
    mixed = WarmupCosine(warmup_steps=3000, decay_steps=147_000, min_lr_ratio=3.0e-5 / 1.8e-4)
    return StagedRecipe(
        name=f"codegen-{size}",
        recipes=(
            _stage("nl", size, sources["nl"], n_steps=350_000, lr=numbers.nl_lr, schedule=nl),
            _stage("multi", size, sources["multi"], n_steps=150_000, lr=numbers.code_lr, schedule=mixed),
            _stage("mono", size, sources["mono"], n_steps=150_000, lr=numbers.code_lr, schedule=mixed),
        ),
    )


def _data_sources(data: Path) -> dict[str, Source]:
    """The data sets of the paper, in folders of `data`."""
    repositories = Selection(
        created=("2008-01-01", "2021-10-31"), main_languages=("Python",), licenses=tuple(sorted(INCODER_LICENSES))
    )
    return {
        "nl": pile((str(data / "pile"),)),
        "multi": GitHubExport(folder=str(data / "bigquery"), languages=LANGUAGES),
        "mono": Forge(service="github", folder=data / "bigpython", selection=repositories, languages=("Python",)),
    }


def _code_sources(code: Path | None, license: str | None) -> dict[str, Source]:
    languages = {"nl": PROSE, "multi": LANGUAGES, "mono": ("Python",)}
    if code is None:
        return {name: InstalledPackages(languages=wanted) for name, wanted in languages.items()}
    folder = code.absolute()
    return {
        name: LocalRepositories(folder=folder, license=license, languages=wanted) for name, wanted in languages.items()
    }


def _stage(name: str, size: str, source: Source, *, n_steps: int, lr: float, schedule: WarmupCosine) -> Recipe:
    batch_size = _SIZES[size].batch_size
    is_code = name != "nl"
    return Recipe(
        name=name,
        corpus=CorpusConfig(
            sources=(source,),
            steps=(
                *((LicenseGate(),) if is_code else ()),  # The Pile declares no licenses
                Filters(filters=CODEGEN_FILTERS if is_code else ()),  # the paper's filters are for code
                Redact(rules=(EMAILS,)),
                ExactDuplicates(key="content"),
                *((LanguagePrefix(),) if name == "multi" else ()),
            ),
            validation_fraction=0.01,
            max_overlap=None,
        ),
        tokenizer=PretrainedTokenizer(name="codegen-nl" if name == "nl" else "codegen"),
        model=codegen_model(size),
        train=TrainConfig(
            objective=NextToken(),
            packing="concat",
            total_tokens=n_steps * batch_size * CONTEXT,
            global_batch_size=batch_size,
            initialization="jaxformer",
            dropout=0.0,
            attention_dropout=0.0,
            optimizer=AdamWConfig(
                lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, max_grad_norm=1.0, schedule=schedule
            ),
            z_loss=1e-4,
            eval_every=1000,
            save_every=1000,
            keep_every=50_000,
        ),
        infilling=None,
    )
