"""What becomes a corpus. Needs no corpus engine."""

from dataclasses import dataclass

from codekiln.corpus.filters import CODEGEN_FILTERS, INCODER_FILTERS, Filter
from codekiln.corpus.licenses import PERMISSIVE
from codekiln.corpus.sources.files import Source
from codekiln.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """The sources of a corpus and its steps in order: license gate, filters, exact duplicates, caps, redaction, split.

    A dropped document is counted by the first of `filters` that drops it.
    """

    sources: tuple[Source, ...]
    licenses: frozenset[str] = PERMISSIVE
    filters: tuple[Filter, ...] = CODEGEN_FILTERS + INCODER_FILTERS
    max_file_bytes: int = 1_000_000
    max_repository_bytes: int | None = None
    validation_fraction: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 0.5:
            raise ConfigError(
                f"corpus.validation_fraction is {self.validation_fraction}: it must be at least 0 and less than 0.5"
            )
