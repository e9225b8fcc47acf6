"""Variable-length causal attention: scores between the documents of a sequence are never computed.

On CPUs by PyTorch's kernel for each document, on GPUs by FlashAttention for all of them. B sequence, H head, K key head,
T position, D channel of a head, N document.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

_sdpa_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_sdpa_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_flash_forward = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward
_HAS_FLASH = torch.backends.cuda.is_flash_attention_available() and torch.version.hip is None
_Slices = tuple[slice, slice, slice]  # of sequences, heads and positions


def document_attention(
    q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor, document_offsets: Tensor | None = None
) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) to (B, H, T, D), where H is a multiple of K.

    A query attends to the keys of its document up to itself. `document_ids` (B, T) number the documents, whose tokens must be
    adjacent. GPUs need `document_offsets` (see `find_document_offsets`) and tensors in bfloat16; CPUs ignore them.
    """
    if q.is_cpu or document_offsets is None:
        out: Tensor = _attend(q, k, v, document_ids)[0]
    else:
        out = _flash_attend(q, k, v, document_offsets)[0]
    return out


def find_document_offsets(document_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Where each document begins in the sequences of `document_ids` (B, T) one after the other, and B * T: (N + 1,)."""
    B, T = document_ids.shape
    starts = [b * T + place for b, row in enumerate(document_ids) for place in _document_bounds(row)[:-1]]
    return np.array([*starts, B * T], np.int32)


def has_flash_attention(device: torch.device, d_head: int) -> bool:
    """Whether FlashAttention computes heads of this size on a device. Some GPUs have no backward pass between 192 and 224."""
    return _HAS_FLASH and device.type == "cuda" and d_head % 8 == 0 and (d_head <= 192 or 224 < d_head <= 256)


@torch.library.custom_op("codekiln::document_attention", mutates_args=(), device_types="cpu")
def _attend(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, D), stored as (B, T, H, D), and the log-sum-exp of the scores (B, H, T)."""
    out, logsumexp = _outputs(q)
    for at in _document_slices(document_ids):
        out[at], logsumexp[at] = _sdpa_forward(q[at], k[at], v[at], 0.0, True)
    return out, logsumexp


@torch.library.custom_op("codekiln::document_attention_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, document_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for at in _document_slices(document_ids):
        parts = _sdpa_backward(gradient[at], q[at], k[at], v[at], out[at], logsumexp[at], 0.0, True)
        for whole, part in zip(found, parts, strict=True):
            whole[at] = part
    return found


def _document_slices(document_ids: Tensor) -> Iterator[_Slices]:
    """The slice of each document. Adjacent sequences with documents of equal lengths are processed together."""
    rows = 0
    for bounds, group in groupby(_document_bounds(row) for row in document_ids.numpy()):
        first, rows = rows, rows + sum(1 for _ in group)
        for start, stop in pairwise(bounds):
            yield slice(first, rows), slice(None), slice(start, stop)


def _document_bounds(row: npt.NDArray[np.int64]) -> list[int]:
    """Where the documents of a sequence (T,) begin, and its end."""
    starts: list[int] = (np.flatnonzero(np.diff(row)) + 1).tolist()
    return [0, *starts, len(row)]


@torch.library.custom_op("codekiln::flash_document_attention", mutates_args=(), device_types="cuda")
def _flash_attend(q: Tensor, k: Tensor, v: Tensor, document_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The output (B, H, T, D), stored as (B, T, H, D), and the log-sum-exp of the scores (H, B * T)."""
    B, _, T, _ = q.shape
    flat = [_flatten(each) for each in (q, k, v)]
    bounds = (document_offsets, document_offsets, T, T)
    out, logsumexp, *_ = _flash_forward(*flat, *bounds, 0.0, True, False)
    return _unflatten(out, B), logsumexp


@torch.library.custom_op("codekiln::flash_document_attention_backward", mutates_args=(), device_types="cuda")
def _flash_attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, document_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, T, _ = q.shape
    flat = [_flatten(each) for each in (gradient, q, k, v, out)]
    bounds = (document_offsets, document_offsets, T, T)
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
    gradients = _flash_backward(*flat, logsumexp, *bounds, 0.0, True, *no_dropout)
    found = [_unflatten(each, B) for each in gradients]
    return found[0], found[1], found[2]


def _flatten(x: Tensor) -> Tensor:
    """(B, H, T, D) to (B * T, H, D)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _unflatten(x: Tensor, n_sequences: int) -> Tensor:
    """(B * T, H, D) to (B, H, T, D), stored as (B, T, H, D)."""
    return x.view(n_sequences, -1, *x.shape[1:]).transpose(1, 2)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor]:
    return _outputs(q)


@_attend_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, document_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@_flash_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, document_offsets: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D).transpose(1, 2), q.new_empty(H, B * T, dtype=torch.float32)


@_flash_attend_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, document_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q_like, k_like, v_like = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k, v))
    return q_like, k_like, v_like


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialized outputs of `_attend`."""
    B, H, T, D = q.shape
    # The kernel accumulates in float32 for shorter dtypes.
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(B, T, H, D).transpose(1, 2), q.new_empty(B, H, T, dtype=kind)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    *projections, documents = inputs
    ctx.save_for_backward(*projections, *output, documents)


def _autograd_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(gradient, *ctx.saved_tensors), None


def _flash_autograd_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_flash_attend_backward(gradient, *ctx.saved_tensors), None


_attend.register_autograd(_autograd_backward, setup_context=_setup_context)
_flash_attend.register_autograd(_flash_autograd_backward, setup_context=_setup_context)


@register_flop_formula([torch.ops.codekiln.document_attention, torch.ops.codekiln.flash_document_attention])
def _(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


@register_flop_formula(
    [torch.ops.codekiln.document_attention_backward, torch.ops.codekiln.flash_document_attention_backward]
)
def _(gradient: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v))  # type: ignore[no-untyped-call]
