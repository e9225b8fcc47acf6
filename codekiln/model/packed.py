"""Causal attention within the documents of packed rows, on CPUs: scores between documents are never computed.

B batch, H head, K key head, T position, D channel of a head.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_Place = tuple[slice, slice, slice]  # in rows, heads and positions


def attend_within(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """q (B, H, T, D), k and v (B, K, T, D) to (B, H, T, D), where H is a multiple of K.

    A query sees the keys of its own document up to itself; `documents` (B, T) numbers them, each one's tokens together.
    """
    out: Tensor = _attend(q, k, v, documents)[0]
    return out


@torch.library.custom_op("codekiln::attend_within", mutates_args=(), device_types="cpu")
def _attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """The output, stored as (B, T, H, D), and the logarithms of the softmax' normalizers (B, H, T)."""
    out, logs = _outputs(q)
    for at in _places(documents):
        out[at], logs[at] = _forward(q[at], k[at], v[at], 0.0, True)
    return out, logs


@torch.library.custom_op("codekiln::attend_within_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, documents: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for at in _places(documents):
        parts = _backward(gradient[at], q[at], k[at], v[at], out[at], logs[at], 0.0, True)
        for whole, part in zip(found, parts, strict=True):
            whole[at] = part
    return found


def _places(documents: Tensor) -> Iterator[_Place]:
    """Where each document is. Rows that follow each other with documents of equal lengths go together."""
    rows = 0
    for bounds, alike in groupby(_bounds(row) for row in documents.numpy()):
        first, rows = rows, rows + sum(1 for _ in alike)
        for start, stop in pairwise(bounds):
            yield slice(first, rows), slice(None), slice(start, stop)


def _bounds(row: npt.NDArray[np.int64]) -> list[int]:
    """Where the documents of a row (T,) begin, and its end."""
    starts: list[int] = (np.flatnonzero(np.diff(row)) + 1).tolist()
    return [0, *starts, len(row)]


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    return _outputs(q)


@_attend_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, documents: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """What `_attend` fills."""
    B, H, T, D = q.shape
    # The kernel adds in float32 where it multiplies in less.
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(B, T, H, D).transpose(1, 2), q.new_empty(B, H, T, dtype=kind)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    *projections, documents = inputs
    ctx.save_for_backward(*projections, *output, documents)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(gradient, *ctx.saved_tensors), None


_attend.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.codekiln.attend_within)
def _(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


@register_flop_formula(torch.ops.codekiln.attend_within_backward)
def _(gradient: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v))  # type: ignore[no-untyped-call]
