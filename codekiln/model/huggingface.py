"""Model directories in the Hugging Face layout: config.json, safetensors, tokenizer.json; read and written.

Reading streams: one tensor at a time, for any number and size of files, into a model or into another directory.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from codekiln.errors import ConfigError, InvalidFileError, MissingFileError
from codekiln.files import JsonObject, read_json, shorten
from codekiln.folders import atomic_folder
from codekiln.model.architectures import (
    HFArchitecture,
    architecture_of,
    join_fused,
    native_architecture,
    split_fused,
)
from codekiln.model.configs import MAX_SIZES, ModelConfig
from codekiln.model.tensors import named_weights, save_safetensors, shape_mismatches
from codekiln.model.transformer import Transformer
from codekiln.model.weight_files import WEIGHTS, find_weight_files

CONFIG, GENERATION_CONFIG, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
SHARD_BYTES = 2 * 10**9
# Prefixes that training wrappers leave in the names of weights.
_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "model._orig_mod.")


def resolve_model_dir(folder: Path) -> Path:
    """The model directory of a run, or the folder itself if it is not a run."""
    return folder / "model" if (folder / "model").is_dir() else folder


def save_model(
    folder: Path,
    model: Transformer,
    tokenizer_path: Path,
    configs: dict[str, JsonObject],
    ids: JsonObject,
    *,
    weights: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Writes a model directory atomically. `configs` are further JSON files by name, `ids` the token ids in config.json and
    generation_config.json. `weights` are the full weights by name, if those of the model are sharded.
    """
    named = weights if weights is not None else named_weights(model).items()
    with atomic_folder(folder, "model") as temp_path:
        (temp_path / TOKENIZER).write_bytes(tokenizer_path.read_bytes())
        on_cpu = ((name, weight.cpu()) for name, weight in named)
        _write_model(temp_path, native_architecture(model.config), model.config, on_cpu, configs, ids)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """The model of a directory. Raises CodekilnError that names a missing, damaged or unsupported file."""
    architecture, config = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    # Not `to_empty`, which imports SymPy, and would first allocate the weights in float32.
    model.load_state_dict(
        {name: torch.empty(w.shape, dtype=dtype) for name, w in model.state_dict().items()}, assign=True
    )
    model.tie_weights()
    weights = dict(model.named_parameters())
    for name, tensor in CheckpointReader(folder, architecture, config).read():
        weights[name].data.copy_(tensor)
    return model.requires_grad_(False).eval()


def token_ids_of(record: JsonObject, name: str) -> frozenset[int]:
    """The ids in a field of config.json, which may have one, several or none. Raises InvalidFileError for anything else."""
    value = record.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and 0 <= i < MAX_SIZES["vocab_size"] for i in ids):
        raise InvalidFileError(f"{name} is {shorten(value)}: it must be one token id, several, or none")
    return frozenset(ids)


def stop_token_ids_in(folder: Path) -> frozenset[int]:
    """The ids that end a text by config.json and generation_config.json together, as in Transformers.

    An instruct model often names the end of its turn in the second file only.
    """
    ids: frozenset[int] = frozenset()
    for name in (CONFIG, GENERATION_CONFIG):
        if (folder / name).is_file():
            try:
                ids |= token_ids_of(read_json(folder / name), "eos_token_id")
            except InvalidFileError as error:
                raise InvalidFileError(f"{folder / name}: {error}") from None
    return ids


def read_config(folder: Path) -> tuple[HFArchitecture, ModelConfig]:
    """Architecture and config of a model directory. Raises CodekilnError that names the folder.

    The embedding is not tied, whatever config.json says, if the weights have an output layer that differs from it.
    """
    path = folder / CONFIG
    if not path.is_file():
        if folder.is_dir():
            problem = f"has no model ({CONFIG} is missing)"
        else:
            problem = "is not a folder" if folder.exists() else "does not exist"
        raise MissingFileError(f"{folder} {problem}: name a run or a model folder")
    record = read_json(path)
    try:
        architecture = architecture_of(record)
        config = architecture.read_config(record)
    except (ValueError, TypeError, ArithmeticError, AttributeError, KeyError) as error:
        raise InvalidFileError(f"{path}: {shorten(str(error), 400)}") from None
    if config.tie_embeddings and _has_own_lm_head(folder, architecture, config):
        config = dataclasses.replace(config, tie_embeddings=False)
    return architecture, config


def _has_own_lm_head(folder: Path, architecture: HFArchitecture, config: ModelConfig) -> bool:
    """Whether the weights have an output layer that differs from the embedding. Most tied models store none."""
    names = [f"{architecture.model_names[part]}.weight" for part in ("embedding", "lm_head")]
    try:
        files = find_weight_files(folder)
    except MissingFileError:
        return False  # a folder with a config only
    shapes = {name: shape for file in files for name, shape in file.shapes().items() if name in names}
    if len(shapes) < 2 or any(shape != (config.vocab_size, config.d_model) for shape in shapes.values()):
        return False
    for file in files:
        file.check(names)
    found = dict(pair for file in files for pair in file.tensors(names))
    return not torch.equal(found[names[0]], found[names[1]])


def require_vocabulary(n_ids: int, config: ModelConfig) -> None:
    """Raises ConfigError if a tokenizer has more ids than the embedding has rows: they are not of one model."""
    if n_ids > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {n_ids:,} ids and the model has vocab_size {config.vocab_size:,}: "
            "tokenizer and model do not belong together; use the tokenizer saved with the model"
        )


class CheckpointReader:
    """The weights of a directory, by Codekiln's names. All names and shapes are checked first.

    Raises InvalidFileError that names missing, extra and wrongly shaped tensors.
    """

    def __init__(self, folder: Path, architecture: HFArchitecture, config: ModelConfig) -> None:
        with torch.device("meta"):
            self._weights = dict(Transformer(config).named_parameters())
        self._folder, self._n_heads, self._groups = folder, config.n_heads, architecture.groups
        self._names: dict[str, list[str]] = {}  # names by the name in the file; a fused tensor has three
        for name in self._weights:
            self._names.setdefault(architecture.to_hf_name(name), []).append(name)
        shapes = {}
        for hf_name, names in self._names.items():
            rows, *columns = self._weights[names[0]].shape
            shapes[hf_name] = (
                rows if len(names) == 1 else sum(self._weights[name].shape[0] for name in names),
                *columns,
            )
        self._files = find_weight_files(folder)
        stored = {name: shape for file in self._files for name, shape in file.shapes().items()}
        self._prefix = _wrapper_prefix(stored)
        found = {
            name: shape
            for name, shape in (
                (stored_name.removeprefix(self._prefix), shape) for stored_name, shape in stored.items()
            )
            if not architecture.is_buffer(name, config)
        }
        if faults := shape_mismatches(shapes, found):
            raise InvalidFileError(f"{folder}: the weights do not fit {CONFIG}: {faults}")
        for file in self._files:
            file.check(self._stored_names)

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of every weight, one at a time. Raises InvalidFileError if one is not finite."""
        for file in self._files:
            for stored_name, tensor in file.tensors(self._stored_names):
                name = stored_name.removeprefix(self._prefix)
                if not torch.isfinite(tensor).all():
                    raise InvalidFileError(
                        f"{self._folder}: {name} has values that are not finite: download the file again"
                    )
                names = self._names[name]
                if len(names) == 1:
                    yield names[0], tensor
                else:
                    parts = dict(zip("qkv", split_fused(tensor, self._n_heads, self._groups), strict=True))
                    yield from ((name, parts[name.rsplit(".", 2)[1]]) for name in names)

    @property
    def _stored_names(self) -> list[str]:
        return [self._prefix + name for name in self._names]

    def shapes(self) -> Iterator[tuple[str, Tensor]]:
        """The same in the same order, with tensors on the meta device."""
        for file in self._files:
            stored = {name.removeprefix(self._prefix) for name in file.shapes()}
            for name in sorted(stored & self._names.keys()):
                yield from ((name, self._weights[name].detach()) for name in self._names[name])


def _wrapper_prefix(stored: Iterable[str]) -> str:
    """The prefix that a training wrapper left in all names of weights. Raises InvalidFileError for adapters of PEFT."""
    names = list(stored)
    if any(".lora_" in name or name.startswith("base_model.model.") for name in names):
        raise InvalidFileError(
            "the weights are those of PEFT (base_model.model., lora_): merge the adapters into the model first, "
            "with PEFT's merge_and_unload()"
        )
    prefix = ""
    while wrapper := next((w for w in _WRAPPERS if names and all(name.startswith(prefix + w) for name in names)), None):
        prefix += wrapper
    return prefix


def convert(
    source: Path,
    target: Path,
    tokenizer: JsonObject,
    configs: dict[str, JsonObject],
    ids: JsonObject,
    *,
    to: HFArchitecture | None = None,
) -> None:
    """Writes the model of one directory as another one, atomically, in the architecture `to` or that of its family.

    Memory: one shard of `SHARD_BYTES` and one tensor, for a model of any size. `ids` are fields of config.json.
    """
    architecture, config = read_config(source)
    to = to if to is not None else native_architecture(config)
    with atomic_folder(target, "model") as temp_path:
        weights = CheckpointReader(source, architecture, config).read()
        _write_model(temp_path, to, config, weights, {TOKENIZER: tokenizer} | configs, ids)


def _write_model(
    folder: Path,
    architecture: HFArchitecture,
    config: ModelConfig,
    weights: Iterable[tuple[str, Tensor]],
    configs: dict[str, JsonObject],
    ids: JsonObject,
) -> None:
    """Writes weights in an architecture, config.json, generation_config.json, and `configs`."""
    dtype = _write_shards(folder, fuse_qkv(architecture, weights))
    record = ids | _config_record(architecture, config) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    for name, content in ({CONFIG: record, GENERATION_CONFIG: ids} | configs).items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def fuse_qkv(architecture: HFArchitecture, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The architecture's name and tensor of every weight. Queries, keys and values are fused if it fuses them."""
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights:
        hf_name = architecture.to_hf_name(name)
        part = name.rsplit(".", 2)[-2]
        if architecture.fused is None or f".{architecture.fused}." not in hf_name:
            yield hf_name, weight
            continue
        parts = waiting.setdefault(hf_name, {})
        parts[part] = weight
        if len(parts) == 3:
            del waiting[hf_name]
            yield hf_name, join_fused(parts["q"], parts["k"], parts["v"], architecture.groups)


def _config_record(architecture: HFArchitecture, config: ModelConfig) -> JsonObject:
    """The fields of config.json. Raises ConfigError if the architecture cannot represent the config."""
    record = architecture.write_config(config)
    again = architecture.read_config(record)
    if again != config:
        fields = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(again, f.name, None)]
        raise InvalidFileError(f"{architecture.architecture} cannot represent this model's {', '.join(fields)}")
    if architecture.fused is not None and config.n_heads % architecture.groups:
        raise InvalidFileError(
            f"{architecture.architecture} needs heads in groups of {architecture.groups}, not {config.n_heads}: use gptj"
        )
    return record


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> torch.dtype:
    """Writes tensors in files of about `SHARD_BYTES`, with an index if there are several. Returns the dtype of the first."""
    shard: dict[str, Tensor] = {}
    held, n_bytes = 0, 0
    names: list[list[str]] = []
    dtype = None

    def close() -> None:
        nonlocal shard, held
        save_safetensors(folder / f"{len(names)}.safetensors", shard)
        names.append(list(shard))
        shard, held = {}, 0

    for name, tensor in tensors:
        dtype = dtype or tensor.dtype
        shard[name] = tensor.contiguous()
        held += tensor.nbytes
        n_bytes += tensor.nbytes
        if held >= SHARD_BYTES:
            close()
    if shard:
        close()
    assert dtype is not None
    if len(names) == 1:
        (folder / "0.safetensors").rename(folder / WEIGHTS)
        return dtype
    weight_map: dict[str, str] = {}
    for k, held_names in enumerate(names):
        file = f"model-{k + 1:05}-of-{len(names):05}.safetensors"
        (folder / f"{k}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(held_names, file)
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return dtype
