"""Which document of a cluster of duplicates is kept: one rule for exact and near-duplicates."""

from typing import Any

import numpy as np
import numpy.typing as npt

from codekiln.corpus.licenses import UNKNOWN

# What the rule looks at.
COLUMNS = ("order", "license", "stars", "text_bytes")


def ranks(columns: dict[str, list[Any]]) -> tuple[npt.NDArray[np.int64], ...]:
    """Ranks of documents, least first: the document of a cluster with the least ranks is kept.

    A document with a known license comes before one without, then the one whose repository has more stars, then the larger one,
    then the one that its source lists first.
    """
    is_unknown = np.array([license == UNKNOWN for license in columns["license"]], np.int64)
    stars = np.array([stars or 0 for stars in columns["stars"]], np.int64)
    sizes = np.array(columns["text_bytes"], np.int64)
    return is_unknown, -stars, -sizes, np.array(columns["order"], np.int64)
