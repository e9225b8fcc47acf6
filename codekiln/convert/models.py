"""Import of released checkpoints as model directories, and export of model directories to other formats."""

from pathlib import Path

from codekiln.convert.gguf import TYPES, is_written_by_codekiln, write_gguf
from codekiln.convert.gguf_vocab import gguf_vocab_fields
from codekiln.errors import ConfigError, MissingFileError
from codekiln.files import JsonObject, read_json
from codekiln.folders import require_replaceable, require_replaceable_file
from codekiln.hub import download_model, is_hub_id
from codekiln.model.architectures import GPTJ, HFArchitecture, is_codegen2
from codekiln.model.configs import CodeGenConfig, ModelConfig, StarCoder2Config
from codekiln.model.huggingface import (
    CONFIG,
    TOKENIZER,
    convert,
    read_config,
    require_vocabulary,
    resolve_model_dir,
    stop_token_ids_in,
    token_ids_of,
)
from codekiln.tokenizer.bpe import TOKENIZER_CONFIG_FILE, Tokenizer, hugging_face_configs
from codekiln.tokenizer.codegen import CODEGEN25_CLASS, codegen25_tokenizer, codegen_tokenizer, load_gpt2_merges

FORMATS = ("hf", "gptj", "gguf")


def resolve_model(model: str) -> Path:
    """The directory of a model: of a run, a model directory, or an id on the Hub, which is downloaded.

    Raises MissingFileError if there is none.
    """
    path = Path(model)
    if path.is_dir():
        return resolve_model_dir(path)
    if not is_hub_id(model):
        raise MissingFileError(f"{model} does not exist: name a run, a model folder or an id on the Hub")
    return download_model(model)


def import_model(source: Path, target: Path, *, to: HFArchitecture | None = None) -> list[str]:
    """Converts a released checkpoint to a model directory. Returns notes on what was corrected, a sentence each.

    Raises CodekilnError that names what does not fit, before anything is written.
    """
    _require_overwritable(target, source)
    _, config = read_config(source)
    tokenizer, notes = load_tokenizer(source, config)
    found = read_json(source / CONFIG)
    if found.get("tie_word_embeddings") and not config.tie_embeddings:
        notes.append(
            f"{CONFIG} ties the output layer to the embedding, but the weights have one that differs: it is kept"
        )
    if is_codegen2(found):
        notes.append("the model brings its own code, which was not run: it was read as CodeGen2")
    window = found.get("sliding_window")
    if isinstance(config, StarCoder2Config) and window and window < found["max_position_embeddings"]:
        notes.append(f"the model looks back at most {window:,} tokens: its context is {config.context_length:,} tokens")
    ids = _token_ids(source, found, tokenizer, notes)
    configs = hugging_face_configs(tokenizer, config.context_length)
    if template := _chat_template(source):
        configs[TOKENIZER_CONFIG_FILE]["chat_template"] = template
    convert(source, target, tokenizer.record, configs, ids, to=to)
    return notes


def _token_ids(source: Path, config_record: JsonObject, tokenizer: Tokenizer, notes: list[str]) -> JsonObject:
    """The ids for config.json and generation_config.json, corrected where they are not special tokens."""
    found = {"bos_token_id": token_ids_of(config_record, "bos_token_id"), "eos_token_id": stop_token_ids_in(source)}
    ids: JsonObject = {"pad_token_id": tokenizer.pad_id}
    for name, numbers in found.items():
        if numbers and numbers <= tokenizer.special_ids:
            # The id that ends a document comes first: some software reads no other.
            ordered = sorted(numbers, key=lambda number: (number != tokenizer.eos_id, number))
            ids[name] = ordered if len(ordered) > 1 else ordered[0]
        else:
            ids[name] = tokenizer.eos_id
            written = ", ".join(map(str, sorted(numbers))) or "not set"
            notes.append(f"{CONFIG} had {name} {written}, which is not a special token: it is {ids[name]} now")
    return ids


def _chat_template(source: Path) -> object:
    """The chat template of a model, from its own file or from tokenizer_config.json; None if it has none."""
    if (source / "chat_template.jinja").is_file():
        return (source / "chat_template.jinja").read_text(encoding="utf-8")
    return _tokenizer_config(source).get("chat_template")


def _tokenizer_config(source: Path) -> JsonObject:
    """The content of tokenizer_config.json; nothing if there is none."""
    path = source / TOKENIZER_CONFIG_FILE
    return read_json(path) if path.is_file() else {}


def export_model(source: Path, target: Path, to: str, *, dtype: str = "f16", force: bool = False) -> None:
    """Exports a model directory to another architecture, or to a GGUF file with matrices of a dtype.

    Raises ConfigError for a format that is not known or does not have the model's shape, and OutputExistsError for a
    file or folder in the way that Codekiln did not write; `force` replaces such a file.
    """
    if to not in FORMATS:
        raise ConfigError(f"unknown format {to!r}: choose from {', '.join(FORMATS)}")
    _, config = read_config(source)
    if to == "gguf":
        _export_gguf(source, target, config, dtype, force=force)
        return
    if to == "gptj" and not isinstance(config, CodeGenConfig):
        raise ConfigError(f"cannot export {config.family} as GPT-J: only codegen is supported")
    import_model(source, target, to=GPTJ if to == "gptj" else None)


def _export_gguf(source: Path, target: Path, config: ModelConfig, dtype: str, *, force: bool) -> None:
    if dtype not in TYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose from {', '.join(TYPES)}")
    require_replaceable_file(target, is_ours=is_written_by_codekiln(target), force=force)
    tokenizer, _ = load_tokenizer(source, config)
    name = (source.parent if source.name == "model" else source).resolve().name
    write_gguf(source, target, gguf_vocab_fields(tokenizer, stop_token_ids_in(source)), dtype=dtype, name=name)


def _require_overwritable(target: Path, source: Path) -> None:
    """Raises CodekilnError where writing `target` would take away something that Codekiln did not write, or `source`."""
    resolved, read = target.resolve(), source.resolve()
    if resolved == read or resolved in read.parents:
        raise ConfigError(f"{target} is or contains the input folder {source}: choose another --out")
    require_replaceable(target, "model")


def load_tokenizer(source: Path, config: ModelConfig) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a directory, and notes on it. CodeGen's and CodeGen2.5's are built if there is no tokenizer.json.

    Raises CodekilnError, also if tokenizer and model do not belong together.
    """
    tokenizer, notes = _load_or_rebuild(source, config)
    require_vocabulary(tokenizer.vocab_size, config)
    return tokenizer, notes


def _load_or_rebuild(source: Path, config: ModelConfig) -> tuple[Tokenizer, list[str]]:
    """`load_tokenizer` without the check against the model."""
    is_codegen25 = _tokenizer_config(source).get("tokenizer_class") == CODEGEN25_CLASS
    if (source / TOKENIZER).is_file() or not (is_codegen25 or isinstance(config, CodeGenConfig)):
        return Tokenizer.load(source / TOKENIZER), []
    if is_codegen25:
        note = f"{TOKENIZER} was missing and was built from GPT-2's merges as CodeGen2.5's: the model's own code was not run"
        return codegen25_tokenizer(load_gpt2_merges()), [note]
    merges = load_gpt2_merges(
        str(source) if any((source / name).is_file() for name in ("merges.txt", "vocab.bpe")) else None
    )
    path = source / "added_tokens.json"
    added = read_json(path) if path.is_file() else {}
    what = f"the {len(added)} tokens of {path.name}" if added else "no added tokens"
    note = f"{TOKENIZER} was missing and was built from GPT-2's merges with {what}"
    return codegen_tokenizer(merges, added=added, origin=str(source)), [note]
