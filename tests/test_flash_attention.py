"""The calls of FlashAttention that GPUs make, with a plain version of its kernel, compared with the attention of CPUs.

`tests/test_cuda.py` runs the kernel itself.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from codekiln.model import flash_attention
from codekiln.model.cache import BatchAttention, KVPool
from codekiln.model.chunk import Chunk
from codekiln.model.configs import KilnConfig
from codekiln.model.flash_attention import FlashBatchAttention
from codekiln.model.varlen_attention import find_document_offsets

CONFIG = KilnConfig(
    n_layers=1, d_model=32, n_heads=4, n_kv_heads=2, d_head=8, d_ff=32, vocab_size=10, context_length=256
)
BATCHES = {
    "one token": [Chunk(1, 40, 7)],
    "places in another order than the batch": [Chunk(1, 100, 3), Chunk(2, 20, 0), Chunk(1, 60, 30)],
    "a long chunk at the end": [Chunk(3, 90, 5), Chunk(40, 0, 20)],
    "samples of one prompt": [Chunk(1, 150 + 10 * k, k, 30, 25) for k in range(4)],
    "two prompts, one sample alone": [
        *(Chunk(1, 150 + 10 * k, 2 * k, 90, 11) for k in range(3)),
        *(Chunk(1, 60 + 8 * k, k, 0, 50) for k in range(2)),
        Chunk(2, 200, 4),
    ],
}


def plain_kernel(
    q: Tensor, keys: Tensor, values: Tensor, q_offsets: Tensor, k_offsets: Tensor, max_q: int, max_k: int,
    dropout: float, is_causal: bool, has_debug_mask: bool, *, seqused_k: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `aten::_flash_attention_forward` computes: sequence i has the queries between `q_offsets` i and i + 1, and the first
    `seqused_k[i]` keys from `k_offsets[i]`. With causal attention, the last query sees all of them."""
    assert not dropout
    assert not has_debug_mask
    out, logsumexp = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    group = q.shape[1] // keys.shape[1]
    for (first, last), start, n in zip(
        pairwise(q_offsets.tolist()), k_offsets.tolist(), seqused_k.tolist(), strict=False
    ):
        assert last - first <= max_q
        assert n <= max_k
        k, v = (each[start : start + n].repeat_interleave(group, 1) for each in (keys, values))
        scores = torch.einsum("nhd,shd->hns", q[first:last], k) / math.sqrt(q.shape[2])
        if is_causal:
            hidden = ~torch.ones(last - first, n, dtype=torch.bool).tril(n - (last - first))
            scores = scores.masked_fill(hidden, -torch.inf)
        logsumexp[:, first:last] = scores.logsumexp(-1)
        out[first:last] = torch.einsum("hns,shd->nhd", scores.softmax(-1), v)
    # With one query for each sequence, the real kernel returns another layout.
    return out, logsumexp if max_q > 1 else logsumexp.T[..., None]


@pytest.mark.parametrize("chunks", BATCHES.values(), ids=BATCHES)
def test_a_batch_attends_as_on_cpus(chunks: list[Chunk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "_flash_forward", plain_kernel)
    generator = torch.Generator().manual_seed(0)
    pool = KVPool(CONFIG, 256, like=torch.empty(0))
    for each in (pool.keys, pool.values):
        each.normal_(generator=generator)
    n = sum(chunk.n_new for chunk in chunks)
    q, k, v = (torch.randn(n, heads, 8, generator=generator) for heads in (4, 2, 2))
    expected = BatchAttention(pool, chunks)(0, q, k, v)  # also stores the keys and values
    found = FlashBatchAttention(chunks, pool.n_tokens, pool.keys.device)(q, pool.keys[0], pool.values[0])
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_document_offsets_are_where_documents_begin() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [4, -1, -1, -1, -1]]).numpy()
    assert find_document_offsets(ids).tolist() == [0, 2, 5, 10, 11, 15]
