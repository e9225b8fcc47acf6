"""The transformer for generation: fused projections, the tokens of several sequences in one flat batch, int8 weights.

N token of the batch, H head, K key head, D model width, V vocabulary. `transformer.py` is the reference: both compute the
same function, and tests compare them.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.model.cache import Attend
from codekiln.model.transformer import (
    POSITION_OFFSET,
    Block,
    RMSNorm,
    Transformer,
    sinusoids,
)

# The precision of weights. "int8" has activations in 14 bits, which agree with float32 better than those in 7 bits of
# "int8-fast". Keys, values and all other computation are in float32, or in bfloat16 if the weights are.
Precision = Literal["float32", "bfloat16", "int8", "int8-fast"]
# Digits of quantized activations are between -63 and 63: in the kernel for processors without VNNI, sums of two products of
# larger ones with weights up to 127 would not fit into 16 bits.
MAX_DIGIT = 63
MIN_MAGNITUDE = 1e-20  # of a row of activations; a row of zeros stays zero


class Linear(Protocol):
    """A projection of rows. `n_digits` rows of `product` belong to one token."""

    bias: Tensor | None
    n_digits: int

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, width of the input) to (N, width of the output)."""
        ...

    def product(self, scaled: Tensor) -> Tensor:
        """The product, without bias, of rows whose largest magnitude is 1."""
        ...


class FloatLinear:
    """A projection in the precision of its weight."""

    n_digits = 1

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self.bias)

    def product(self, scaled: Tensor) -> Tensor:
        """scaled (N, width of the input) to (N, width of the output)."""
        return F.linear(scaled, self._weight)


class Int8Linear:
    """A projection with weights in 8 bits, one scale per row of the weight, and activations of `n_digits` digits of 7 bits,
    one scale per token.

    Products are summed as integers, so the result of a token does not depend on the other tokens of its batch. PyTorch's
    own dynamic quantization has one scale for the whole batch. With two digits, a token has two rows in the product: the
    second is the rest of the first, times `2 * MAX_DIGIT`. One token is as fast with two digits as with one, because the time
    is that of reading the weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, n_digits: int) -> None:
        scales = weight.float().abs().amax(1).clamp_min(MIN_MAGNITUDE).double() / 127
        zero_points = torch.zeros_like(scales, dtype=torch.long)
        with warnings.catch_warnings():
            # Deprecated, but the other kernels of PyTorch are slower here, for one token up to ten times.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor")
            quantized = torch.quantize_per_channel(weight.float(), scales, zero_points, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias, self.n_digits = bias, n_digits

    def __call__(self, x: Tensor) -> Tensor:
        magnitudes = x.abs().amax(-1, keepdim=True).clamp_min_(MIN_MAGNITUDE)
        scaled = x / magnitudes
        if self.n_digits == 1:
            y = self.product(scaled)
        else:
            scaled = scaled * MAX_DIGIT
            first = scaled.round()
            digits = torch.cat((first / MAX_DIGIT, (scaled - first) * 2))
            high, low = self.product(digits).chunk(2)
            y = high.add_(low, alpha=1 / (2 * MAX_DIGIT))
        return y.mul_(magnitudes) if self.bias is None else torch.addcmul(self.bias, y, magnitudes)

    def product(self, scaled: Tensor) -> Tensor:
        """The digits (n_digits * N, width of the input), between -1 and 1, to (n_digits * N, width of the output)."""
        y: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(
            scaled, 1 / MAX_DIGIT, MAX_DIGIT + 1, self._packed
        )
        return y


def _linear_of(precision: Precision) -> Callable[[Tensor, Tensor | None], Linear]:
    match precision:
        case "float32" | "bfloat16":
            return FloatLinear
        case "int8":
            return partial(Int8Linear, n_digits=2)
        case "int8-fast":
            return partial(Int8Linear, n_digits=1)
        case _:
            assert_never(precision)


class DecoderLayer:
    """A block of the transformer with the projections of queries, keys and values in one, and of gate and up in one."""

    def __init__(self, block: Block, layer: int, linear: Callable[[Tensor, Tensor | None], Linear]) -> None:
        attention, mlp = block.attention, block.mlp
        self.layer, self.config = layer, attention.config
        self.qkv = linear(*_concatenate(attention.q, attention.k, attention.v))
        self.out = linear(attention.out.weight, attention.out.bias)
        self.up = linear(*(_concatenate(mlp.up) if mlp.gate is None else _concatenate(mlp.gate, mlp.up)))
        self.down = linear(mlp.down.weight, mlp.down.bias)
        self.activation, self.is_gated = mlp.activation, mlp.gate is not None
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm
        self.head_scales: Tensor | None = None  # of QK-norm, (H + K, d_head)
        if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
            q_scale = attention.q_norm.weight.expand(self.config.n_heads, -1)
            k_scale = attention.k_norm.weight.expand(self.config.n_kv_heads, -1)
            self.head_scales = torch.cat((q_scale, k_scale))

    def __call__(self, x: Tensor, rotate: Callable[[Tensor], Tensor], attend: Attend) -> Tensor:
        """x (N, D) to (N, D)."""
        config = self.config
        H, K = config.n_heads, config.n_kv_heads
        y = self.attention_norm(x)
        heads = self.qkv(y).view(-1, H + 2 * K, config.d_head)
        qk = heads[:, : H + K]
        if self.head_scales is not None:
            qk = F.rms_norm(qk, (config.d_head,), None, config.norm_eps) * self.head_scales
        qk = rotate(qk)
        attended = x + self.out(attend(self.layer, qk[:, :H], qk[:, H:], heads[:, H + K :]))
        inner = self.up(y if self.mlp_norm is None else self.mlp_norm(attended))
        if self.is_gated:
            gate, up = inner.chunk(2, -1)
            inner = self.activation(gate) * up
        else:
            inner = self.activation(inner)
        return attended + self.down(inner)


class Decoder:
    """Token ids of a flat batch to hidden states and logits. It keeps what it needs of `model`, which can be dropped."""

    def __init__(self, model: Transformer, precision: Precision) -> None:
        self.config, self.precision = model.config, precision
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        linear = _linear_of(precision)
        with torch.inference_mode():
            model = model.to(dtype)
            self.embedding = model.embedding.weight
            blocks = [block for block in model.blocks if isinstance(block, Block)]
            self.layers = [DecoderLayer(block, layer, linear) for layer, block in enumerate(blocks)]
            self.norm = model.norm
            self._head = linear(model.lm_head.weight, model.lm_head.bias)
            self.angles = self._rotary_table() if model.config.n_rotary else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.embedding.device
        return device

    def hidden_states(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """ids and positions (N,) to the hidden states (N, D) that `logits` reads."""
        x = F.embedding(ids, self.embedding)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.config.position_encoding == "sinusoidal":
            x = x + sinusoids(positions + POSITION_OFFSET, self.config.d_model).to(x.dtype)
        rotate = self._rotation(positions)
        for layer in self.layers:
            x = layer(x, rotate, attend)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (N, D) to logits (N, V) in float32."""
        return self._head(hidden).float()

    def _rotary_table(self) -> tuple[Tensor, Tensor]:
        """For each position and channel of a head, the cosine, and the sine with the sign of the other channel."""
        config, width = self.config, self.config.n_rotary
        positions = torch.arange(config.context_length, dtype=torch.float32, device=self.device) / config.rope_scale
        frequencies = config.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float32, device=self.device) / width)
        angles = positions[:, None] * frequencies
        cosine, sine = angles.cos(), angles.sin()
        if config.position_encoding == "rope_half":
            return torch.cat((cosine, cosine), -1)[:, None], torch.cat((-sine, sine), -1)[:, None]
        return (
            torch.stack((cosine, cosine), -1).flatten(-2)[:, None],
            torch.stack((-sine, sine), -1).flatten(-2)[:, None],
        )

    def _rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """The rotation of queries or keys (N, heads, d_head) at their positions."""
        if self.angles is None:
            return lambda x: x
        cosine, sine = (table[positions] for table in self.angles)  # (N, 1, n_rotary)
        width, is_half = self.config.n_rotary, self.config.position_encoding == "rope_half"

        def rotate(x: Tensor) -> Tensor:
            part = x[..., :width]
            if is_half:
                other = torch.cat((part[..., width // 2 :], part[..., : width // 2]), -1)
            else:
                other = part.view(*part.shape[:-1], -1, 2).flip(-1).flatten(-2)
            rotated = torch.addcmul(part * cosine, other, sine).to(x.dtype)
            return rotated if width == x.shape[-1] else torch.cat((rotated, x[..., width:]), -1)

        return rotate


def _concatenate(*projections: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """The weights and biases of projections of the same input, as one."""
    bias = None
    if projections[0].bias is not None:  # nn.Linear's type does not say that it may be None
        bias = torch.cat([each.bias for each in projections])
    return torch.cat([each.weight for each in projections]), bias
