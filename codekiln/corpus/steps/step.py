"""What a step of the corpus is: it drops or edits documents, in up to five phases."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from codekiln.corpus.scratch import Drops, Scratch
from codekiln.corpus.sources.files import SourceFile


@dataclass(frozen=True)
class Drop:
    """Why a document is dropped, and the value that was measured, if the reason is one."""

    reason: str
    measured: float | None = None


@dataclass
class Draft:
    """A document on its way through the steps. `columns` has values for the later phases, by the names that steps declare.

    `kernel` is the programming language of a notebook. `original` is the text before any step edited it.
    """

    file: SourceFile
    language: str
    text: str
    license: str
    kernel: str = ""
    columns: dict[str, str | int | float | bytes | None] = field(default_factory=dict)
    original: str = field(init=False)

    def __post_init__(self) -> None:
        self.original = self.text

    @property
    def path(self) -> str:
        return self.file.path


class Step:
    """Base class of steps. A step overrides the methods of the phases that it takes part in; the others do nothing.

    All steps check files first, then read documents, in the order of the recipe, in one pass over the texts; then they check
    the corpus; then files about it are written, and the documents that are kept. A check returns a `Drop`, or None.
    """

    # Whether `edit_document` removes what nobody may read, so that documents that an earlier step drops need it, too.
    redacts: ClassVar[bool] = False
    # Names and types of the columns that `check_document` or `edit_document` sets.
    columns: ClassVar[Mapping[str, type]] = {}
    # Names of the files that `check_corpus` writes next to the manifest.
    outputs: ClassVar[tuple[str, ...]] = ()
    # Whether `check_corpus` compares documents, so that nothing is known of a single one.
    compares_documents: ClassVar[bool] = False

    def check_file(self, file: SourceFile) -> Drop | None:
        """Phase 1: decides about a listed file before it is read. It may be asked twice, and answers the same."""
        return None

    def check_document(self, draft: Draft) -> Drop | None:
        """Phase 2: decides about one document. It never edits the text."""
        return None

    def edit_document(self, draft: Draft) -> None:
        """Phase 2: edits the text of one document that is kept so far."""

    def check_corpus(self, scratch: Scratch) -> Drops | None:
        """Phase 3: which of the documents that are kept so far are dropped. `scratch` has their columns and texts."""
        return None

    def finish_corpus(self, scratch: Scratch) -> None:
        """Phase 4: writes files about the documents that are kept in the end, or about those that were dropped."""

    def finish_document(self, document: Mapping[str, Any], text: str, scratch: Scratch) -> str:
        """Phase 5: the text as it is written, of a document that is kept. `document` has its other columns."""
        return text
