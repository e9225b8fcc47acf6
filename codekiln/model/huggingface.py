"""The layout that others load: config.json, safetensors, tokenizer.json. `kiln` is written as Qwen3.

Control tokens have no place in that layout's configs, so nothing of ours is in it but the weights and ids.
"""

import json
from pathlib import Path

import torch

from codekiln.files import Record, read_record, replacing
from codekiln.model.checkpoint import load_weights, read_tensors, weights_of, write_tensors
from codekiln.model.families import KilnConfig
from codekiln.model.transformer import Transformer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
ARCHITECTURE = "Qwen3ForCausalLM"

# Our names and Qwen3's, for the model and for block N.
_MODEL_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def save_model(
    folder: Path, model: Transformer, tokenizer_path: Path, configs: dict[str, Record], end_of_text: int
) -> None:
    """Writes the model directory, whole or not at all. `configs` are further JSON files by name."""
    names = _names(model.config)
    with replacing(folder) as draft:
        draft.mkdir()
        tensors = {names[name]: weight.cpu() for name, weight in weights_of(model).items()}
        write_tensors(draft / WEIGHTS, tensors)
        (draft / TOKENIZER).write_bytes(tokenizer_path.read_bytes())
        written = {
            CONFIG: _config_record(model.config, end_of_text),
            "generation_config.json": {"bos_token_id": end_of_text, "eos_token_id": end_of_text},
        }
        for name, record in (written | configs).items():
            (draft / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_model(folder: Path) -> Transformer:
    """The model of a directory, in float32. Raises OSError or ValueError saying what is wrong with which file."""
    record = read_record(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if record is None:
        raise FileNotFoundError(f"{folder} holds no model ({CONFIG} is missing): name a run or a model folder")
    config = _config(record, folder / CONFIG)
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device="cpu")
    if config.tied_head:
        model.head.weight = model.embedding.weight
    ours = {theirs: name for name, theirs in _names(config).items()}
    tensors = {ours.get(name, name): tensor for name, tensor in read_tensors(folder / WEIGHTS).items()}
    load_weights(
        model, {name: tensor for name, tensor in tensors.items() if not (config.tied_head and name == "head.weight")}
    )
    return model.requires_grad_(False).eval()


def _names(config: KilnConfig) -> dict[str, str]:
    names = {
        f"blocks.{n}.{ours}.weight": f"model.layers.{n}.{theirs}.weight"
        for n in range(config.n_layers)
        for ours, theirs in _BLOCK_NAMES.items()
    }
    return names | _MODEL_NAMES


def _config_record(config: KilnConfig, end_of_text: int) -> Record:
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
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
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }


def _config(record: Record, path: Path) -> KilnConfig:
    if record.get("architectures") != [ARCHITECTURE]:
        raise ValueError(f"{path} describes {record.get('architectures')}: this version loads {ARCHITECTURE}")
    try:
        return KilnConfig(
            n_layers=record["num_hidden_layers"],
            d_model=record["hidden_size"],
            n_heads=record["num_attention_heads"],
            n_kv_heads=record["num_key_value_heads"],
            d_head=record["head_dim"],
            d_ff=record["intermediate_size"],
            vocab_size=record["vocab_size"],
            context_length=record["max_position_embeddings"],
            rope_base=record["rope_theta"],
            norm_eps=record["rms_norm_eps"],
            tied_head=record["tie_word_embeddings"],
        )
    except KeyError as missing:
        raise ValueError(f"{path} has no {missing}: use the file that was saved with this model") from None
