"""How others lay our families out: names and shapes of tensors, and the fields of config.json, in both directions.

A layout is known by the first of config.json's `architectures`. Its names are those of Transformers' classes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codekiln.errors import InvalidFileError
from codekiln.files import JsonObject
from codekiln.model.configs import CodeGenConfig, InCoderConfig, KilnConfig, ModelConfig

CODEGEN_GROUPS = 4  # parts that CodeGen's fused projection was trained in, one for each core of a TPU v4


@dataclass(frozen=True)
class HFArchitecture:
    """One architecture of Transformers.

    `model_names` and `block_names` map our names to theirs, without `.weight` and `.bias`; block N's begin with
    `block_prefix`. `fused` names a tensor of a block that holds queries, values and keys together.
    """

    architecture: str
    block_prefix: str
    model_names: Mapping[str, str]
    block_names: Mapping[str, str]
    read_config: Callable[[JsonObject], ModelConfig]
    write_config: Callable[[Any], JsonObject]
    fused: str | None = None

    def to_hf_name(self, name: str) -> str:
        """Their name of one of our tensors; the fused one's for queries, keys and values where there is such."""
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            number, part, kind = match.groups()
            if self.fused is not None and part in ("attention.q", "attention.k", "attention.v"):
                return f"{self.block_prefix}{number}.{self.fused}.{kind}"
            return f"{self.block_prefix}{number}.{self.block_names[part]}.{kind}"
        part, _, kind = name.rpartition(".")
        return f"{self.model_names[part]}.{kind}"

    def is_buffer(self, name: str, config: ModelConfig) -> bool:
        """Whether a tensor of a file is no weight: buffers that old files carry, and the copy of a tied head."""
        return bool(_BUFFER.fullmatch(name)) or (config.tie_embeddings and name == f"{self.model_names['head']}.weight")


_BUFFER = re.compile(r".*\.(attn\.(causal_mask|bias|masked_bias)|rotary_emb\.inv_freq|embed_positions\.weights)")


def split_fused(fused: Tensor, n_heads: int, groups: int = CODEGEN_GROUPS) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (H * d_head, D) each, of CodeGen's qkv_proj (3 * H * d_head, D).

    The rows are `groups` parts, in each the queries of H / groups heads, then their values, then their keys.
    """
    if n_heads % groups:
        raise InvalidFileError(f"{n_heads} heads do not divide into the {groups} groups of CodeGen's fused projection")
    parts = fused.view(groups, 3, fused.shape[0] // (3 * groups), *fused.shape[1:])
    q, v, k = (parts[:, i].flatten(0, 1) for i in range(3))
    return q, k, v


def join_fused(q: Tensor, k: Tensor, v: Tensor, groups: int = CODEGEN_GROUPS) -> Tensor:
    """What `split_fused` takes apart."""
    parts = [t.view(groups, t.shape[0] // groups, *t.shape[1:]) for t in (q, v, k)]
    return torch.stack(parts, dim=1).flatten(0, 2)


def _field(record: JsonObject, *names: str, default: Any = None) -> Any:
    """The first of some fields that is there and not null. Raises ValueError where none is and there is no default."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    if default is None:
        raise InvalidFileError(f"config.json has no {names[0]}: use the file that was saved with this model")
    return default


def _must_be(record: JsonObject, name: str, *allowed: Any) -> None:
    """Raises ValueError where a field says something that the family cannot be."""
    if name in record and record[name] not in allowed:
        raise InvalidFileError(
            f"config.json has {name} {record[name]!r}: this architecture is known with {allowed[0]!r} only"
        )


def _read_kiln(record: JsonObject) -> KilnConfig:
    architecture = record["architectures"][0]
    _must_be(record, "hidden_act", "silu")
    _must_be(record, "use_sliding_window", False, None)
    _must_be(record, "rope_scaling", None)
    _must_be(record, "mlp_bias", False)
    rope = record.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise InvalidFileError(
            f"config.json scales its positions ({rope['rope_type']}): only plain rotary positions are known"
        )
    if architecture != "Qwen2ForCausalLM":
        _must_be(record, "attention_bias", False)
    heads = _field(record, "num_attention_heads")
    return KilnConfig(
        n_layers=_field(record, "num_hidden_layers"),
        d_model=_field(record, "hidden_size"),
        n_heads=heads,
        n_kv_heads=_field(record, "num_key_value_heads", default=heads),
        d_head=_field(record, "head_dim", default=_field(record, "hidden_size") // heads),
        d_ff=_field(record, "intermediate_size"),
        vocab_size=_field(record, "vocab_size"),
        context_length=_field(record, "max_position_embeddings"),
        rope_base=float(_field(record, "rope_theta", default=rope.get("rope_theta", 10_000.0))),
        norm_eps=_field(record, "rms_norm_eps", default=1e-6),
        tie_embeddings=bool(record.get("tie_word_embeddings", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        qkv_bias=architecture == "Qwen2ForCausalLM",
    )


# What config.json calls the type of each architecture, and llama.cpp its graph.
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
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
    }


def kiln_architecture(config: KilnConfig) -> str:
    """The class of Transformers that has this shape. Raises ValueError where none has."""
    if config.qk_norm and not config.qkv_bias:
        return "Qwen3ForCausalLM"
    if config.qkv_bias and not config.qk_norm:
        return "Qwen2ForCausalLM"
    if not config.qkv_bias:
        return "LlamaForCausalLM"
    raise InvalidFileError("a model with QK-norm and a bias on queries, keys and values has no architecture elsewhere")


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
        # XGLM's class puts a zero at this row of its positions, which begin after it: the tokenizer's own must not stand here.
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
INCODER = HFArchitecture("XGLMForCausalLM", "model.layers.", _XGLM_NAMES, _XGLM_BLOCK, _read_incoder, _write_incoder)
ARCHITECTURES = {layout.architecture: layout for layout in (*_KILN_ARCHITECTURES, CODEGEN, GPTJ, INCODER)}


def architecture_of(record: JsonObject) -> HFArchitecture:
    """The layout that a config.json names. Raises ValueError that lists the known ones."""
    architectures = record.get("architectures")
    found = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise InvalidFileError(f"config.json describes {found}: known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[found]


def native_architecture(config: ModelConfig) -> HFArchitecture:
    """The architecture that a family is saved as."""
    match config:
        case KilnConfig():
            return ARCHITECTURES[kiln_architecture(config)]
        case CodeGenConfig():
            return CODEGEN
        case InCoderConfig():
            return INCODER
        case _:
            raise TypeError(
                f"{type(config).__name__} has no Hugging Face architecture: add it to model/architectures.py"
            )
