"""Which tokens are where in the pool, and which of them a new prompt can use again.

The pool stores keys, values and inputs of short convolutions (`codekiln/model/cache.py`). A range belongs to one sequence, or
is a prompt that several samples share. After its sequence has ended it stays as a cached prefix, until its place is needed:
the one that was used longest ago goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Range:
    """`capacity` tokens of the pool from `start`. `tokens` are those that are stored, in order.

    Ranges with another `cache_key` never share tokens: how fast an answer comes would tell one user what another one wrote.
    """

    start: int
    capacity: int
    cache_key: str
    tokens: list[int] = field(default_factory=list)
    n_users: int = 1
    last_used: int = 0

    @property
    def stop(self) -> int:
        """The end of the range in the pool."""
        return self.start + self.capacity


@dataclass(frozen=True)
class Match:
    """A range whose first `length` tokens are those of a prompt."""

    range: Range
    length: int


class PrefixCache:
    """The ranges of a pool of `n_tokens`."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self._ranges: list[Range] = []  # in the order of their places
        self._clock = 0

    @property
    def n_cached(self) -> int:
        """Tokens that are stored, for sequences and for prompts to come."""
        return sum(len(each.tokens) for each in self._ranges)

    def find(self, prompt: Sequence[int], cache_key: str) -> Match | None:
        """The range with the longest common prefix, of at least one token and less than the whole prompt."""
        best: Match | None = None
        for each in self._ranges:
            if each.cache_key == cache_key and each.tokens and each.tokens[0] == prompt[0]:
                length = common_length(each.tokens, prompt, len(prompt) - 1)
                if length and (best is None or length > best.length):
                    best = Match(each, length)
        return best

    def allocate(self, capacity: int, cache_key: str) -> Range | None:
        """A new range in use, at the cost of the oldest ones without a user. None if there is no room."""
        start = self._first_gap(capacity)
        if start is None:
            idle = sorted((each for each in self._ranges if not each.n_users), key=lambda each: each.last_used)
            if not self._fits_without(capacity, idle):
                return None
            while start is None:
                self._ranges.remove(idle.pop(0))
                start = self._first_gap(capacity)
        found = Range(start, capacity, cache_key)
        self._ranges.append(found)
        self._ranges.sort(key=lambda each: each.start)
        return found

    def use(self, used: Range) -> None:
        """Adds a user, who keeps the range where it is."""
        used.n_users += 1

    def release(self, used: Range) -> None:
        """Removes a user. The tokens stay for prompts to come."""
        used.n_users -= 1
        self._clock += 1
        used.last_used = self._clock
        if not used.n_users and not used.tokens:
            self._ranges.remove(used)

    def drop(self, used: Range) -> None:
        """Frees a range with its tokens."""
        self._ranges.remove(used)

    def drop_unused(self) -> None:
        """Frees all ranges without a user, with their tokens."""
        self._ranges = [each for each in self._ranges if each.n_users]

    def _first_gap(self, capacity: int) -> int | None:
        at = 0
        for each in self._ranges:
            if each.start - at >= capacity:
                return at
            at = each.stop
        return at if self.n_tokens - at >= capacity else None

    def _fits_without(self, capacity: int, idle: Sequence[Range]) -> bool:
        at, removed = 0, {id(each) for each in idle}
        for each in self._ranges:
            if id(each) in removed:
                continue
            if each.start - at >= capacity:
                return True
            at = each.stop
        return self.n_tokens - at >= capacity


def common_length(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """How many tokens, at most `limit`, are the same at the beginning of both."""
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b or at == limit:
            return at
    return min(len(first), len(second), limit)
