"""A part of the flat batch that the decoder reads in one step."""

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
