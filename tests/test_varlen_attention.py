"""Varlen attention compared with masked attention of PyTorch: outputs, gradients, and the operator."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codekiln.model.varlen_attention import document_attention

ROWS = [
    [[0] * 12],
    [[0] * 12] * 3,
    [[0] * 5 + [1] * 7, [0] * 5 + [7] * 7, [0] * 7 + [1] * 5],  # documents of equal length share a kernel call
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [3] * 11 + [-1]],  # documents of one token, and padding
]


def projections(rows: list[list[int]], dtype: torch.dtype = torch.float64, n_keys: int = 2) -> list[Tensor]:
    """q with four heads, k, v and a gradient, in the memory layout of the projections of the model."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(rows), len(rows[0]), heads, 8) for heads in (4, n_keys, n_keys, 4)]
    return [torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2) for shape in shapes]


def masked(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=same.tril(), enable_gqa=True)


@pytest.mark.parametrize("n_keys", [1, 2, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_varlen_attention_equals_masked_attention(rows: list[list[int]], n_keys: int) -> None:
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
def test_varlen_attention_equals_masked_attention_in_training_precisions(dtype: torch.dtype) -> None:
    q, k, v, _ = projections(ROWS[2], dtype)
    documents = torch.tensor(ROWS[2])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        document_attention(q, k, v, documents), masked(q, k, v, documents), rtol=tolerance, atol=tolerance
    )


@pytest.mark.process
def test_custom_operator_passes_pytorchs_checks() -> None:
    """Fake outputs have the shapes, strides and dtypes of real ones, nothing is changed in place, gradients are registered."""
    *inputs, _ = projections(ROWS[2], torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    torch.library.opcheck(torch.ops.codekiln.document_attention.default, (*leaves, torch.tensor(ROWS[2])))


def test_kernel_is_called_per_document_length() -> None:
    """The kernel is called once per document length within adjacent rows, and never on a whole sequence."""
    with torch.profiler.profile(record_shapes=True) as profile:
        q, k, v, _ = projections(ROWS[2], torch.float32)
        document_attention(q, k, v, torch.tensor(ROWS[2]))
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    shapes = [event.input_shapes[0] for event in profile.events() if event.name == kernel]
    assert shapes == [[2, 4, 5, 8], [2, 4, 7, 8], [1, 4, 7, 8], [1, 4, 5, 8]]
