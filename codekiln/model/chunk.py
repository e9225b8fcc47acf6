"""Parts of the flat batch that the decoder reads in one step, and the prefixes that they share."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """New tokens of one sequence, which has read `n_before` tokens of its own range from `start`.

    Before its own range it may see a shared prefix: `prefix_length` tokens from `prefix_start`.
    """

    n_new: int
    start: int
    n_before: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def position(self) -> int:
        """Of the first new token in its sequence."""
        return self.prefix_length + self.n_before


@dataclass(frozen=True)
class SharedPrefix:
    """A range of the pool, `length` tokens from `start`, that the new tokens `tokens` of the batch all see."""

    tokens: slice
    start: int
    length: int


def shared_prefixes(chunks: Sequence[Chunk]) -> list[SharedPrefix]:
    """The prefixes of a batch, in which chunks with the same prefix are adjacent."""
    found: list[SharedPrefix] = []
    at = 0
    for chunk in chunks:
        stop = at + chunk.n_new
        if chunk.prefix_length:
            last = found[-1] if found else None
            is_same = last is not None and (last.start, last.length, last.tokens.stop) == (
                chunk.prefix_start,
                chunk.prefix_length,
                at,
            )
            if last is not None and is_same:
                found[-1] = SharedPrefix(slice(last.tokens.start, stop), last.start, last.length)
            else:
                found.append(SharedPrefix(slice(at, stop), chunk.prefix_start, chunk.prefix_length))
        at = stop
    return found
