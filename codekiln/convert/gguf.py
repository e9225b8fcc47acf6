"""GGUF export. Each family maps to an existing architecture of llama.cpp that computes the same.

- `kiln`: qwen3, qwen2 or llama.
- CodeGen: phi2, with attention and feed-forward layer in parallel after one norm, and partial RoPE. RoPE channels are
  permuted, because phi2 rotates halves and CodeGen neighbors; biases that CodeGen does not have are zero.
- LFM2: lfm2.
- StarCoder2: starcoder2.
- InCoder: gpt2. The sinusoids become the table of positions, and the scaled embedding is stored apart from the output
  layer. llama.cpp computes GELU by tanh and InCoder's is exact, so logits differ slightly (docs/models.md).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from codekiln.errors import ConfigError
from codekiln.files import JsonObject, atomic_write
from codekiln.model.architectures import KILN_TYPES, kiln_architecture
from codekiln.model.configs import CodeGenConfig, InCoderConfig, KilnConfig, Lfm2Config, ModelConfig, StarCoder2Config
from codekiln.model.huggingface import CheckpointReader, read_config
from codekiln.model.transformer import POSITION_OFFSET, sinusoids
from codekiln.progress import progress_bar

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_WRITTEN_BY = "codekiln.format"
_MODEL_NAMES = {"embedding": "token_embd", "norm": "output_norm", "lm_head": "output"}
_BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.out": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "convolution.in_proj": "shortconv.in_proj",
    "convolution.kernel": "shortconv.conv",
    "convolution.out": "shortconv.out_proj",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}


def write_gguf(source: Path, target: Path, vocabulary: JsonObject, *, dtype: str, name: str) -> None:
    """Writes the model of a directory as one file, atomically, with one tensor in memory at a time.

    `vocabulary` are the fields of its tokenizer. Matrices have the given dtype, but f16 if their rows do not fit the blocks
    of q8_0. Norms, biases and positions are f32. Rows of the embedding and the output layer without a token are left out.
    """
    hf_architecture, config = read_config(source)
    architecture = gguf_architecture(config)
    with atomic_write(target) as temp_path:
        writer = gguf.GGUFWriter(temp_path, architecture)
        writer.add_uint32(_WRITTEN_BY, 1)  # the first field, so that it is near the beginning of the file
        _write_fields(writer, config, name)
        writer.add_file_type(_FILE_TYPES[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in vocabulary.items():
            is_id = type(value) is int
            writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if is_id else gguf.GGUFValueType.get_type(value))
        n_ids = len(vocabulary[gguf.Keys.Tokenizer.LIST])
        weights = CheckpointReader(source, hf_architecture, config)
        kinds: dict[str, gguf.GGMLQuantizationType] = {}
        # The header lists every tensor before the first is written, so shapes are computed first, on the meta device.
        for tensor_name, tensor in _gguf_tensors(config, n_ids, weights.shapes()):
            kind = kinds[tensor_name] = _type(tensor_name, tensor, dtype)
            in_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            n_bytes = tensor.numel() // in_block * block_bytes
            writer.add_tensor_info(tensor_name, tuple(tensor.shape), np.dtype(np.float32), n_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress_bar("GGUF", len(kinds)) as progress:
            for tensor_name, tensor in _gguf_tensors(config, n_ids, weights.read()):
                writer.write_tensor_data(gguf.quantize(tensor.float().numpy(), kinds[tensor_name]))
                progress.advance()
        writer.close()


def is_written_by_codekiln(path: Path) -> bool:
    """Whether `path` is a GGUF file of `write_gguf`."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return start.startswith(b"GGUF") and _WRITTEN_BY.encode() in start


def gguf_architecture(config: ModelConfig) -> str:
    """llama.cpp's name of the architecture that computes a family. Raises ConfigError if it has none."""
    match config:
        case KilnConfig():
            name = KILN_TYPES[kiln_architecture(config)]
        case Lfm2Config():
            name = "lfm2"
        case StarCoder2Config():
            name = "starcoder2"
        case CodeGenConfig():
            name = "phi2"
        case InCoderConfig():
            name = "gpt2"
        case _:
            raise TypeError(f"{type(config).__name__} has no GGUF architecture: add it to convert/gguf.py")
    if name in ("qwen2", "lfm2") and config.n_heads * config.d_head != config.d_model:
        raise ConfigError(
            f"llama.cpp's {name} requires n_heads * d_head == d_model: "
            f"{config.n_heads} * {config.d_head} is not {config.d_model}"
        )
    return name


def _write_fields(writer: gguf.GGUFWriter, config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    if isinstance(config, Lfm2Config):
        writer.add_head_count_kv([config.n_kv_heads * (i in config.attention_layers) for i in range(config.n_layers)])
        writer.add_shortconv_l_cache(config.conv_width)
    else:
        writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.d_head)
    writer.add_value_length(config.d_head)
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.n_rotary:
        writer.add_rope_dimension_count(config.n_rotary)
        writer.add_rope_freq_base(config.rope_base)
    if config.rope_scale != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scale)


def _type(name: str, tensor: Tensor, wanted: str) -> gguf.GGMLQuantizationType:
    if tensor.ndim == 1 or name == "position_embd.weight" or name.endswith(".shortconv.conv.weight"):
        return TYPES["f32"]
    blocks_fit = tensor.shape[1] % gguf.GGML_QUANT_SIZES[TYPES["q8_0"]][0] == 0
    return TYPES["f16"] if wanted == "q8_0" and not blocks_fit else TYPES[wanted]


def _gguf_tensors(
    config: ModelConfig, n_ids: int, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's name and tensor of every weight, which may be on the meta device."""
    fused: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights:
        part, _, kind = name.rpartition(".")
        if not part.startswith("blocks."):
            rows = weight[:n_ids] if part in ("embedding", "lm_head") else weight
            is_lfm2_norm = part == "norm" and isinstance(config, Lfm2Config)
            model_name = "token_embd_norm" if is_lfm2_norm else _MODEL_NAMES[part]
            yield f"{model_name}.{kind}", rows * config.embedding_scale if part == "embedding" else rows
            if part == "embedding" and config.tie_embeddings and config.embedding_scale != 1:
                yield "output.weight", rows
            continue
        _, number, inner = part.split(".", 2)
        if isinstance(config, InCoderConfig) and inner in ("attention.q", "attention.k", "attention.v"):
            parts = fused.setdefault(f"{number}.{kind}", {})
            parts[inner] = weight
            if len(parts) == 3:
                joined = [parts[f"attention.{letter}"] for letter in "qkv"]
                yield f"blk.{number}.attn_qkv.{kind}", torch.cat(joined)
            continue
        if inner in ("attention.q", "attention.k"):
            weight = _permute_rope(config, weight)  # noqa: PLW2901
        elif inner == "convolution.kernel":
            weight = weight.squeeze(1)  # noqa: PLW2901 - (D, 1, W) to (D, W)
        yield f"blk.{number}.{_BLOCK_NAMES[inner]}.{kind}", weight
        if isinstance(config, CodeGenConfig) and inner.startswith("attention."):
            # phi2 has biases here, and CodeGen does not.
            yield f"blk.{number}.{_BLOCK_NAMES[inner]}.bias", weight.new_zeros(weight.shape[0])
    if isinstance(config, InCoderConfig):
        positions = torch.arange(config.context_length)[None] + POSITION_OFFSET
        yield "position_embd.weight", sinusoids(positions, config.d_model)[0]


def _permute_rope(config: ModelConfig, weight: Tensor) -> Tensor:
    """Permutes the rows of queries or keys to the order in which llama.cpp pairs RoPE channels.

    phi2 rotates channel i with i + n_rotary / 2, and CodeGen 2i with 2i + 1: even channels first, then odd ones. llama rotates
    neighbors, and `kiln` halves: the inverse.
    """
    per_head = weight.view(-1, config.d_head, *weight.shape[1:])
    permuted, unrotated = per_head[:, : config.n_rotary], per_head[:, config.n_rotary :]
    if isinstance(config, CodeGenConfig):
        permuted = torch.cat((permuted[:, 0::2], permuted[:, 1::2]), dim=1)
    elif gguf_architecture(config) == "llama":
        permuted = torch.stack(permuted.chunk(2, dim=1), dim=2).flatten(1, 2)
    return torch.cat((permuted, unrotated), dim=1).flatten(0, 1)
