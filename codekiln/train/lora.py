"""LoRA: low-rank adapters of all matrices in blocks; the weights themselves stay fixed (Hu et al., arXiv 2106.09685)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from codekiln.extras import import_optional
from codekiln.train.config import LoraConfig

TARGETS = r"blocks\.\d+\.(attention\.(q|k|v|out)|convolution\.(in_proj|out)|mlp\.(gate|up|down))"
_ADAPTER = "default"  # the name that PEFT gives a single adapter


def inject_lora(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Adds adapters to the blocks in place. Only they are trained, and at the start they change nothing.

    Raises MissingPackageError if PEFT is not installed.
    """
    peft = import_optional("peft", "lora")
    torch.manual_seed(seed)  # the library draws from the global generator
    config = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=TARGETS)
    peft.inject_adapter_in_model(config, model)


def iter_merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names they had before `inject_lora`, with their adapters merged."""
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        if ".base_layer." in name:
            layer = model.get_submodule(name.partition(".base_layer.")[0])
            is_matrix = name.endswith(".weight")
            change = layer.get_delta_weight(_ADAPTER) if is_matrix else 0.0  # type: ignore[operator]
            yield name.replace(".base_layer.", "."), (weight + change).detach()
        else:
            yield name, weight.detach()
