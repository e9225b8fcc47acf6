"""Caps: a repository has at most a number of bytes, so that large ones are not most of the corpus."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codekiln.corpus.scratch import Scratch
from codekiln.corpus.steps.step import Step

if TYPE_CHECKING:
    import daft

CAPPED = "over its repository's cap"


@dataclass(frozen=True, kw_only=True)
class RepositoryCap(Step):
    """Keeps documents of each repository in random order until they exceed `max_bytes`."""

    compares_documents = True

    max_bytes: int

    def check_corpus(self, rows: "daft.DataFrame", scratch: Scratch) -> "daft.DataFrame":
        # The engine is imported when a corpus is built, so that recipes load without it.
        from daft import DataType, Window, col, lit  # noqa: PLC0415
        from daft.functions import when  # noqa: PLC0415

        dropped, kept = rows.where(col("reason").not_null()), rows.where(col("reason").is_null())
        window = Window().partition_by("repository").order_by("draw", "order")
        window = window.rows_between(Window.unbounded_preceding, Window.current_row)
        running = kept.with_column("running", col("text_bytes").sum().over(window))
        is_over = col("running") > lit(self.max_bytes)
        reason = when(is_over, lit(CAPPED)).otherwise(lit(None).cast(DataType.string()))
        decided = running.with_column("reason", reason).exclude("running")
        columns = rows.column_names
        return dropped.select(*columns).concat(decided.select(*columns))
