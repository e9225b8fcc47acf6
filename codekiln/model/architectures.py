"""Architectures of Transformers: names and shapes of tensors, and the fields of config.json, in both directions.

The first of config.json's `architectures` selects one. Tensor names are those of Transformers' classes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codekiln.errors import InvalidFileError
from codekiln.files import JsonObject, shorten
from codekiln.model.configs import (
    CodeGenConfig,
    InCoderConfig,
    KilnConfig,
    Lfm2Config,
    ModelConfig,
    StarCoder2Config,
    check_size,
)

# Groups of CodeGen's fused projection, one for each core that it was trained on: 4 on a TPU v4, and 8 on the TPU v3 of
# CodeGen2's 1B and 3.7B.
CODEGEN_GROUPS, CODEGEN2_GROUPS = 4, 8
# CodeGen2 brings code of its own. It is never run: what it computes is CodeGen.
_CODEGEN2_AUTO_MAP = {
    "AutoConfig": "configuration_codegen.CodeGenConfig",
    "AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM",
}


@dataclass(frozen=True)
class HFArchitecture:
    """One architecture of Transformers.

    `model_names` and `block_names` map Codekiln's tensor names to Transformers', without `.weight` and `.bias`; names in
    block N begin with `block_prefix`. `fused` is the name of a tensor that holds queries, values and keys, in `groups` groups.
    """

    architecture: str
    block_prefix: str
    model_names: Mapping[str, str]
    block_names: Mapping[str, str]
    read_config: Callable[[JsonObject], ModelConfig]
    write_config: Callable[[Any], JsonObject]
    fused: str | None = None
    groups: int = CODEGEN_GROUPS

    def to_hf_name(self, name: str) -> str:
        """Transformers' name of a tensor; for queries, keys and values, that of the fused tensor if there is one."""
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            number, part, kind = match.groups()
            if self.fused is not None and part in ("attention.q", "attention.k", "attention.v"):
                return f"{self.block_prefix}{number}.{self.fused}.{kind}"
            return f"{self.block_prefix}{number}.{self.block_names[part]}.{kind}"
        part, _, kind = name.rpartition(".")
        return f"{self.model_names[part]}.{kind}"

    def is_buffer(self, name: str, config: ModelConfig) -> bool:
        """Whether a tensor in a file is not a weight: a buffer of old files, or the copy of a tied output layer."""
        return bool(_BUFFER.fullmatch(name)) or (
            config.tie_embeddings and name == f"{self.model_names['lm_head']}.weight"
        )


_BUFFER = re.compile(r".*\.(attn\.(causal_mask|bias|masked_bias)|rotary_emb\.inv_freq|embed_positions\.weights)")


def split_fused(fused: Tensor, n_heads: int, groups: int = CODEGEN_GROUPS) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (H * d_head, D) each, of CodeGen's qkv_proj (3 * H * d_head, D).

    The rows are `groups` groups, each with the queries of H / groups heads, then their values, then their keys.
    """
    if n_heads % groups:
        raise InvalidFileError(f"n_head is {n_heads}: the fused projection needs a multiple of {groups}")
    parts = fused.view(groups, 3, fused.shape[0] // (3 * groups), *fused.shape[1:])
    q, v, k = (parts[:, i].flatten(0, 1) for i in range(3))
    return q, k, v


def join_fused(q: Tensor, k: Tensor, v: Tensor, groups: int = CODEGEN_GROUPS) -> Tensor:
    """The inverse of `split_fused`."""
    parts = [t.view(groups, t.shape[0] // groups, *t.shape[1:]) for t in (q, v, k)]
    return torch.stack(parts, dim=1).flatten(0, 2)


def _field(record: JsonObject, *names: str, default: Any = None) -> Any:
    """The first of several fields that is set. Raises InvalidFileError if none is and there is no default."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    if default is None:
        raise InvalidFileError(f"config.json has no {names[0]}: download it again")
    return default


def _flag(record: JsonObject, *names: str, default: bool) -> bool:
    """The first of several fields that is there: true or false; null is false, as in Transformers. Raises InvalidFileError for
    another value."""
    for name in names:
        if name in record:
            value = record[name]
            if value is not None and not isinstance(value, bool):
                raise InvalidFileError(f"{name} is {shorten(value)} in config.json: it must be true or false")
            return bool(value)
    return default


def _must_be(record: JsonObject, name: str, *allowed: Any) -> None:
    """Raises InvalidFileError if a field has a value that this architecture does not support."""
    if name in record and record[name] not in allowed:
        raise InvalidFileError(
            f"unsupported {name} {shorten(record[name])} in config.json; only {allowed[0]!r} is supported"
        )


def _read_rope(record: JsonObject, default_base: float = 10_000.0) -> tuple[float, float]:
    """Base and scale of the rotary positions. Raises InvalidFileError if they are scaled in another way than linearly.

    `rope_parameters` has priority over `rope_theta`, as in Transformers 5.
    """
    parameters = record.get("rope_parameters") or {}
    scale = 1.0
    for found in (record.get("rope_scaling") or {}, parameters):
        kind = found.get("rope_type", found.get("type", "default"))
        if kind == "linear":
            scale = float(_field(found, "factor"))
        elif kind != "default":
            raise InvalidFileError(f"unsupported RoPE scaling ({shorten(kind)}); supported: default and linear")
    base = float(parameters.get("rope_theta") or _field(record, "rope_theta", default=default_base))
    return base, scale


def _write_rope(config: ModelConfig) -> JsonObject:
    scaling = {"rope_type": "linear", "type": "linear", "factor": config.rope_scale}
    return {"rope_theta": config.rope_base} | ({"rope_scaling": scaling} if config.rope_scale != 1 else {})


def _read_kiln(record: JsonObject) -> KilnConfig:
    architecture = record["architectures"][0]
    _must_be(record, "hidden_act", "silu")
    _must_be(record, "use_sliding_window", False, None)
    has_attention_bias = has_mlp_bias = False
    if architecture == "LlamaForCausalLM":
        has_attention_bias = _flag(record, "attention_bias", default=False)
        has_mlp_bias = _flag(record, "mlp_bias", default=False)
    elif architecture == "Qwen3ForCausalLM":
        _must_be(record, "attention_bias", False)
    heads = _field(record, "num_attention_heads")
    rope_base, rope_scale = _read_rope(record)
    return KilnConfig(
        n_layers=_field(record, "num_hidden_layers"),
        d_model=_field(record, "hidden_size"),
        n_heads=heads,
        n_kv_heads=_field(record, "num_key_value_heads", default=heads),
        d_head=_field(record, "head_dim", default=_field(record, "hidden_size") // heads),
        d_ff=_field(record, "intermediate_size"),
        vocab_size=_field(record, "vocab_size"),
        context_length=_field(record, "max_position_embeddings"),
        rope_base=rope_base,
        rope_scale=rope_scale,
        norm_eps=_field(record, "rms_norm_eps", default=1e-6),
        tie_embeddings=_flag(record, "tie_word_embeddings", default=False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        qkv_bias=has_attention_bias or architecture == "Qwen2ForCausalLM",
        out_bias=has_attention_bias,
        mlp_bias=has_mlp_bias,
    )


# The model_type of each architecture in config.json, which is also llama.cpp's name of it.
KILN_TYPES = {"Qwen3ForCausalLM": "qwen3", "Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}


def _write_kiln(config: KilnConfig) -> JsonObject:
    architecture = kiln_architecture(config)
    return {
        "architectures": [architecture],
        "model_type": KILN_TYPES[architecture],
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        **_write_rope(config),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": config.out_bias,
        "mlp_bias": config.mlp_bias,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
    }


def kiln_architecture(config: KilnConfig) -> str:
    """The class of Transformers that computes this model. Raises InvalidFileError if there is none."""
    match (config.qk_norm, config.qkv_bias, config.out_bias, config.mlp_bias):
        case (True, False, False, False):
            return "Qwen3ForCausalLM"
        case (False, True, False, False):
            return "Qwen2ForCausalLM"
        case (False, False, False, _) | (False, True, True, _):
            return "LlamaForCausalLM"
        case (qk_norm, qkv_bias, out_bias, mlp_bias):
            raise InvalidFileError(
                f"a model with qk_norm {qk_norm}, qkv_bias {qkv_bias}, out_bias {out_bias} and mlp_bias {mlp_bias} "
                "has no architecture in Transformers"
            )


def _read_attention_layers(record: JsonObject, n_layers: int) -> tuple[int, ...]:
    """The layers of an LFM2 that have attention, from either of the two fields that name them; all if neither is set."""
    kinds, numbers = record.get("layer_types"), record.get("full_attn_idxs")
    if kinds is not None:
        if (
            not isinstance(kinds, list)
            or len(kinds) != n_layers
            or any(kind not in ("full_attention", "conv") for kind in kinds)
        ):
            raise InvalidFileError(
                f"unsupported layer_types {shorten(kinds)} in config.json: it must be a list with full_attention or conv "
                f"for each of the {n_layers} layers"
            )
        return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
    if numbers is None:
        return tuple(range(n_layers))
    if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
        raise InvalidFileError(
            f"unsupported full_attn_idxs {shorten(numbers)} in config.json: it must be a list of layer numbers, from 0"
        )
    return tuple(sorted(set(numbers)))


def _read_lfm2(record: JsonObject) -> Lfm2Config:
    _must_be(record, "conv_bias", False)
    n_layers, d_model = _field(record, "num_hidden_layers"), _field(record, "hidden_size")
    heads = _field(record, "num_attention_heads")
    rope_base, rope_scale = _read_rope(record, default_base=1e6)
    d_ff = _field(record, "block_ff_dim", "intermediate_size")
    # Both are used before the config checks its fields.
    check_size("n_layers", n_layers)
    check_size("d_ff", d_ff)
    if _flag(record, "block_auto_adjust_ff_dim", default=True):
        d_ff, multiplier = int(2 * d_ff / 3), record.get("block_ffn_dim_multiplier", 1.0)
        if multiplier is not None:
            if type(multiplier) not in (int, float):
                raise InvalidFileError(
                    f"block_ffn_dim_multiplier is {shorten(multiplier)} in config.json: it must be a number"
                )
            unit = _field(record, "block_multiple_of", default=256)
            d_ff = unit * math.ceil(int(multiplier * d_ff) / unit)
    return Lfm2Config(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=_field(record, "num_key_value_heads", default=heads),
        d_head=_field(record, "head_dim", default=d_model // heads),
        d_ff=d_ff,
        vocab_size=_field(record, "vocab_size"),
        context_length=_field(record, "max_position_embeddings"),
        rope_base=rope_base,
        rope_scale=rope_scale,
        norm_eps=_field(record, "norm_eps", default=1e-5),
        tie_embeddings=_flag(record, "tie_embedding", "tie_word_embeddings", default=True),
        attention_layers=_read_attention_layers(record, n_layers),
        conv_width=_field(record, "conv_L_cache", default=3),
    )


def _write_lfm2(config: Lfm2Config) -> JsonObject:
    numbers = config.attention_layers
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "num_hidden_layers": config.n_layers,
        "layer_types": ["full_attention" if i in numbers else "conv" for i in range(config.n_layers)],
        "hidden_size": config.d_model,
        "block_dim": config.d_model,  # vLLM reads these two
        "conv_dim": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_ff,
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        **_write_rope(config),
        "norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "conv_bias": False,
        "conv_L_cache": config.conv_width,
    }


def _read_codegen(record: JsonObject) -> CodeGenConfig:
    _must_be(record, "activation_function", "gelu_new")
    _must_be(record, "tie_word_embeddings", False)
    d_model, heads = _field(record, "n_embd"), _field(record, "n_head")
    return CodeGenConfig(
        n_layers=_field(record, "n_layer"),
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=d_model // heads,
        d_ff=_field(record, "n_inner", default=4 * d_model),
        vocab_size=_field(record, "vocab_size"),
        context_length=_field(record, "n_positions", "n_ctx"),
        norm_eps=_field(record, "layer_norm_epsilon", default=1e-5),
        rotary_dim=_field(record, "rotary_dim"),
    )


def _write_codegen(config: CodeGenConfig) -> JsonObject:
    return _write_gptj(config) | {"architectures": ["CodeGenForCausalLM"], "model_type": "codegen"}


def _write_gptj(config: CodeGenConfig) -> JsonObject:
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "rotary_dim": config.rotary_dim,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _read_incoder(record: JsonObject) -> InCoderConfig:
    _must_be(record, "activation_function", "gelu")
    _must_be(record, "scale_embedding", True)
    _must_be(record, "tie_word_embeddings", True)
    d_model, heads = _field(record, "d_model"), _field(record, "attention_heads")
    return InCoderConfig(
        n_layers=_field(record, "num_layers"),
        d_model=d_model,
        n_heads=heads,
        n_kv_heads=heads,
        d_head=d_model // heads,
        d_ff=_field(record, "ffn_dim"),
        vocab_size=_field(record, "vocab_size"),
        context_length=_field(record, "max_position_embeddings"),
    )


def _write_incoder(config: InCoderConfig) -> JsonObject:
    return {
        "architectures": ["XGLMForCausalLM"],
        "model_type": "xglm",
        # XGLM sets this row of its positions to zero, and positions begin after it: it is not the tokenizer's padding id.
        "pad_token_id": 1,
        "num_layers": config.n_layers,
        "d_model": config.d_model,
        "attention_heads": config.n_heads,
        "ffn_dim": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "activation_function": "gelu",
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
    }


def _read_starcoder2(record: JsonObject) -> StarCoder2Config:
    _must_be(record, "hidden_act", "gelu_pytorch_tanh")
    _must_be(record, "mlp_type", "default")
    _must_be(record, "norm_type", "layer_norm")
    heads, biases = _field(record, "num_attention_heads"), _flag(record, "use_bias", default=True)
    # Up to the window, a model computes the same without it. Codekiln has no window, so the context ends there.
    context = _field(record, "max_position_embeddings")
    rope_base, rope_scale = _read_rope(record)
    return StarCoder2Config(
        n_layers=_field(record, "num_hidden_layers"),
        d_model=_field(record, "hidden_size"),
        n_heads=heads,
        n_kv_heads=_field(record, "num_key_value_heads"),
        d_head=_field(record, "hidden_size") // heads,
        d_ff=_field(record, "intermediate_size"),
        vocab_size=_field(record, "vocab_size"),
        context_length=min(context, _field(record, "sliding_window", default=context)),
        rope_base=rope_base,
        rope_scale=rope_scale,
        norm_eps=_field(record, "norm_epsilon", default=1e-5),
        tie_embeddings=_flag(record, "tie_word_embeddings", default=True),
        qkv_bias=biases,
        out_bias=biases,
        mlp_bias=biases,
    )


def _write_starcoder2(config: StarCoder2Config) -> JsonObject:
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        **_write_rope(config),
        "norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": config.mlp_bias,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
    }


_LLAMA_NAMES = {"embedding": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_LFM2_NAMES = _LLAMA_NAMES | {"norm": "model.embedding_norm"}
_LFM2_BLOCK = {
    "attention_norm": "operator_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "attention.q_norm": "self_attn.q_layernorm",
    "attention.k_norm": "self_attn.k_layernorm",
    "convolution.in_proj": "conv.in_proj",
    "convolution.kernel": "conv.conv",
    "convolution.out": "conv.out_proj",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "feed_forward.w1",
    "mlp.up": "feed_forward.w3",
    "mlp.down": "feed_forward.w2",
}
_STARCODER2_BLOCK = {
    **{name: hf_name for name, hf_name in _LLAMA_BLOCK.items() if not name.startswith("mlp.")},
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_GPTJ_NAMES = {"embedding": "transformer.wte", "norm": "transformer.ln_f", "lm_head": "lm_head"}
_GPTJ_BLOCK = {
    "attention_norm": "ln_1",
    "attention.q": "attn.q_proj",
    "attention.k": "attn.k_proj",
    "attention.v": "attn.v_proj",
    "attention.out": "attn.out_proj",
    "mlp.up": "mlp.fc_in",
    "mlp.down": "mlp.fc_out",
}
_XGLM_NAMES = {"embedding": "model.embed_tokens", "norm": "model.layer_norm", "lm_head": "lm_head"}
_XGLM_BLOCK = {
    "attention_norm": "self_attn_layer_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
_KILN_ARCHITECTURES = [
    HFArchitecture(name, "model.layers.", _LLAMA_NAMES, _LLAMA_BLOCK, _read_kiln, _write_kiln) for name in KILN_TYPES
]
GPTJ = HFArchitecture("GPTJForCausalLM", "transformer.h.", _GPTJ_NAMES, _GPTJ_BLOCK, _read_codegen, _write_gptj)
CODEGEN = HFArchitecture(
    "CodeGenForCausalLM",
    "transformer.h.",
    _GPTJ_NAMES,
    _GPTJ_BLOCK,
    _read_codegen,
    _write_codegen,
    fused="attn.qkv_proj",
)
# Read only: it is written as CodeGen, which computes the same.
CODEGEN2 = dataclasses.replace(CODEGEN, groups=CODEGEN2_GROUPS)
STARCODER2 = HFArchitecture(
    "Starcoder2ForCausalLM", "model.layers.", _LLAMA_NAMES, _STARCODER2_BLOCK, _read_starcoder2, _write_starcoder2
)
LFM2 = HFArchitecture("Lfm2ForCausalLM", "model.layers.", _LFM2_NAMES, _LFM2_BLOCK, _read_lfm2, _write_lfm2)
INCODER = HFArchitecture("XGLMForCausalLM", "model.layers.", _XGLM_NAMES, _XGLM_BLOCK, _read_incoder, _write_incoder)
ARCHITECTURES = {
    layout.architecture: layout for layout in (*_KILN_ARCHITECTURES, LFM2, STARCODER2, CODEGEN, GPTJ, INCODER)
}


def architecture_of(record: JsonObject) -> HFArchitecture:
    """The architecture that a config.json names. Raises InvalidFileError with the supported ones."""
    if is_codegen2(record):
        # The 1B and 3.7B have this field, and 8 groups. The 7B and 16B have neither.
        return CODEGEN2 if "head_dim" in record else CODEGEN
    if record.get("auto_map"):
        raise InvalidFileError(
            f"the model brings its own code (auto_map: {shorten(record['auto_map'])}), which may compute something else than "
            f"{shorten(record.get('architectures'))}: models with code of their own are not supported"
        )
    architectures = record.get("architectures")
    found = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise InvalidFileError(
            f"unsupported architecture {shorten(found)} in config.json; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[found]


def is_codegen2(record: JsonObject) -> bool:
    """Whether a config.json is that of a released CodeGen2, which names modeling code in its own directory."""
    return record.get("architectures") == ["CodeGenForCausalLM"] and record.get("auto_map") == _CODEGEN2_AUTO_MAP


def native_architecture(config: ModelConfig) -> HFArchitecture:
    """The architecture that a family is saved as."""
    match config:
        case KilnConfig():
            return ARCHITECTURES[kiln_architecture(config)]
        case Lfm2Config():
            return LFM2
        case CodeGenConfig():
            return CODEGEN
        case InCoderConfig():
            return INCODER
        case StarCoder2Config():
            return STARCODER2
        case _:
            raise TypeError(
                f"{type(config).__name__} has no Hugging Face architecture: add it to model/architectures.py"
            )
