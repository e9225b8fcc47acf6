"""Models of other projects that are in no package, for the benchmarks in this folder."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from torch import nn


def nanogpt(path: Path, *, context: int, vocab_size: int, n_layers: int, n_heads: int, d_model: int) -> nn.Module:
    """nanoGPT's model without dropout and biases, from the file `model.py` of its repository."""
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module
    spec.loader.exec_module(module)
    model: nn.Module = module.GPT(module.GPTConfig(context, vocab_size, n_layers, n_heads, d_model, 0.0, bias=False))
    return model


def nanochat(
    *, context: int, vocab_size: int, n_layers: int, n_heads: int, d_model: int, has_value_embeddings: bool = True
) -> nn.Module:
    """nanochat's model with random weights. Its repository must be on PYTHONPATH. All layers see the whole context."""
    module: Any = importlib.import_module("nanochat.gpt")
    if not has_value_embeddings:
        module.has_ve = lambda layer_idx, n_layer: False
    config = module.GPTConfig(context, vocab_size, n_layers, n_heads, n_heads, d_model, window_pattern="L")
    model: nn.Module = module.GPT(config)
    model.init_weights()  # type: ignore[operator]
    return model
