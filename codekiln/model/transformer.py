"""The transformer of the `kiln` family.

B batch, T position, S cached position, H head, K key head, D model width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.model.cache import LayerCache
from codekiln.model.families import KilnConfig

INIT_STD = 0.02


class RMSNorm(nn.Module):
    """Scales the last axis to unit mean square."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with `n_kv_heads` keys shared by groups of heads; queries and keys are normed per head."""

    def __init__(self, config: KilnConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.q = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.v = nn.Linear(config.d_model, config.n_kv_heads * config.d_head, bias=False)
        self.out = nn.Linear(config.n_heads * config.d_head, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.d_head, config.norm_eps)
        self.k_norm = RMSNorm(config.d_head, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """x (B, T, D) to (B, T, D). `mask` (B, 1, T, S) is true where a query may look; None means plainly causal."""
        B, T, _ = x.shape
        q = self.q_norm(self.q(x).view(B, T, self.n_heads, self.d_head)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(B, T, self.n_kv_heads, self.d_head)).transpose(1, 2)
        v = self.v(x).view(B, T, self.n_kv_heads, self.d_head).transpose(1, 2)
        q, k = rotate_halves(q, *rotary), rotate_halves(k, *rotary)
        if cache is not None:
            k, v = cache.append(k, v)
        grouped = self.n_heads != self.n_kv_heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, -1))
        return out


class Block(nn.Module):
    """Pre-norm attention, then a pre-norm gated feed-forward layer."""

    def __init__(self, config: KilnConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, mask, cache)
        y = self.mlp_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


class Transformer(nn.Module):
    """Token ids to logits."""

    def __init__(self, config: KilnConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """ids (B, T) to hidden states (B, T, D), which `head` turns into logits.

        `positions` (B, T) default to 0, 1, …; `documents` (B, T) numbers the documents packed in a row, which then do
        not see each other. With a cache, ids follow what each row holds already.
        """
        B, T = ids.shape
        mask = None
        if cache is not None:
            lengths = cache[0].lengths
            positions = lengths[:, None] + torch.arange(T, device=ids.device)
            mask = torch.arange(cache[0].capacity, device=ids.device) <= positions[:, None, :, None]
        elif documents is not None:
            causal = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
            mask = causal & (documents[:, None, :, None] == documents[:, None, None, :])
        if positions is None:
            positions = torch.arange(T, device=ids.device).expand(B, T)
        rotary = rotary_angles(positions, self.config.d_head, self.config.rope_base)
        x = self.embedding(ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, mask, cache[layer] if cache is not None else None)
        hidden: Tensor = self.norm(x)
        return hidden


def initialize(model: Transformer, generator: torch.Generator) -> None:
    """Normal weights of std 0.02, and zero for what writes into the residual stream, so that blocks begin as identity.

    An embedding that is not the head too begins at std 1, as the norms make of it what blocks read, and its head at zero.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith(("attention.out.weight", "down.weight", "head.weight")):
                weight.zero_()
            elif name == "embedding.weight" and not model.config.tied_head:
                weight.normal_(0.0, 1.0, generator=generator)
            else:
                weight.normal_(0.0, INIT_STD, generator=generator)


def rotary_angles(positions: Tensor, d_head: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions (B, T), each (B, 1, T, d_head / 2) in float32 (RoFormer, section 3.2)."""
    frequencies = base ** (-torch.arange(0, d_head, 2, dtype=torch.float32, device=positions.device) / d_head)
    angles = positions[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates channel i with channel i + d_head / 2 of x (B, H, T, d_head): the pairing of Llama and Qwen."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return rotated.to(x.dtype)
