"""Limits for copying: a completion ends before a stretch that is verbatim in the training documents becomes too long.

The limit is checked for each token before its text is given to anybody, so a stream never has to take text back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from codekiln.errors import ConfigError

if TYPE_CHECKING:
    from codekiln.index.search import Index, Match

MIN_LIMIT = 16  # shorter stretches are in many documents by design: `for i in range(len(`
MAX_PLACES = 1000  # of a stretch whose licenses are read
N_REDRAWS = 2  # of a sampled completion that a limit ended
WITHHELD: Final = "content_filter"  # OpenAI's `finish_reason` for text that was left out


@dataclass(frozen=True, kw_only=True)
class CopyLimits:
    """The tokens that a verbatim stretch of a completion may have; None for any number.

    `permissive` is for a stretch that a document with a permissive license has, and `other` for one that only documents with
    other or unknown licenses have.
    """

    permissive: int | None
    other: int | None

    def __post_init__(self) -> None:
        for limit in (self.permissive, self.other):
            if limit is not None and limit < MIN_LIMIT:
                raise ConfigError(
                    f"--max-copied-tokens is {limit}: at least {MIN_LIMIT} is needed, because shorter stretches are in the "
                    "documents of many authors"
                )

    @property
    def reason(self) -> str:
        """Why a completion ended, for clients."""
        parts = {"permissive": self.permissive, "other": self.other}
        if self.permissive == self.other:
            return f"it copied more than {self.other} tokens of training documents"
        given = ", ".join(f"{name}={limit}" for name, limit in parts.items() if limit is not None)
        return f"it copied more tokens of training documents than are allowed ({given})"


class CopyLimiter:
    """Limits for the documents of an index. `is_permissive` decides the class of a license. Not thread-safe."""

    def __init__(self, index: "Index", limits: CopyLimits, is_permissive: Callable[[str], bool]) -> None:
        is_permissive("MIT")  # loads its package now, and not with the first long stretch
        self.index, self.limits, self._allows_license = index, limits, is_permissive
        self._is_permissive: dict[int, bool] = {}  # by the number of the document

    def guard(self) -> "CopyGuard":
        """A guard for a new completion."""
        return CopyGuard(self)

    def is_exceeded(self, ids: Sequence[int], match: "Match") -> bool:
        """Whether a limit forbids `ids`, the longest match at the end of a completion.

        Every shorter end has the places of the longer one and more, so the longest end with a permissive place decides for
        `permissive`, and the longest one for `other`.
        """
        permissive, other = self.limits.permissive, self.limits.other
        if other is not None and match.length > other and not self._has_permissive(match):
            return True
        if permissive is None or match.length <= permissive:
            return False
        return self._has_permissive(self.index.find(ids[-permissive - 1 :]))

    def _has_permissive(self, match: "Match") -> bool:
        return any(self._allows(place.document) for place in self.index.places(match, MAX_PLACES))

    def _allows(self, document: int) -> bool:
        found = self._is_permissive.get(document)
        if found is None:
            found = self._is_permissive[document] = self._allows_license(self.index.name(document).license)
        return found


class CopyGuard:
    """Follows the longest match at the end of a completion. The prompt is no part of it."""

    def __init__(self, limiter: CopyLimiter) -> None:
        self._limiter = limiter
        self._ids: list[int] = []  # of the match

    def allows(self, token: int) -> bool:
        """Whether a completion may continue with a token. It is added to the match if so."""
        ids = [*self._ids, token]
        match = self._limiter.index.longest_match(ids, len(ids), guess=len(ids))
        ids = ids[len(ids) - match.length :]
        if self._limiter.is_exceeded(ids, match):
            return False
        self._ids = ids
        return True
