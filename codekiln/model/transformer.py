"""The transformer of all model families. The class attributes of the config select the architecture.

B batch, T position, S key position, H head, K key head, D model width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codekiln.model.configs import Lfm2Config, ModelConfig
from codekiln.model.varlen_attention import document_attention, has_flash_attention

POSITION_OFFSET = 2  # in fairseq, positions begin after a padding row (InCoder's code)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_gated": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class RMSNorm(nn.Module):
    """Scales the last axis to unit mean square."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # With weights in float32 and x in bfloat16, PyTorch has no fused kernel.
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps)


class Attention(nn.Module):
    """Causal attention with `n_kv_heads` keys shared by groups of heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, q_width, kv_width = config.d_model, config.n_heads * config.d_head, config.n_kv_heads * config.d_head
        self.q = nn.Linear(d, q_width, bias=config.qkv_bias)
        self.k = nn.Linear(d, kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(d, kv_width, bias=config.qkv_bias)
        self.out = nn.Linear(q_width, d, bias=config.out_bias)
        self.dropout = 0.0  # of the weights of attention, in training
        self.q_norm = RMSNorm(config.d_head, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.d_head, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        document_ids: Tensor | None,
        document_offsets: Tensor | None,
    ) -> Tensor:
        """x (B, T, D) to (B, T, D). `mask` (B, 1, T, S) is true where a query attends. Without a mask, attention is causal,
        and within documents if there are `document_ids` (B, T)."""
        B, T, _ = x.shape
        config = self.config
        # (B, T, H * d_head) -> (B, H, T, d_head); with tensor parallelism, a rank has only some of the heads.
        q = self.q_norm(self.q(x).view(B, T, -1, config.d_head)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(B, T, -1, config.d_head)).transpose(1, 2)
        v = self.v(x).view(B, T, -1, config.d_head).transpose(1, 2)
        if rotary is not None:
            rotate = rotate_halves if config.position_encoding == "rope_half" else rotate_pairs
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if document_ids is not None and mask is None:
            y = document_attention(q, k, v, document_ids, document_offsets)
        else:
            grouped = config.n_heads != config.n_kv_heads
            if grouped and mask is not None and not q.is_cpu:
                # The fused kernels of GPUs support shared key heads or a mask, but not both.
                k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
            y = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=mask is None,
                enable_gqa=grouped,
            )
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, -1))
        return out


class ShortConvolution(nn.Module):
    """A causal convolution of each channel, between two gates that are computed from the same input (LFM2)."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        # Its weight is (D, 1, W), of the oldest token first.
        self.kernel = nn.Conv1d(config.d_model, config.d_model, config.conv_width, groups=config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, document_ids: Tensor | None) -> Tensor:
        """x (B, T, D) to (B, T, D). With `document_ids` (B, T), tokens of other documents are not read."""
        T = x.shape[1]
        gate_before, gate_after, inner = self.in_proj(x).chunk(3, dim=-1)
        gated = gate_before * inner
        weights = self.kernel.weight.squeeze(1).to(gated.dtype)
        y = gated * weights[:, -1]
        for distance in range(1, weights.shape[1]):
            earlier = F.pad(gated, (0, 0, distance, 0))[:, :T]
            if document_ids is not None:
                is_same = F.pad(document_ids, (distance, 0), value=-2)[:, :T] == document_ids
                earlier = earlier * is_same[..., None]
            y = y + earlier * weights[:, -1 - distance]
        out: Tensor = self.out(gate_after * y)
        return out


class FeedForward(nn.Module):
    """Up projection, activation, down projection; with a gate, the activation is applied to the gate (SwiGLU)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.mlp_bias
        self.gate = nn.Linear(config.d_model, config.d_ff, bias) if config.activation == "silu_gated" else None
        self.up = nn.Linear(config.d_model, config.d_ff, bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        out: Tensor = self.down(inner)
        return out


class Block(nn.Module):
    """Pre-norm attention, or a short convolution, and a pre-norm feed-forward layer, one after the other or in parallel on one
    norm."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        has_attention = layer in config.layers_with_attention
        self.attention = Attention(config) if has_attention else None
        self.convolution = ShortConvolution(config) if not has_attention and isinstance(config, Lfm2Config) else None
        self.mlp_norm = None if config.parallel_residual else _norm(config)
        self.mlp = FeedForward(config)
        self.dropout = 0.0  # of what each layer adds to the residual stream, in training

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        document_ids: Tensor | None,
        document_offsets: Tensor | None,
    ) -> Tensor:
        y = self.attention_norm(x)
        if self.attention is not None:
            mixed = self.attention(y, rotary, mask, document_ids, document_offsets)
        else:
            assert self.convolution is not None
            mixed = self.convolution(y, document_ids)
        attended = x + _drop(mixed, self)
        out: Tensor = attended + _drop(self.mlp(y if self.mlp_norm is None else self.mlp_norm(attended)), self)
        return out


def _drop(x: Tensor, module: "Block | Transformer") -> Tensor:
    """Sets elements to zero with the probability `module.dropout` in training, and scales the others up."""
    return F.dropout(x, module.dropout) if module.training and module.dropout > 0 else x


class Losses(NamedTuple):
    """Weighted sums over tokens, scalars."""

    nats: Tensor  # cross-entropy
    z_loss: Tensor  # squared log-sum-exp of the logits; 0 if it was not requested


class CrossEntropy(nn.Module):
    """Weighted sums over tokens. It is a module so that it can be compiled on its own, as blocks are in sharded models."""

    def forward(self, logits: Tensor, targets: Tensor, loss_weights: Tensor, *, with_z_loss: bool = False) -> Losses:
        """logits (N, V), targets and loss_weights (N,)."""
        logits = logits.float()
        nats = (F.cross_entropy(logits, targets, reduction="none") * loss_weights).sum()
        if not with_z_loss:
            return Losses(nats, torch.zeros_like(nats))
        return Losses(nats, (logits.logsumexp(-1).square() * loss_weights).sum())


class Transformer(nn.Module):
    """A decoder-only transformer: token ids to logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.d_model)
        if not weight.is_meta:  # there `normal_` does nothing, but imports PyTorch's compiler, which takes a second
            nn.init.normal_(weight)
        self.embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = _norm(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=config.has_head_bias)
        self.cross_entropy = CrossEntropy()
        self.activation_checkpointing = False  # recompute blocks in the backward pass instead of keeping activations
        self.dropout = 0.0  # of the embedding, in training
        self.attention_dropout = 0.0
        self.tie_weights()

    def tie_weights(self) -> None:
        """Uses the embedding as the weight of the output layer, if the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def set_dropout(self, dropout: float, attention_dropout: float) -> None:
        """Probabilities in training: of the embedding and of what layers add to the residual stream, where fairseq and XGLM
        have them, and of the weights of attention."""
        self.dropout, self.attention_dropout = dropout, attention_dropout
        for module in self.modules():
            if isinstance(module, Block):
                module.dropout = dropout
            elif isinstance(module, Attention):
                module.dropout = attention_dropout

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
        is_flat: bool = False,
    ) -> Tensor:
        """ids (B, T) to logits (B, T, V), or (B * T, V) if `is_flat`. See `hidden_states` for the other arguments.

        The loss needs flat logits. They are made flat before the output layer: with a bias, that layer returns a view for
        (B, T, D), and FSDP2 warns about views.
        """
        hidden = self.hidden_states(
            ids, positions=positions, document_ids=document_ids, document_offsets=document_offsets
        )
        logits: Tensor = self.lm_head(hidden.flatten(0, 1) if is_flat else hidden)
        return logits

    def hidden_states(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        document_offsets: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T) to the hidden states (B, T, D) that `lm_head` turns into logits.

        `positions` (B, T) default to 0, 1, …. `document_ids` (B, T) number the documents packed in a sequence: documents do
        not see each other, and absolute positions begin at 0 in each. On GPUs, attention is much faster with
        `document_offsets` too (see `find_document_offsets`), which needs bfloat16.
        """
        B, T = ids.shape
        config = self.config
        mask = None
        if document_ids is not None:
            if positions is None and config.position_encoding == "sinusoidal":
                positions = positions_within(document_ids)
            drops_attention = self.training and self.attention_dropout > 0
            has_flash = document_offsets is not None and has_flash_attention(ids.device, config.d_head)
            has_varlen = ids.device.type == "cpu" or has_flash
            if not has_varlen or drops_attention:  # varlen attention drops nothing
                mask = _mask_within(document_ids)
        if positions is None:
            positions = torch.arange(T, device=ids.device).expand(B, T)
        x = self.embedding(ids) * config.embedding_scale
        rotary = None
        if config.position_encoding == "sinusoidal":
            x = x + sinusoids(positions + POSITION_OFFSET, config.d_model).to(x.dtype)
        else:
            scaled = positions if config.rope_scale == 1 else positions / config.rope_scale
            angles = rotary_angles_once if torch.compiler.is_compiling() else rotary_angles
            rotary = angles(scaled, config.n_rotary, config.rope_base)
        x = _drop(x, self)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotary, mask, document_ids, document_offsets, use_reentrant=False)
            else:
                x = block(x, rotary, mask, document_ids, document_offsets)
        hidden: Tensor = self.norm(x)
        return hidden

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        loss_weights: Tensor,
        document_ids: Tensor | None,
        document_offsets: Tensor | None = None,
        *,
        with_z_loss: bool = False,
    ) -> Losses:
        """Sums over ids, targets and loss_weights, each (B, T)."""
        logits = self(ids, document_ids=document_ids, document_offsets=document_offsets, is_flat=True)
        losses: Losses = self.cross_entropy(logits, targets.flatten(), loss_weights.flatten(), with_z_loss=with_z_loss)
        return losses


def _mask_within(document_ids: Tensor) -> Tensor:
    """document_ids (B, T) to a mask (B, 1, T, T), true where a query attends: its own document, up to itself."""
    T = document_ids.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=document_ids.device).tril()
    return causal & (document_ids[:, None, :, None] == document_ids[:, None, None, :])


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines of all frequencies, then cosines, for positions (B, T): (B, T, width) in float32 (fairseq's layout)."""
    half = width // 2
    step = math.log(10_000) / max(1, half - 1)
    frequencies = torch.exp(-step * torch.arange(half, dtype=torch.float32, device=positions.device))
    angles = positions[..., None].float() * frequencies
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=-1), (0, width % 2))


def positions_within(document_ids: Tensor) -> Tensor:
    """The position of each token in its document, (B, T). The tokens of a document must be adjacent."""
    places = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    is_main = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return places - torch.where(is_main, places, 0).cummax(1).values


def rotary_angles(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions (B, T), each (B, 1, T, width / 2) in float32 (RoFormer, section 3.2)."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = positions[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


@torch.library.custom_op("codekiln::rotary_angles", mutates_args=())
def rotary_angles_once(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """`rotary_angles` as a custom operator, so that compiled code computes the angles once, and not again in every layer.

    Only for compiled code: the first call of a custom operator imports PyTorch's compiler, which takes a second.
    """
    return rotary_angles(positions, width, base)


@rotary_angles_once.register_fake
def _(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    B, T = positions.shape
    cosine = positions.new_empty(B, 1, T, width // 2, dtype=torch.float32)
    return cosine, torch.empty_like(cosine)


def rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates channel i with channel i + w of x (B, H, T, d_head), for w = the width of `cosine`, as in Llama and Qwen.

    Channels from 2 w on, if there are any, are not rotated (Phi).
    """
    width = cosine.shape[-1]
    first, second = x[..., :width], x[..., width : 2 * width]
    rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)
    return rotated if 2 * width == x.shape[-1] else torch.cat((rotated, x[..., 2 * width :]), dim=-1)


def rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates channel 2i with channel 2i + 1 of x (B, H, T, d_head), for the first channels that have angles (GPT-J)."""
    width = 2 * cosine.shape[-1]
    rotated_part, unrotated = x[..., :width], x[..., width:]
    even, odd = rotated_part[..., 0::2], rotated_part[..., 1::2]
    rotated = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
    return torch.cat((rotated.to(x.dtype), unrotated), dim=-1)
