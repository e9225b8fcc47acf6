"""The decoder for few tokens on a CPU: matrix products by PyTorch, all other work in compiled kernels.

N token of the batch, D model width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.model import cpu_kernels as kernels
from codekiln.model.cache import Attend, BatchAttention
from codekiln.model.decoder import Decoder, DecoderLayer, Linear, Precision
from codekiln.model.transformer import POSITION_OFFSET, RMSNorm, Transformer, sinusoids

# Of more tokens, PyTorch's operators are faster, because they use all cores.
MAX_TOKENS = 48
Array = npt.NDArray[Any]
_EMPTY = np.empty(0, np.float32)
_ACTIVATION_KINDS = {"silu_gated": kernels.SILU_GATED, "gelu": kernels.GELU, "gelu_tanh": kernels.GELU_TANH}


@dataclass(frozen=True)
class _Norm:
    weight: Array
    bias: Array
    eps: float
    is_rms: bool

    @classmethod
    def of(cls, module: nn.Module) -> "_Norm":
        assert isinstance(module, RMSNorm | nn.LayerNorm)
        bias = _EMPTY if isinstance(module, RMSNorm) else module.bias.numpy()
        return cls(module.weight.numpy(), bias, module.eps, isinstance(module, RMSNorm))


@dataclass(frozen=True)
class _Projection:
    linear: Linear
    bias: Array

    @classmethod
    def of(cls, linear: Linear) -> "_Projection":
        return cls(linear, _EMPTY if linear.bias is None else linear.bias.numpy())


class _Layer:
    """Arrays of a layer of the decoder."""

    def __init__(self, layer: DecoderLayer) -> None:
        self.qkv, self.out, self.up, self.down = map(_Projection.of, (layer.qkv, layer.out, layer.up, layer.down))
        self.attention_norm = _Norm.of(layer.attention_norm)
        self.mlp_norm = None if layer.mlp_norm is None else _Norm.of(layer.mlp_norm)
        self.head_scales = np.empty((0, 0), np.float32) if layer.head_scales is None else layer.head_scales.numpy()


class CpuDecoder(Decoder):
    """A Decoder for CPUs, not for bfloat16. Small batches take the compiled path."""

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__(model, precision)
        self._n_digits = self.layers[0].qkv.n_digits
        with torch.inference_mode():
            self._arrays = [_Layer(layer) for layer in self.layers]
            self._final_norm = _Norm.of(self.norm)
            self._activation = _ACTIVATION_KINDS[self.config.activation]

    def hidden_states(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        if not (isinstance(attend, BatchAttention) and attend.is_small and len(ids) <= MAX_TOKENS):
            return super().hidden_states(ids, positions, attend)
        config = self.config
        N, D, H, K, d = len(ids), config.d_model, config.n_heads, config.n_kv_heads, config.d_head
        embedded = F.embedding(ids, self.embedding)
        if config.position_encoding == "sinusoidal":
            embedded = embedded * config.embedding_scale + sinusoids(positions + POSITION_OFFSET, D)
        x = embedded.numpy()
        cosine, sine = self._angle_arrays(positions)
        is_half = config.position_encoding == "rope_half"
        y, heads_out, inner = (torch.empty(self._n_digits * N, width) for width in (D, H * d, config.d_ff))
        y_array, heads_array, inner_array = y.numpy(), heads_out.numpy(), inner.numpy()
        magnitudes, inner_magnitudes = np.empty(N, np.float32), np.empty(N, np.float32)
        q, k, v = (np.empty((N, n, d), np.float32) for n in (H, K, K))
        for number, layer in enumerate(self._arrays):
            norm = layer.attention_norm
            kernels.normalize(x, norm.weight, norm.bias, norm.eps, norm.is_rms, y_array, magnitudes)
            product = layer.qkv.linear.product(y).numpy()
            kernels.split_heads(
                product, magnitudes, layer.qkv.bias, layer.head_scales, config.norm_eps, cosine, sine, is_half, q, k, v
            )
            attend.attend_arrays(number, q, k, v, heads_array[:N])
            kernels.scale(heads_array, inner_magnitudes)
            kernels.add_product(x, layer.out.linear.product(heads_out).numpy(), inner_magnitudes, layer.out.bias)
            if (second := layer.mlp_norm) is not None:
                kernels.normalize(x, second.weight, second.bias, second.eps, second.is_rms, y_array, magnitudes)
            product = layer.up.linear.product(y).numpy()
            kernels.activate(product, magnitudes, layer.up.bias, self._activation, inner_array, inner_magnitudes)
            kernels.add_product(x, layer.down.linear.product(inner).numpy(), inner_magnitudes, layer.down.bias)
        out: Tensor = self.norm(torch.from_numpy(x))
        return out

    def _angle_arrays(self, positions: Tensor) -> tuple[Array, Array]:
        if self.angles is None:
            empty = np.empty((len(positions), 0), np.float32)
            return empty, empty
        cosine, sine = (table[positions, 0].numpy() for table in self.angles)
        return cosine, sine
