"""Attention within documents against PyTorch's own under a mask: outputs, gradients, compiled and not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codekiln.model.varlen_attention import document_attention

ROWS = [
    [[0] * 12],
    [[0] * 12] * 3,
    [[0] * 5 + [1] * 7, [0] * 5 + [7] * 7, [0] * 7 + [1] * 5],  # equal lengths go together, others do not
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3] * 11 + [-1]],  # a token alone, and padding
]


def projections(rows: list[list[int]], dtype: torch.dtype = torch.float64, n_keys: int = 2) -> list[Tensor]:
    """q of four heads, k, v and a gradient, stored position by position as the model's projections are."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(rows), len(rows[0]), heads, 8) for heads in (4, n_keys, n_keys, 4)]
    return [torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2) for shape in shapes]


def masked(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=same.tril(), enable_gqa=True)


@pytest.mark.parametrize("n_keys", [1, 2, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_it_is_attention_under_a_mask(rows: list[list[int]], n_keys: int) -> None:
    *inputs, gradient = projections(rows, n_keys=n_keys)
    documents = torch.tensor(rows)
    found: list[list[Tensor | None]] = []
    attends: list[Callable[..., Tensor]] = [document_attention, masked]
    for attend in attends:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = attend(*leaves, documents)
        out.backward(gradient)  # type: ignore[no-untyped-call]
        found.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precisions_of_training(dtype: torch.dtype) -> None:
    q, k, v, _ = projections(ROWS[2], dtype)
    documents = torch.tensor(ROWS[2])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        document_attention(q, k, v, documents), masked(q, k, v, documents), rtol=tolerance, atol=tolerance
    )


def test_the_operator_keeps_pytorchs_rules() -> None:
    """Fake outputs have the real ones' shapes, strides and types; nothing is changed in place; gradients are registered."""
    *inputs, _ = projections(ROWS[2], torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    torch.library.opcheck(torch.ops.codekiln.document_attention.default, (*leaves, torch.tensor(ROWS[2])))


def test_documents_cost_what_they_are_long() -> None:
    """Each is asked of the kernel alone, rows of equal lengths together."""
    with torch.profiler.profile(record_shapes=True) as profile:
        q, k, v, _ = projections(ROWS[2], torch.float32)
        document_attention(q, k, v, torch.tensor(ROWS[2]))
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    shapes = [event.input_shapes[0] for event in profile.events() if event.name == kernel]
    assert shapes == [[2, 4, 5, 8], [2, 4, 7, 8], [1, 4, 7, 8], [1, 4, 5, 8]]
