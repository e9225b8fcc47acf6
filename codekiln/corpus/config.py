"""What becomes a corpus. Needs no corpus engine."""

from dataclasses import dataclass

from codekiln.corpus.notebooks import NotebookLayout
from codekiln.corpus.sources.files import Source
from codekiln.corpus.steps.copyright import CopyrightNotices
from codekiln.corpus.steps.exact import ExactDuplicates
from codekiln.corpus.steps.filters import CODEGEN_FILTERS, INCODER_FILTERS, Filters
from codekiln.corpus.steps.generated import GeneratedFiles
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.corpus.steps.near import NearDuplicates
from codekiln.corpus.steps.redact import Redact
from codekiln.corpus.steps.step import Step
from codekiln.errors import ConfigError

DEFAULT_STEPS: tuple[Step, ...] = (
    LicenseGate(),
    Filters(filters=CODEGEN_FILTERS + INCODER_FILTERS),
    GeneratedFiles(),
    CopyrightNotices(),
    Redact(),
    ExactDuplicates(),
    NearDuplicates(),
)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Sources, and the steps that their files pass in order; then the split into training and validation."""

    sources: tuple[Source, ...]
    steps: tuple[Step, ...] = DEFAULT_STEPS
    notebooks: NotebookLayout = "script"
    validation_fraction: float = 0.02
    # Training documents are dropped if this fraction of their 50-word runs is in held-out documents (`corpus/overlap.py`).
    max_overlap: float | None = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 0.5:
            raise ConfigError(
                f"corpus.validation_fraction is {self.validation_fraction}: it must be at least 0 and less than 0.5"
            )
        names = [name for step in self.steps for name in (*step.columns, *step.outputs)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"corpus.steps: two steps write {', '.join(repeated)}: leave out one of them")
        compared = [k for k, step in enumerate(self.steps) if isinstance(step, ExactDuplicates | NearDuplicates)]
        edits = [k for k, step in enumerate(self.steps) if type(step).edit_document is not Step.edit_document]
        if compared and edits and max(edits) > min(compared):
            editing, comparing = (type(self.steps[k]).__name__ for k in (max(edits), min(compared)))
            raise ConfigError(f"corpus.steps: {editing} edits texts that {comparing} has compared: put it before")


def named_steps(config: CorpusConfig) -> tuple[tuple[str, Step], ...]:
    """The steps with their names in reports: those of their classes, with a number from the second of a class on."""
    kinds = [type(step).__name__ for step in config.steps]
    counts = [kinds[: k + 1].count(kind) for k, kind in enumerate(kinds)]
    names = [kind if n == 1 else f"{kind} {n}" for kind, n in zip(kinds, counts, strict=True)]
    return tuple(zip(names, config.steps, strict=True))


def step_columns(config: CorpusConfig) -> dict[str, type]:
    """Names and types of the columns of all steps."""
    return {name: kind for step in config.steps for name, kind in step.columns.items()}
