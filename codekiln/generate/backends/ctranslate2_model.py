"""A model directory as CTranslate2's files, for every family except `lfm2`.

The weights are read by Codekiln and written as CTranslate2's specification of a decoder, so that no other converter is needed.
Token i of the vocabulary has the name "i": CTranslate2 names tokens, and Codekiln numbers them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ctranslate2
import numpy as np
import torch
from ctranslate2.specs import attention_spec, common_spec, transformer_spec
from torch import Tensor, nn

from codekiln.errors import ConfigError
from codekiln.files import read_json, write_json
from codekiln.folders import atomic_folder
from codekiln.generate.model_cache import model_cache_path
from codekiln.generate.precision import MIN_AGREEMENT, held_out_sequences
from codekiln.model.configs import ModelConfig
from codekiln.model.huggingface import load_model, require_vocabulary
from codekiln.model.transformer import POSITION_OFFSET, Block, Transformer, sinusoids
from codekiln.tokenizer.bpe import Tokenizer

ComputeType = Literal["int8", "float32"]
_COMPUTE_TYPE = "compute_type.json"
_ACTIVATIONS = {
    "silu_gated": common_spec.Activation.SWISH,
    "gelu": common_spec.Activation.GELU,
    "gelu_tanh": common_spec.Activation.GELUTanh,
}


@dataclass(frozen=True)
class ConvertedModel:
    """A folder that CTranslate2 loads, and the type to compute in: int8 if it agrees with float32."""

    path: Path
    compute_type: ComputeType


def converted_model(folder: Path, tokenizer: Tokenizer) -> ConvertedModel:
    """The model of a directory, from the user's cache. It is converted first if it is not there.

    Weights are stored in float32. CTranslate2 quantizes them when it loads them.
    """
    path = model_cache_path("ctranslate2", folder, ctranslate2.__version__, MIN_AGREEMENT)
    if not (path / _COMPUTE_TYPE).is_file():
        model = load_model(folder)
        require_vocabulary(tokenizer.vocab_size, model.config)
        with atomic_folder(path, "backend") as temp_path:
            write_ctranslate2(model, tokenizer.vocab_size, temp_path)
            sequences = list(held_out_sequences(tokenizer, model.config.context_length))
            chosen: ComputeType = "int8" if _agreement(temp_path, sequences) >= MIN_AGREEMENT else "float32"
            write_json(temp_path / _COMPUTE_TYPE, {"compute_type": chosen})
    compute_type: ComputeType = "int8" if read_json(path / _COMPUTE_TYPE)["compute_type"] == "int8" else "float32"
    return ConvertedModel(path, compute_type)


def _agreement(path: Path, sequences: Sequence[Sequence[int]]) -> float:
    """The fraction of tokens that CTranslate2 predicts equally in int8 and in float32.

    Its int8 products have 8 bits for activations, and lose more than Codekiln's on processors without VNNI.
    """
    predictions = []
    for compute_type in ("float32", "int8"):
        generator = ctranslate2.Generator(str(path), compute_type=compute_type, intra_threads=torch.get_num_threads())
        found = [
            np.asarray(generator.forward_batch([[str(i) for i in ids]], return_log_probs=False))[0].argmax(-1)
            for ids in sequences
        ]
        predictions.append(np.concatenate(found))
    return float((predictions[0] == predictions[1]).mean())


def write_ctranslate2(model: Transformer, n_ids: int, path: Path) -> None:
    """Writes a model in a folder. Rows of the embedding and the output layer from `n_ids` on are left out.

    Raises ConfigError for a model with convolutions.
    """
    if len(model.config.layers_with_attention) < model.config.n_layers:
        raise ConfigError("CTranslate2 has no short convolutions: use --backend pytorch or --backend llama.cpp")
    spec = _specification(model, n_ids)
    spec.validate()
    spec.optimize()
    spec.save(str(path))


@torch.inference_mode()
def _specification(model: Transformer, n_ids: int) -> transformer_spec.TransformerDecoderModelSpec:
    config = model.config
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.n_layers,
        config.n_heads,
        activation=_ACTIVATIONS[config.activation],
        ffn_glu=config.activation == "silu_gated",
        rms_norm=config.norm == "rms",
        rotary_dim=config.n_rotary or None,
        rotary_interleave=config.position_encoding == "rope_interleaved",
        rotary_scaling_type=None if config.rope_scale == 1 else attention_spec.RotaryScalingType.Linear,
        rotary_scaling_factor=config.rope_scale,
        rotary_base=config.rope_base,
        parallel_residual=config.parallel_residual,
        shared_layer_norm=config.parallel_residual,
        num_heads_kv=None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
        head_dim=config.d_head,
        qk_norm=config.qk_norm,
    )
    names = [str(i) for i in range(n_ids)]
    spec.register_vocabulary(names)
    # Never used: ends and forbidden ids are options of each request.
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = names[0]
    spec.config.layer_norm_epsilon = config.norm_eps
    decoder = spec.decoder
    decoder.scale_embeddings = config.embedding_scale != 1  # by sqrt(d_model), as InCoder's
    decoder.embeddings.weight = _array(model.embedding.weight[:n_ids])
    decoder.projection.weight = _array(model.lm_head.weight[:n_ids])
    if model.lm_head.bias is not None:
        decoder.projection.bias = _array(model.lm_head.bias[:n_ids])
    if config.position_encoding == "sinusoidal":
        positions = torch.arange(config.context_length)[None] + POSITION_OFFSET
        decoder.position_encodings.encodings = _array(sinusoids(positions, config.d_model)[0])
    _set_norm(decoder.layer_norm, model.norm)
    for layer, block in zip(decoder.layer, model.blocks, strict=True):
        assert isinstance(block, Block)
        _set_block(layer, block, config)
    return spec


def _set_block(layer: transformer_spec.TransformerDecoderLayerSpec, block: Block, config: ModelConfig) -> None:
    attention, mlp = block.attention, block.mlp
    assert attention is not None
    if block.mlp_norm is None:
        _set_norm(layer.shared_layer_norm, block.attention_norm)
    else:
        _set_norm(layer.self_attention.layer_norm, block.attention_norm)
        _set_norm(layer.ffn.layer_norm, block.mlp_norm)
    if config.qk_norm:
        _set_norm(layer.self_attention.q_norm, attention.q_norm)
        _set_norm(layer.self_attention.k_norm, attention.k_norm)
    _set_linear(layer.self_attention.linear[0], attention.q, attention.k, attention.v)
    _set_linear(layer.self_attention.linear[1], attention.out)
    if mlp.gate is None:
        _set_linear(layer.ffn.linear_0, mlp.up)
    else:
        _set_linear(layer.ffn.linear_0, mlp.gate)
        _set_linear(layer.ffn.linear_0_noact, mlp.up)
    _set_linear(layer.ffn.linear_1, mlp.down)


def _set_norm(spec: common_spec.LayerNormSpec, norm: nn.Module) -> None:
    spec.gamma = _array(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        spec.beta = _array(norm.bias)


def _set_linear(spec: common_spec.LinearSpec, *layers: nn.Linear) -> None:
    """One layer, or several with the same input as one."""
    spec.weight = np.concatenate([_array(layer.weight) for layer in layers])
    if layers[0].bias is not None:
        spec.bias = np.concatenate([_array(layer.bias) for layer in layers])


def _array(tensor: Tensor | nn.Module) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    assert isinstance(tensor, Tensor)
    return tensor.float().contiguous().numpy()
