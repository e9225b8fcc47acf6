"""A pool that stores keys, values and inputs of convolutions of earlier tokens; attention and convolutions over it.

A batch is flat: the new tokens of several sequences, one after the other.

N token of the batch, H head, K key head, S token of the pool, d channel of a head, D model width, W width of a convolution.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from codekiln.model.chunk import Chunk, shared_prefixes
from codekiln.model.configs import Lfm2Config, ModelConfig
from codekiln.model.flash_attention import FlashBatchAttention
from codekiln.model.varlen_attention import has_flash_attention

HAS_KERNELS = importlib.util.find_spec("numba") is not None
# Longer chunks of one sequence use PyTorch's attention, which is faster for them.
MAX_KERNEL_CHUNK = 16
Array = npt.NDArray[Any]


class Attend(Protocol):
    """Attention and convolutions of the layers, over a pool. Each call first stores its new tokens in the pool.

    `layer` counts layers of the same kind, from 0: layers with attention in `__call__`, those with a convolution in `convolve`.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, H, d), k and v (N, K, d) to (N, H * d)."""
        ...

    def convolve(self, layer: int, gated: Tensor, kernel: Tensor) -> Tensor:
        """The convolution of the inputs `gated` (N, D) with `kernel` (D, W): (N, D)."""
        ...


class KVPool:
    """Keys and values of layers with attention, each (layers, S, K, d), and the inputs of convolutions (layers, S, D).

    A sequence has ranges of consecutive tokens in it.
    """

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """The bytes of one token in the pool of a model."""
        n_attention = len(config.layers_with_attention)
        n_numbers = 2 * n_attention * config.n_kv_heads * config.d_head
        return dtype.itemsize * (n_numbers + (config.n_layers - n_attention) * config.d_model)

    def __init__(self, config: ModelConfig, n_tokens: int, *, like: Tensor) -> None:
        n_attention = len(config.layers_with_attention)
        shape = (n_attention, n_tokens, config.n_kv_heads, config.d_head)
        self.config, self.n_tokens = config, n_tokens
        # On CPUs, memory that was never written is not resident.
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.inputs = like.new_empty(config.n_layers - n_attention, n_tokens, config.d_model)
        self.has_kernels = HAS_KERNELS and like.is_cpu and like.dtype == torch.float32
        self.has_flash = (
            like.dtype == torch.bfloat16
            and has_flash_attention(like.device, config.d_head)
            and torch.cuda.is_bf16_supported(including_emulation=False)  # older GPUs have no such kernel
        )

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copies a range of tokens to another place."""
        for pool in (self.keys, self.values, self.inputs):
            pool[:, target : target + n_tokens] = pool[:, source : source + n_tokens].clone()


class BatchAttention:
    """Attention and convolutions of a flat batch of chunks.

    Chunks of more than `MAX_KERNEL_CHUNK` tokens have no shared prefix and come last. Chunks with the same prefix are adjacent.
    """

    def __init__(self, pool: KVPool, chunks: Sequence[Chunk]) -> None:
        self._pool = pool
        slots = [np.arange(c.start + c.n_before, c.start + c.n_before + c.n_new) for c in chunks]
        self._slots = np.concatenate(slots)
        self._slots_tensor = torch.from_numpy(self._slots).to(pool.keys.device)
        # (N, W - 1): where the tokens before each token are, the nearest first; -1 before the first of a sequence.
        self._earlier = np.empty((len(self._slots), 0), np.int64)
        if isinstance(pool.config, Lfm2Config):
            self._earlier = np.concatenate([_earlier_slots(c, pool.config.conv_width - 1) for c in chunks])
        self._earlier_tensor = torch.from_numpy(self._earlier).to(pool.keys.device)
        self._has_kernels = pool.has_kernels
        self._flash: FlashBatchAttention | None = None
        if pool.has_flash:
            self._flash = FlashBatchAttention(chunks, pool.n_tokens, pool.keys.device)
            return
        small = [c for c in chunks if c.n_new <= MAX_KERNEL_CHUNK]
        self._long = [c for c in chunks if c.n_new > MAX_KERNEL_CHUNK]
        assert list(chunks[len(small) :]) == self._long
        self._n_small = sum(c.n_new for c in small)
        self._starts = np.repeat(np.array([c.start for c in small], np.int64), [c.n_new for c in small])
        self._lengths = np.concatenate(
            [np.arange(c.n_before + 1, c.n_before + c.n_new + 1) for c in small] or [np.empty(0, np.int64)]
        )
        self._shared = shared_prefixes(small)
        if self._has_kernels:
            self._key_arrays, self._value_arrays = pool.keys.numpy(), pool.values.numpy()
            self._input_arrays = pool.inputs.numpy()

    @property
    def is_small(self) -> bool:
        """Whether the compiled kernels attend for all tokens."""
        return self._has_kernels and not self._long

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, H, d), k and v (N, K, d) to (N, H * d)."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        keys.index_copy_(0, self._slots_tensor, k)
        values.index_copy_(0, self._slots_tensor, v)
        if self._flash is not None:
            return self._flash(q, keys, values).flatten(1)
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        if self._n_small:
            self._attend_small(layer, q[: self._n_small], out[: self._n_small])
        at = self._n_small
        for chunk in self._long:
            stop = chunk.start + chunk.n_before + chunk.n_new
            y = _attend_chunk(q[at : at + chunk.n_new], keys[chunk.start : stop], values[chunk.start : stop])
            out[at : at + chunk.n_new] = y
            at += chunk.n_new
        return out

    def convolve(self, layer: int, gated: Tensor, kernel: Tensor) -> Tensor:
        """The convolution of the inputs `gated` (N, D) with `kernel` (D, W): (N, D)."""
        inputs = self._pool.inputs[layer]
        inputs.index_copy_(0, self._slots_tensor, gated)
        y = gated * kernel[:, -1]
        for distance in range(1, kernel.shape[1]):
            slots = self._earlier_tensor[:, distance - 1]
            before = torch.where((slots >= 0)[:, None], inputs[slots.clamp(min=0)], 0)
            y = y + before * kernel[:, -1 - distance]
        return y

    def convolve_arrays(self, layer: int, product: Array, kernel: Array, out: Array) -> None:
        """`convolve` for arrays, with both gates: the joint projection `product` (N, 3 D) to `out` (N, D)."""
        from codekiln.model import cpu_kernels  # noqa: PLC0415 - an optional package

        cpu_kernels.convolve(product, kernel, self._slots, self._earlier, self._input_arrays[layer], out)

    def attend_arrays(self, layer: int, q: Array, k: Array, v: Array, out: Array) -> None:
        """Attention for arrays, if the batch `is_small`. The result is written to `out` (N, H * d)."""
        from codekiln.model import cpu_kernels  # noqa: PLC0415 - an optional package

        cpu_kernels.store(k, v, self._slots, self._key_arrays[layer], self._value_arrays[layer])
        self._attend_with_kernel(layer, q, out)

    def _attend_small(self, layer: int, q: Tensor, out: Tensor) -> None:
        if self._has_kernels:
            self._attend_with_kernel(layer, q.contiguous().numpy(), out.numpy())
            return
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        states = self._shared_states(layer, q)
        starts = torch.from_numpy(self._starts).to(q.device)
        lengths = torch.from_numpy(self._lengths).to(q.device)
        places = torch.arange(int(self._lengths.max()), device=q.device)
        is_seen = places < lengths[:, None]  # (N, longest)
        ranges = torch.where(is_seen, starts[:, None] + places, starts[:, None])
        group = q.shape[1] // keys.shape[1]
        k, v = (pool[ranges].repeat_interleave(group, 2).float() for pool in (keys, values))  # (N, longest, H, d)
        scores = torch.einsum("nhd,nshd->nhs", q.float(), k) / math.sqrt(q.shape[2])
        scores = scores.masked_fill(~is_seen[:, None], -torch.inf)
        largest = torch.maximum(scores.amax(-1), states.maxima)
        weights = (scores - largest[..., None]).exp()
        factor = (states.maxima - largest).exp()
        total = torch.einsum("nhs,nshd->nhd", weights, v) + states.sums_of_values * factor[..., None]
        out.copy_((total / (weights.sum(-1) + states.sums * factor)[..., None]).flatten(1))

    def _attend_with_kernel(self, layer: int, q: Array, out: Array) -> None:
        from codekiln.model import cpu_kernels  # noqa: PLC0415 - an optional package

        shape = q.shape[:2]
        if self._shared:
            states = self._shared_states(layer, torch.from_numpy(q))
            out[:] = states.sums_of_values.flatten(1).numpy()
            maxima, sums = states.maxima.numpy(), states.sums.numpy()
        else:
            maxima, sums = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.float32)
            out[:] = 0
        keys, values = self._key_arrays[layer], self._value_arrays[layer]
        cpu_kernels.attend(q, keys, values, self._starts, self._lengths, maxima, sums, out, torch.get_num_threads())

    def _shared_states(self, layer: int, q: Tensor) -> "_SoftmaxStates":
        """The softmax of each token over its shared prefix: one matrix product per head for all tokens that share it."""
        N, H, d = q.shape
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        K = keys.shape[1]
        maxima = torch.full((N, H), -torch.inf, device=q.device)
        sums, totals = torch.zeros(N, H, device=q.device), torch.zeros(N, H, d, device=q.device)
        for shared in self._shared:
            at = slice(shared.start, shared.start + shared.length)
            n = shared.tokens.stop - shared.tokens.start
            queries = q[shared.tokens].view(n, K, H // K, d).transpose(0, 1).reshape(K, -1, d).float()
            scores = queries @ keys[at].permute(1, 2, 0).float() / math.sqrt(d)  # (K, n H / K, P)
            largest = scores.amax(-1, keepdim=True)
            weights = scores.sub_(largest).exp_()
            total = weights @ values[at].transpose(0, 1).float()
            maxima[shared.tokens] = largest.view(K, n, H // K).transpose(0, 1).reshape(n, H)
            sums[shared.tokens] = weights.sum(-1).view(K, n, H // K).transpose(0, 1).reshape(n, H)
            totals[shared.tokens] = total.view(K, n, H // K, d).transpose(0, 1).reshape(n, H, d)
        return _SoftmaxStates(maxima, sums, totals)


@dataclass(frozen=True)
class _SoftmaxStates:
    """Of each token and head: the largest score (N, H), and the sums of exponentials (N, H) and of values (N, H, d)."""

    maxima: Tensor
    sums: Tensor
    sums_of_values: Tensor


def _earlier_slots(chunk: Chunk, n: int) -> Array:
    """The places in the pool of the `n` tokens before each new token, (n_new, n), the nearest first."""
    places = chunk.n_before + np.arange(chunk.n_new)[:, None] - np.arange(1, n + 1)  # in its own range
    in_prefix = places + chunk.prefix_length
    before = np.where(in_prefix >= 0, chunk.prefix_start + in_prefix, -1)
    found: Array = np.where(places >= 0, chunk.start + places, before)
    return found


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q (N, H, d) of the last N of `keys` and `values` (S, K, d) to (N, H * d)."""
    N, H, _ = q.shape
    S, K, _ = keys.shape
    k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    if H != K and not q.is_cpu and N != S:
        # The fused kernels of GPUs support shared key heads or a mask, but not both.
        k, v = (each.repeat_interleave(H // K, dim=1) for each in (k, v))
    mask = None if N == S else torch.ones(N, S, dtype=torch.bool, device=q.device).tril(S - N)
    y = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=k.shape[1] != H
    )
    return y[0].transpose(0, 1).reshape(N, -1)
