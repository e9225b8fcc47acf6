"""Attention over the pool of a flat batch by FlashAttention, for GPUs.

N token of the batch, H head, K key head, S token of the pool, d channel of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from codekiln.model.chunk import Chunk, shared_prefixes

_flash_forward = torch.ops.aten._flash_attention_forward


@dataclass(frozen=True)
class _Plan:
    """One call of the kernel: for each range of the pool, in the order of their starts, the queries that read it."""

    tokens: Tensor  # places of the queries in the batch, grouped by range
    query_offsets: Tensor  # where the queries of each range begin, and their number
    key_starts: Tensor  # where each range begins in the pool, and the size of the pool
    key_lengths: Tensor  # tokens of each range that are read
    max_queries: int
    max_keys: int
    is_causal: bool

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (n, H, d) of the queries in `tokens`, and the log-sum-exp of their scores (H, n) if `max_queries` > 1."""
        chosen = q[self.tokens]
        out, logsumexp, *_ = _flash_forward(
            chosen,
            keys,
            values,
            self.query_offsets,
            self.key_starts,
            self.max_queries,
            self.max_keys,
            0.0,
            self.is_causal,
            False,
            seqused_k=self.key_lengths,
        )
        return out, logsumexp


class FlashBatchAttention:
    """Each token attends to its own range of the pool up to itself, and to all of its shared prefix if it has one."""

    def __init__(self, chunks: Sequence[Chunk], n_pool: int, device: torch.device) -> None:
        ends = np.cumsum([chunk.n_new for chunk in chunks])
        places = [np.arange(end - chunk.n_new, end) for chunk, end in zip(chunks, ends, strict=True)]
        own = [(chunk.start, chunk.n_before + chunk.n_new, place) for chunk, place in zip(chunks, places, strict=True)]
        shared = [
            (prefix.start, prefix.length, np.arange(prefix.tokens.start, prefix.tokens.stop))
            for prefix in shared_prefixes(chunks)
        ]
        self._own = _plan(own, n_pool, device, is_causal=True, is_merged=bool(shared))
        self._shared = _plan(shared, n_pool, device, is_causal=False, is_merged=True) if shared else None

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q (N, H, d), and keys and values of the pool (S, K, d), to (N, H, d)."""
        own, own_logsumexp = self._own(q, keys, values)
        out = torch.empty_like(q)
        out[self._own.tokens] = own
        if self._shared is None:
            return out
        prefix, prefix_logsumexp = self._shared(q, keys, values)
        logsumexp = q.new_empty(q.shape[:2], dtype=torch.float32)
        logsumexp[self._own.tokens] = own_logsumexp.T
        # The share of the prefix in the sum of the exponentials of all scores.
        weight = torch.sigmoid(prefix_logsumexp.T - logsumexp[self._shared.tokens])[..., None]
        out[self._shared.tokens] = torch.lerp(out[self._shared.tokens].float(), prefix.float(), weight).to(out.dtype)
        return out


def _plan(
    ranges: Sequence[tuple[int, int, np.ndarray]],
    n_pool: int,
    device: torch.device,
    *,
    is_causal: bool,
    is_merged: bool,
) -> _Plan:
    """The plan for ranges of the pool: start, length, and the places of the queries."""
    ordered = sorted(ranges, key=lambda each: each[0])
    assert all(a[0] + a[1] <= b[0] for a, b in pairwise(ordered)), "ranges of the pool overlap"
    lengths = [length for _, length, _ in ordered]
    counts = [len(places) for _, _, places in ordered]
    offsets = np.concatenate([[0], np.cumsum(counts), [start for start, _, _ in ordered], [n_pool], lengths]).astype(
        np.int32
    )
    n = len(ordered)
    on_device = torch.from_numpy(offsets).to(device)  # in one transfer
    return _Plan(
        torch.from_numpy(np.concatenate([places for _, _, places in ordered])).to(device),
        on_device[: n + 1],
        on_device[n + 1 : 2 * n + 2],
        on_device[2 * n + 2 :],
        # With one query per range, the kernel returns the log-sum-exp in another layout.
        max(2, *counts) if is_merged else max(counts),
        max(lengths),
        is_causal,
    )
