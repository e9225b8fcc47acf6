"""InCoder (arXiv 2204.05999): causal masking over whole documents, with its own tokenizer.

`SOURCES` names the source of each number; all others are Codekiln's. The paper does not give the learning rates: those of
GPT-3's sizes are used. docs/papers.md lists what the paper states next to what is set here, with the differences.

With `data`, it reads repositories of GitHub and GitLab, which are fetched to `github` and `gitlab`, the GitHub export of
BigQuery in `bigquery`, and the dump of StackOverflow in `stackexchange`. Without, it reads one folder of code, or the installed
Python packages, of which no stars are known. The paper drops the repositories of two evaluation sets: name their lists with
`--exclude`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.licenses import INCODER_LICENSES, STACK_EXCHANGE_LICENSES
from codekiln.corpus.redaction.emails import EMAILS
from codekiln.corpus.sources.files import Source
from codekiln.corpus.sources.forge import Forge
from codekiln.corpus.sources.forge_selection import Selection
from codekiln.corpus.sources.github_export import GitHubExport
from codekiln.corpus.sources.installed import InstalledPackages
from codekiln.corpus.sources.stackexchange import StackExchange
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.exact import ExactDuplicates
from codekiln.corpus.steps.filters import INCODER_FILTERS, Filters
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.corpus.steps.metadata import FileTags
from codekiln.corpus.steps.redact import Redact
from codekiln.evaluate.config import InfillingConfig
from codekiln.model.configs import incoder as incoder_model
from codekiln.recipe import Recipe
from codekiln.recipes.tokenizers import INCODER_TOKENIZER
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.objectives import CausalMasking
from codekiln.train.schedules import WarmupPolynomial

DATA_FOLDERS = ("github", "gitlab", "bigquery", "stackexchange")

SOURCES = {
    "corpus.sources": "section 3.1",
    "corpus.steps": "section 3.1",
    "corpus.notebooks": "section 3.1",
    "tokenizer.kind": "section 3.1: byte-level BPE, trained on the corpus",
    "tokenizer.vocab_size": "the released vocabulary, without two ids of fairseq that have no use",
    "tokenizer.pattern": "section 3.1: tokens may cross spaces, but not newlines",
    "tokenizer.special_tokens": "section 2.1 and the released vocabulary",
    "model": "appendix A.1 and the released configs",
    "train.objective": "section 2.1, as the released code samples spans",
    "train.total_tokens": "section 3: one pass over 52 billion tokens",
    "train.global_batch_size": "appendix A.1: 8 per GPU on 248 GPUs, if nothing was accumulated",
    "train.initialization": "section 3: from scratch; the std of 0.02 is that of the released configs",
    "train.dropout": "the released configs",
    "train.attention_dropout": "the released configs",
    "train.optimizer.kind": "appendix A.1: Adam",
    "train.optimizer.lr": "not reported: that of GPT-3's size (arXiv 2005.14165, table 2.1)",
    "train.optimizer.betas": "appendix A.1",
    "train.optimizer.eps": "the default of fairseq",
    "train.optimizer.max_grad_norm": "appendix A.1",
    "train.optimizer.schedule": "appendix A.1: polynomial decay, 1,500 warm-up updates; power 1 is the default of fairseq",
}


@dataclass(frozen=True, kw_only=True)
class _Size:
    """The peak learning rate, and the dropout of the released config."""

    lr: float
    dropout: float


_SIZES = {"1B": _Size(lr=2.0e-4, dropout=0.1), "6B": _Size(lr=1.2e-4, dropout=0.0)}


def _data_sources(data: Path) -> tuple[Source, ...]:
    """The data sets of the paper (section 3.1), in folders of `data`."""
    repositories = Selection(
        created=("2008-01-01", "2021-12-09"),
        main_languages=("Python", "JavaScript", "Jupyter"),
        licenses=tuple(sorted(INCODER_LICENSES)),
    )
    return (
        Forge(service="github", folder=data / "github", selection=repositories),
        Forge(service="gitlab", folder=data / "gitlab", selection=repositories),
        GitHubExport(folder=str(data / "bigquery"), languages=("Python", "Jupyter")),
        StackExchange(folder=data / "stackexchange"),
    )


def incoder(size: str, code: Path | None = None, license: str | None = None, data: Path | None = None) -> Recipe:
    """A published size, trained on one pass over 52 billion tokens."""
    sources: tuple[Source, ...] = (InstalledPackages(),)
    if data is not None:
        sources = _data_sources(data)
    elif code is not None:
        sources = (LocalRepositories(folder=code.absolute(), license=license),)
    return Recipe(
        name=f"incoder-{size}",
        corpus=CorpusConfig(
            sources=sources,
            steps=(
                LicenseGate(licenses=INCODER_LICENSES | STACK_EXCHANGE_LICENSES),
                Filters(filters=INCODER_FILTERS),
                Redact(rules=(EMAILS,)),
                ExactDuplicates(),
                FileTags(),
            ),
            notebooks="cells",
            max_overlap=None,
        ),
        tokenizer=replace(INCODER_TOKENIZER, vocab_size=50_516),
        model=incoder_model(size),
        train=TrainConfig(
            objective=CausalMasking(sampling="released"),
            total_tokens=52_000_000_000,
            global_batch_size=8 * 248,
            initialization="normal",
            dropout=_SIZES[size].dropout,
            attention_dropout=0.1,
            optimizer=AdamWConfig(
                lr=_SIZES[size].lr,
                betas=(0.9, 0.98),
                eps=1e-8,
                weight_decay=0.01,  # ours
                max_grad_norm=1.0,
                schedule=WarmupPolynomial(warmup_steps=1500),
            ),
            eval_every=500,
            save_every=500,
            keep_every=5_000,
        ),
        infilling=InfillingConfig(),
    )
