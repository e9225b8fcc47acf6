"""The decoder for few tokens on a CPU: all work but the matrix products in compiled kernels.

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
from codekiln.model.decoder import Decoder, DecoderAttention, DecoderLayer, Precision
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

    def apply(self, x: Array, out: Array) -> None:
        """Writes x (N, D), normalized, to `out`."""
        kernels.normalize(x, self.weight, self.bias, self.eps, self.is_rms, out)


class _Layer:
    """Arrays of a layer of the decoder."""

    def __init__(self, layer: DecoderLayer) -> None:
        mixer = layer.mixer
        self.number, self.out, self.up, self.down = mixer.number, mixer.out, layer.up, layer.down
        self.attention_norm = _Norm.of(layer.attention_norm)
        self.mlp_norm = None if layer.mlp_norm is None else _Norm.of(layer.mlp_norm)
        self.head_scales, self.kernel = np.empty((0, 0), np.float32), None
        if isinstance(mixer, DecoderAttention):
            self.into = mixer.qkv
            if mixer.head_scales is not None:
                self.head_scales = mixer.head_scales.numpy()
        else:
            self.into, self.kernel = mixer.in_proj, mixer.kernel.numpy()


class CpuDecoder(Decoder):
    """A Decoder for CPUs, not for bfloat16. Small batches take the compiled path."""

    def __init__(self, model: Transformer, precision: Precision) -> None:
        super().__init__(model, precision)
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
        y, heads_out, convolved, inner = (np.empty((N, width), np.float32) for width in (D, H * d, D, config.d_ff))
        q, k, v = (np.empty((N, n, d), np.float32) for n in (H, K, K))
        for layer in self._arrays:
            layer.attention_norm.apply(x, y)
            product = layer.into.apply(y)
            if layer.kernel is None:
                kernels.split_heads(product, layer.head_scales, config.norm_eps, cosine, sine, is_half, q, k, v)
                attend.attend_arrays(layer.number, q, k, v, heads_out)
                attended = x + layer.out.apply(heads_out)
            else:
                attend.convolve_arrays(layer.number, product, layer.kernel, convolved)
                attended = x + layer.out.apply(convolved)
            if layer.mlp_norm is not None:
                layer.mlp_norm.apply(attended, y)
            kernels.activate(layer.up.apply(y), self._activation, inner)
            x = attended + layer.down.apply(inner)
        self._final_norm.apply(x, y)
        return torch.from_numpy(y)

    def _angle_arrays(self, positions: Tensor) -> tuple[Array, Array]:
        if self.angles is None:
            empty = np.empty((len(positions), 0), np.float32)
            return empty, empty
        cosine, sine = (table[positions, 0].numpy() for table in self.angles)
        return cosine, sine
