"""Random weights of a new model. Full weights are drawn one after the other, so they do not depend on the number of ranks."""

import math
from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor, nn

from codekiln.model.configs import Initialization, Lfm2Config, ModelConfig
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

    "jaxformer", CodeGen's code: normal, truncated at two standard deviations. The std is 1 / sqrt(inputs); for projections
    into the residual stream 2 / (layers * sqrt(d_model)), and for the embedding 1 / sqrt(vocabulary).

    "normal", the released configs of InCoder: normal with std 0.02 for all.

    Each weight is drawn as a full tensor and passed to `copy`.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith(".bias"):
                weight.zero_()
            else:
                drawn = torch.empty(weight.shape, device=generator.device)
                match initialization:
                    case "codekiln":
                        std = _codekiln_std(name, model.config)
                        nn.init.normal_(drawn, 0.0, std, generator) if std else drawn.zero_()
                    case "jaxformer":
                        _truncated_normal_(drawn, _jaxformer_std(name, weight.shape[1], model.config), generator)
                    case "normal":
                        nn.init.normal_(drawn, 0.0, INIT_STD, generator)
                    case _:
                        assert_never(initialization)
                copy(weight, drawn)


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
