"""Models from elsewhere, and models for elsewhere: a released checkpoint becomes a model directory of ours, and back."""

from pathlib import Path

import huggingface_hub

from codekiln.convert.gguf import TYPES, is_written_by_codekiln, write_gguf
from codekiln.convert.gguf_vocab import gguf_vocab_fields
from codekiln.errors import ConfigError
from codekiln.files import JsonObject, is_hub_id, read_json
from codekiln.folders import require_replaceable, require_replaceable_file
from codekiln.model.architectures import GPTJ, HFArchitecture
from codekiln.model.configs import CodeGenConfig, ModelConfig
from codekiln.model.huggingface import CONFIG, TOKENIZER, convert, read_config, resolve_model_dir, token_ids_of
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges

FORMATS = ("hf", "gptj", "gguf")
# What is fetched of a model on the hub: no code.
_PATTERNS = ("*.json", "*.safetensors", "pytorch_model*.bin", "merges.txt", "vocab.bpe")


def resolve_model(model: str) -> Path:
    """The directory of a path or a hub id, which is fetched with progress and gone on with where it stopped.

    Raises OSError that says what was looked for.
    """
    path = Path(model)
    if path.is_dir():
        return resolve_model_dir(path)
    if not is_hub_id(model):
        raise FileNotFoundError(f"{model} is missing: name a model's folder or its id on the hub")
    try:
        try:
            listed = huggingface_hub.list_repo_files(model)
        except Exception:  # no network, in the words of whatever stands below the library: it may be in the cache
            return Path(huggingface_hub.snapshot_download(model, allow_patterns=[*_PATTERNS], local_files_only=True))
        has_safetensors = any(name.endswith(".safetensors") for name in listed)
        patterns = [p for p in _PATTERNS if not (has_safetensors and p.endswith(".bin"))]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{model} is no folder, and it cannot be had from the hub ({reason}): fetch it where there is a network"
        ) from None


def import_model(source: Path, target: Path, *, to: HFArchitecture | None = None) -> list[str]:
    """Makes a model directory of ours of a released one. What was corrected on the way is told, a sentence each.

    Raises OSError or ValueError that names what does not fit.
    """
    _require_overwritable(target, source)
    _, config = read_config(source)
    tokenizer, notes = load_tokenizer(source, config)
    ids: JsonObject = {"pad_token_id": tokenizer.pad_id}
    found = read_json(source / CONFIG)
    for name in ("bos_token_id", "eos_token_id"):
        ids[name] = found.get(name)
        if not token_ids_of(found, name) <= tokenizer.special_ids or ids[name] is None:
            ids[name] = tokenizer.eos_id
            notes.append(f"{CONFIG} had {name} {found.get(name)}, which is no control token: it is {ids[name]} now")
    convert(source, target, tokenizer.record, hugging_face_configs(tokenizer, config.context_length), ids, to=to)
    return notes


def export_model(source: Path, target: Path, to: str, *, type_name: str = "f16", force: bool = False) -> None:
    """Writes a model directory in another layout, or as a GGUF file whose matrices are of the type named.

    Raises ConfigError for a format that is not known or does not have the model's shape, and OutputExistsError for a
    file or folder in the way that Codekiln did not write; `force` replaces such a file.
    """
    if to not in FORMATS:
        raise ValueError(f"no format is called {to!r}: known are {', '.join(FORMATS)}")
    _, config = read_config(source)
    if to == "gguf":
        _export_gguf(source, target, config, type_name, force=force)
        return
    if to == "gptj" and not isinstance(config, CodeGenConfig):
        raise ValueError(f"{source} is of the family {config.family}: only codegen has GPT-J's shape")
    import_model(source, target, to=GPTJ if to == "gptj" else None)


def _export_gguf(source: Path, target: Path, config: ModelConfig, type_name: str, *, force: bool) -> None:
    if type_name not in TYPES:
        raise ValueError(f"no type is called {type_name!r}: known are {', '.join(TYPES)}")
    require_replaceable_file(target, is_ours=is_written_by_codekiln(target), force=force)
    tokenizer, _ = load_tokenizer(source, config)
    name = (source.parent if source.name == "model" else source).resolve().name
    write_gguf(source, target, gguf_vocab_fields(tokenizer), type_name=type_name, name=name)


def _require_overwritable(target: Path, source: Path) -> None:
    """Raises CodekilnError where writing `target` would take away something that Codekiln did not write, or `source`."""
    resolved, read = target.resolve(), source.resolve()
    if resolved == read or resolved in read.parents:
        raise ConfigError(f"{target} is or contains the input folder {source}: choose another --out")
    require_replaceable(target, "model")


def load_tokenizer(source: Path, config: ModelConfig) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a directory, and what is to be told of it. CodeGen's is made anew where only its parts are there.

    Raises OSError or ValueError, also where it is another model's.
    """
    tokenizer, notes = _load_or_rebuild(source, config)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size:,} ids and the model {config.vocab_size:,} rows: "
            "they are not of one model"
        )
    return tokenizer, notes


def _load_or_rebuild(source: Path, config: ModelConfig) -> tuple[Tokenizer, list[str]]:
    """`load_tokenizer`, whatever the model's size."""
    if (source / TOKENIZER).is_file() or not isinstance(config, CodeGenConfig):
        return Tokenizer.load(source / TOKENIZER), []
    merges = load_gpt2_merges(
        str(source) if any((source / name).is_file() for name in ("merges.txt", "vocab.bpe")) else None
    )
    has_whitespace = (source / "added_tokens.json").is_file()
    how = "with" if has_whitespace else "without"
    notes = f"{TOKENIZER} was missing and is made from GPT-2's merges, {how} CodeGen's white space"
    return codegen_tokenizer(merges, with_whitespace=has_whitespace), [notes]
