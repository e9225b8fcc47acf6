"""The transformer for generation: fused projections, the tokens of several sequences in one flat batch, int8 weights.

N token of the batch, H head, K key head, D model width, V vocabulary. `transformer.py` is the reference: both compute the
same function, and tests compare them.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, Literal, Protocol, assert_never

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.extras import import_optional
from codekiln.model.cache import Attend
from codekiln.model.transformer import (
    POSITION_OFFSET,
    Attention,
    Block,
    RMSNorm,
    ShortConvolution,
    Transformer,
    sinusoids,
)

# The precision of weights. Keys, values and all computation but the products with int8 weights are in float32, or in bfloat16
# if the weights are.
Precision = Literal["float32", "bfloat16", "int8"]
Array = npt.NDArray[Any]


class Linear(Protocol):
    """A projection of rows (N, width of the input) to (N, width of the output)."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def apply(self, x: Array) -> Array:
        """The same for arrays."""
        ...


class FloatLinear:
    """A projection in the precision of its weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def apply(self, x: Array) -> Array:
        return self(torch.from_numpy(x)).numpy()


class Int8Linear:
    """A projection with weights in 8 bits, one scale per row of the weight, and activations in up to 13 bits, one scale per
    token.

    Products are summed as integers, so the result of a token does not depend on the other tokens of its batch. PyTorch's own
    dynamic quantization has one scale for the whole batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._kernels = import_optional("codekiln.model.int8_kernels", "serve")
        rows = weight.float().numpy()
        self._n_outputs = len(rows)
        scales = np.maximum(np.abs(rows).max(1), self._kernels.MIN_MAGNITUDE) / self._kernels.MAX_WEIGHT
        missing = (0, -len(rows) % self._kernels.O_MULTIPLE), (0, -rows.shape[1] % self._kernels.K_MULTIPLE)
        self._weight = np.pad(np.rint(rows / scales[:, None]).astype(np.int8), missing)
        self._scales = np.pad(scales, missing[0])
        self._bias = np.zeros_like(self._scales) if bias is None else np.pad(bias.float().numpy(), missing[0])

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.apply(x.contiguous().numpy()))

    def apply(self, x: Array) -> Array:
        y = self._kernels.multiply(self._weight, self._scales, self._bias, x, torch.get_num_threads())
        return np.ascontiguousarray(y[:, : self._n_outputs])


def _linear_of(precision: Precision) -> Callable[[Tensor, Tensor | None], Linear]:
    match precision:
        case "float32" | "bfloat16":
            return FloatLinear
        case "int8":
            return Int8Linear
        case _:
            assert_never(precision)


class DecoderAttention:
    """Attention with the projections of queries, keys and values in one. `number` counts the layers with attention."""

    def __init__(self, attention: Attention, number: int, linear: Callable[[Tensor, Tensor | None], Linear]) -> None:
        self.number, self.config = number, attention.config
        self.qkv = linear(*_concatenate(attention.q, attention.k, attention.v))
        self.out = linear(attention.out.weight, attention.out.bias)
        self.head_scales: Tensor | None = None  # of QK-norm, (H + K, d_head)
        if isinstance(attention.q_norm, RMSNorm) and isinstance(attention.k_norm, RMSNorm):
            q_scale = attention.q_norm.weight.expand(self.config.n_heads, -1)
            k_scale = attention.k_norm.weight.expand(self.config.n_kv_heads, -1)
            self.head_scales = torch.cat((q_scale, k_scale))

    def __call__(self, x: Tensor, rotate: Callable[[Tensor], Tensor], attend: Attend) -> Tensor:
        """x (N, D) to (N, D)."""
        config = self.config
        H, K = config.n_heads, config.n_kv_heads
        heads = self.qkv(x).view(-1, H + 2 * K, config.d_head)
        qk = heads[:, : H + K]
        if self.head_scales is not None:
            qk = F.rms_norm(qk, (config.d_head,), None, config.norm_eps) * self.head_scales
        qk = rotate(qk)
        return self.out(attend(self.number, qk[:, :H], qk[:, H:], heads[:, H + K :]))


class DecoderConvolution:
    """A short convolution. `number` counts the layers with one."""

    def __init__(
        self, convolution: ShortConvolution, number: int, linear: Callable[[Tensor, Tensor | None], Linear]
    ) -> None:
        self.number = number
        self.in_proj = linear(convolution.in_proj.weight, None)
        self.kernel = convolution.kernel.weight.squeeze(1).contiguous()  # (D, W)
        self.out = linear(convolution.out.weight, None)

    def __call__(self, x: Tensor, attend: Attend) -> Tensor:
        """x (N, D) to (N, D)."""
        gate_before, gate_after, inner = self.in_proj(x).chunk(3, dim=-1)
        return self.out(gate_after * attend.convolve(self.number, gate_before * inner, self.kernel))


class DecoderLayer:
    """A block of the transformer with the projections of gate and up in one."""

    def __init__(self, block: Block, number: int, linear: Callable[[Tensor, Tensor | None], Linear]) -> None:
        mlp = block.mlp
        self.mixer: DecoderAttention | DecoderConvolution
        if block.attention is not None:
            self.mixer = DecoderAttention(block.attention, number, linear)
        else:
            assert block.convolution is not None
            self.mixer = DecoderConvolution(block.convolution, number, linear)
        self.up = linear(*(_concatenate(mlp.up) if mlp.gate is None else _concatenate(mlp.gate, mlp.up)))
        self.down = linear(mlp.down.weight, mlp.down.bias)
        self.activation, self.is_gated = mlp.activation, mlp.gate is not None
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm

    def __call__(self, x: Tensor, rotate: Callable[[Tensor], Tensor], attend: Attend) -> Tensor:
        """x (N, D) to (N, D)."""
        y = self.attention_norm(x)
        mixer = self.mixer
        attended = x + (mixer(y, rotate, attend) if isinstance(mixer, DecoderAttention) else mixer(y, attend))
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
            numbers = {True: count(), False: count()}  # of layers with attention, and of those with a convolution
            self.layers = [DecoderLayer(block, next(numbers[block.attention is not None]), linear) for block in blocks]
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
