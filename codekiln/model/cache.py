"""Keys and values of what a row has read, so that it is read once. Each row has a length of its own.

B batch, K key head, T new position, S cached position.
"""

import torch
from torch import Tensor

from codekiln.model.configs import ModelConfig


class LayerCache:
    """One layer's keys and values, (B, K, capacity, d_head). `lengths` (B,) is shared by all layers of a model."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor) -> None:
        self.keys, self.values, self.lengths = keys, values, lengths

    @property
    def capacity(self) -> int:
        """Positions a row can hold."""
        return self.keys.shape[2]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts k and v (B, K, T, d_head) behind each row's length, which the caller moves on; returns all of the cache."""
        T = k.shape[2]
        slots = (self.lengths[:, None] + torch.arange(T, device=k.device))[:, None, :, None].expand_as(k)
        self.keys.scatter_(2, slots, k)
        self.values.scatter_(2, slots, v)
        return self.keys, self.values


def empty_cache(config: ModelConfig, n_rows: int, capacity: int, *, like: Tensor) -> list[LayerCache]:
    """A cache for `n_rows` rows of at most `capacity` positions, with the device and dtype of `like`."""
    lengths = torch.zeros(n_rows, dtype=torch.long, device=like.device)
    shape = (n_rows, config.n_kv_heads, capacity, config.d_head)
    return [LayerCache(like.new_zeros(shape), like.new_zeros(shape), lengths) for _ in range(config.n_layers)]
