"""Prompt lookup: the next tokens are guessed by copying what followed the same tokens earlier (Saxena 2023).

Code repeats names, calls and lines, so the guesses are often right, and the model verifies several of them in one step.
"""

from collections.abc import Iterable

N_GRAM = 3  # tokens that must be the same
MAX_DRAFT = 8
FIRST_DRAFT = 2


class PromptLookup:
    """The tokens of a sequence, and where its n-grams were last. The length of drafts follows how many were right."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram to the place after its last occurrence but the very last
        self._limit = FIRST_DRAFT
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens."""
        for token in tokens:
            if len(self._tokens) >= N_GRAM:
                self._ends[tuple(self._tokens[-N_GRAM:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, max_tokens: int) -> list[int]:
        """The tokens that followed the last ones when they occurred before; none if they did not."""
        at = self._ends.get(tuple(self._tokens[-N_GRAM:]))
        return [] if at is None else self._tokens[at : at + min(self._limit, max_tokens)]

    def report(self, n_drafted: int, n_accepted: int) -> None:
        """Records how many tokens of a draft were right."""
        if n_accepted == n_drafted:
            self._limit = min(self._limit + 2, MAX_DRAFT)
        elif n_accepted == 0:
            self._limit = max(self._limit // 2, 1)
