"""Keys and values of the tokens that a sequence has read, so that each token is read once.

B sequence, K key head, T new position, S cached position.
"""

import torch
from torch import Tensor

from codekiln.model.configs import ModelConfig


class KVCache:
    """Keys and values of all layers, each (B, K, capacity, d_head). Every sequence has its own length, (B,)."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: Tensor) -> None:
        self._keys, self._values, self.lengths = keys, values, lengths

    @classmethod
    def allocate(cls, config: ModelConfig, n_sequences: int, capacity: int, *, like: Tensor) -> "KVCache":
        """An empty cache for sequences of at most `capacity` positions, with the device and dtype of `like`."""
        shape = (n_sequences, config.n_kv_heads, capacity, config.d_head)
        keys, values = ([like.new_zeros(shape) for _ in range(config.n_layers)] for _ in range(2))
        return cls(keys, values, torch.zeros(n_sequences, dtype=torch.long, device=like.device))

    @property
    def capacity(self) -> int:
        """Positions that a sequence can have."""
        return self._keys[0].shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v (B, K, T, d_head) after each sequence's length, and returns all keys and values of the layer.

        The lengths stay as they are until `advance`, because all layers write at the same positions.
        """
        T = k.shape[2]
        slots = (self.lengths[:, None] + torch.arange(T, device=k.device))[:, None, :, None].expand_as(k)
        self._keys[layer].scatter_(2, slots, k)
        self._values[layer].scatter_(2, slots, v)
        return self._keys[layer], self._values[layer]

    def advance(self, n: int | Tensor) -> None:
        """Adds `n` new positions, one number or one per sequence (B,), after a forward pass."""
        self.lengths += n
