"""What a step of the corpus is: it drops or edits documents, in up to three phases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from codekiln.corpus.scratch import Scratch
from codekiln.corpus.sources.files import SourceFile

if TYPE_CHECKING:
    import daft


@dataclass
class Draft:
    """A document on its way through the steps. `columns` has values for the last phase, by the names that steps declare.

    `kernel` is the language of a notebook in lower case; empty for other files.
    """

    path: str
    language: str
    text: str
    kernel: str = ""
    columns: dict[str, str | int | float | bytes | None] = field(default_factory=dict)


class Step:
    """Base class of steps. A step overrides the methods of the phases that it takes part in; the others do nothing.

    All steps check files first, then read documents, in the order of the recipe, in one pass over the texts; then they check
    the corpus. A method that checks returns the reason to drop, or None.
    """

    # Names and types of the columns that `check_document` or `edit_document` sets.
    columns: ClassVar[Mapping[str, type]] = {}
    # Names of the files that `check_corpus` writes next to the manifest.
    outputs: ClassVar[tuple[str, ...]] = ()
    # Whether `check_corpus` compares documents, so that nothing is known of a single one.
    compares_documents: ClassVar[bool] = False

    def check_file(self, file: SourceFile) -> str | None:
        """Phase 1: decides about a listed file before it is read."""
        return None

    def check_document(self, draft: Draft) -> str | None:
        """Phase 2: decides about one document. It never edits the text."""
        return None

    def edit_document(self, draft: Draft) -> None:
        """Phase 2: edits the text of one document that is kept so far."""

    def check_corpus(self, rows: "daft.DataFrame", scratch: Scratch) -> "daft.DataFrame":
        """Phase 3: sets `reason` of rows to drop. The rows have all columns but the text, and `order`, `draw` and `reason`.

        `order` numbers the documents, and `draw` is a hash of seed and name: a random order. Rows with a reason were dropped.
        Texts are read from `scratch`.
        """
        return rows

    @staticmethod
    def drop_rows(rows: "daft.DataFrame", orders: Sequence[int], reason: str) -> "daft.DataFrame":
        """The rows with the reason set for those with the given orders. They had none."""
        # The engine is imported when a corpus is built, so that recipes load without it.
        import daft  # noqa: PLC0415
        import pyarrow as pa  # noqa: PLC0415

        reasons = pa.array([reason] * len(orders), pa.string())
        dropped = daft.from_arrow(pa.table({"order": pa.array(orders, pa.int64()), "new": reasons}))
        joined = rows.join(dropped, on="order", how="left")
        return joined.with_column("reason", daft.col("reason").fill_null(daft.col("new"))).select(*rows.column_names)
