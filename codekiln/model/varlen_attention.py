"""Variable-length causal attention on CPUs: scores between the documents of a sequence are never computed.

B sequence, H head, K key head, T position, D channel of a head.
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
_Slices = tuple[slice, slice, slice]  # of sequences, heads and positions


def document_attention(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) to (B, H, T, D), where H is a multiple of K.

    A query attends to the keys of its document up to itself. `document_ids` (B, T) number the documents, whose tokens must be
    adjacent.
    """
    out: Tensor = _attend(q, k, v, document_ids)[0]
    return out


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


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor]:
    return _outputs(q)


@_attend_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, document_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialized outputs of `_attend`."""
    B, H, T, D = q.shape
    # The kernel accumulates in float32 for shorter dtypes.
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(B, T, H, D).transpose(1, 2), q.new_empty(B, H, T, dtype=kind)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    *projections, document_ids = inputs
    ctx.save_for_backward(*projections, *output, document_ids)


def _autograd_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(gradient, *ctx.saved_tensors), None


_attend.register_autograd(_autograd_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.codekiln.document_attention)
def _(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.codekiln.document_attention_backward)
def _(gradient: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v))  # type: ignore[no-untyped-call]
