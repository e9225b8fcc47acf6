"""Random weights of a new model. Full weights are drawn one after the other, so they do not depend on the number of ranks."""

import math
from collections.abc import Callable
from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codekiln.model.configs import Initialization, Lfm2Config, ModelConfig, require_initialization
from codekiln.model.transformer import Transformer

INIT_STD = 0.02
_INTO_RESIDUAL = (
    "attention.out.weight",
    "convolution.out.weight",
    "mlp.down.weight",
)  # what blocks add to the residual stream


def init_weights(
    model: Transformer,
    generator: torch.Generator,
    copy: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    *,
    initialization: Initialization = "codekiln",
) -> None:
    """Fills a model with random weights. Biases start at zero, norms at one.

    "codekiln": zero for projections into the residual stream, so that blocks start as the identity, and std 1 / sqrt(W) for a
    convolution of width W. With tied embeddings, all other weights have std 0.02. Without, the embedding has std 1, because
    norms rescale what blocks read, the output layer is zero, and projections of a block's input have std 1 / sqrt(d_model),
    those into the feed-forward layer 0.4 of that (nanochat).

    "induction": as "codekiln", and then one head of attention is set so that it continues earlier text (see
    `_InductionHead`). It raises ConfigError for models without a convolution before a layer with attention, and for tied
    embeddings.

    "jaxformer", CodeGen's code: normal, truncated at two standard deviations. The std is 1 / sqrt(inputs); for projections
    into the residual stream 2 / (layers * sqrt(d_model)), and for the embedding 1 / sqrt(vocabulary).

    "normal", the released configs of InCoder: normal with std 0.02 for all.

    Each weight is drawn as a full tensor and passed to `copy`.
    """
    head = _InductionHead(model.config, generator.initial_seed()) if initialization == "induction" else None
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith(".bias"):
                weight.zero_()
            else:
                drawn = torch.empty(weight.shape, device=generator.device)
                match initialization:
                    case "codekiln" | "induction":
                        std = _codekiln_std(name, model.config)
                        nn.init.normal_(drawn, 0.0, std, generator) if std else drawn.zero_()
                        if head is not None:
                            head.change(name, drawn)
                    case "jaxformer":
                        _truncated_normal_(
                            drawn, _jaxformer_std(name, math.prod(weight.shape[1:]), model.config), generator
                        )
                    case "normal":
                        nn.init.normal_(drawn, 0.0, INIT_STD, generator)
                    case _:
                        assert_never(initialization)
                copy(weight, drawn)


class _InductionHead:
    """Weights of a head that finds earlier places of the current token, and makes what followed there more likely (an induction
    head; Olsson et al., arXiv 2209.11895).

    Without it, such a head forms late, and the loss then falls at once (docs/log.md). Two layers work together. A convolution
    copies the token before each place, read through `reader`, into a subspace of the residual stream. The next layer with
    attention compares the current token, through the same `reader`, with that subspace. Its value is the token itself, which
    goes to a second subspace, and the output layer reads that one.

    Channel 0 of the embedding is a constant, with which the gates of the convolution are open for every token.
    """

    # Codekiln's numbers. docs/log.md has others, which are nearly as good.
    CONSTANT = 4.0
    # Queries and keys are compared in channels that rotary positions turn slowly; the fastest ones have less weight.
    N_FAST, FAST_WEIGHT = 12, 0.5
    OUTPUT_WEIGHT = 0.05  # of the embedding, in the output layer

    def __init__(self, config: ModelConfig, seed: int) -> None:
        require_initialization(config, "induction")
        generator = torch.Generator().manual_seed(seed)  # of its own, so that all other weights are as without the head
        attention = config.layers_with_attention
        convolution = min(set(range(max(attention))) - set(attention))
        self._convolution = f"blocks.{convolution}.convolution."
        self._attention = f"blocks.{min(i for i in attention if i > convolution)}.attention."
        D, d = config.d_model, config.d_head
        self._n_copied = n = min(d, D // 4)
        n_values = min(d, D - 1 - n)
        self._reader = _orthogonal_rows(n, D, generator)
        self._value = _orthogonal_rows(n_values, D, generator)
        subspaces = _orthogonal_rows(n + n_values, D, generator)
        self._before, self._copied = subspaces[:n], subspaces[n:]  # of the token before, and of what followed
        half = torch.arange(d) % (d // 2)  # the channel of `rope_half` that turns each channel
        weight = torch.where(half < self.N_FAST * d // 64, self.FAST_WEIGHT, 1.0)
        self._match = torch.linalg.qr(torch.randn(d, n, generator=generator))[0] * weight[:, None]
        self._d_head = d

    def change(self, name: str, weight: Tensor) -> None:
        """Changes a weight of the model as drawn, in place. The embedding must come before the output layer."""
        n, d, D = self._n_copied, self._d_head, weight.shape[-1]
        if name == "embedding.weight":
            weight[:, 0] = self.CONSTANT
            self._embedding = weight
        elif name == "lm_head.weight":
            weight += self.OUTPUT_WEIGHT * self._embedding @ self._value.T @ self._copied
        elif name == self._convolution + "in_proj.weight":
            for gate in (weight[:n], weight[D : D + n]):
                gate.zero_()[:, 0] = 1 / self.CONSTANT
            weight[2 * D : 2 * D + n] = self._reader
        elif name == self._convolution + "kernel.weight":
            weight[:n] = 0
            weight[:n, 0, -2] = 1
        elif name == self._convolution + "out.weight":
            weight[:, :n] = self._before.T
        elif name == self._attention + "q.weight":
            weight[:d] = self._match @ self._reader
        elif name == self._attention + "k.weight":
            weight[:d] = self._match @ self._before
        elif name == self._attention + "v.weight":
            weight[: len(self._value)] = self._value
        elif name == self._attention + "out.weight":
            weight[:, : len(self._copied)] = self._copied.T


def _orthogonal_rows(n: int, width: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows (n, width) that do not read channel 0."""
    columns = torch.linalg.qr(torch.randn(width - 1, n, generator=generator))[0]
    return F.pad(columns.T, (1, 0))


def _codekiln_std(name: str, config: ModelConfig) -> float:
    if name.endswith((*_INTO_RESIDUAL, "lm_head.weight")):
        return 0.0
    if isinstance(config, Lfm2Config) and name.endswith("convolution.kernel.weight"):
        return 1 / math.sqrt(config.conv_width)
    if config.tie_embeddings:
        return INIT_STD
    if name == "embedding.weight":
        return 1.0
    return (0.4 if ".mlp." in name else 1.0) / math.sqrt(config.d_model)


def _jaxformer_std(name: str, n_inputs: int, config: ModelConfig) -> float:
    if name == "embedding.weight":
        return 1 / math.sqrt(config.vocab_size)
    if name.endswith(_INTO_RESIDUAL):
        return 2 / (config.n_layers * math.sqrt(config.d_model))
    return 1 / math.sqrt(n_inputs)


def _truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """As haiku truncates: `std` is that before, and the std of the result is 0.88 times as large."""
    nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std, generator)
