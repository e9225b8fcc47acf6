"""Models from elsewhere, and models for elsewhere: a released checkpoint becomes a model directory of ours, and back."""

from pathlib import Path

from codekiln.convert.gguf import TYPES, is_written_by_codekiln, write_gguf
from codekiln.convert.gguf_vocab import gguf_vocab_fields
from codekiln.errors import ConfigError, MissingFileError
from codekiln.files import JsonObject, read_json
from codekiln.folders import require_replaceable, require_replaceable_file
from codekiln.hub import download_model, is_hub_id
from codekiln.model.architectures import GPTJ, HFArchitecture
from codekiln.model.configs import CodeGenConfig, ModelConfig
from codekiln.model.huggingface import CONFIG, TOKENIZER, convert, read_config, resolve_model_dir, token_ids_of
from codekiln.tokenizer.bpe import Tokenizer, hugging_face_configs
from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges

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


def export_model(source: Path, target: Path, to: str, *, dtype: str = "f16", force: bool = False) -> None:
    """Writes a model directory in another layout, or as a GGUF file whose matrices are of the type named.

    Raises ConfigError for a format that is not known or does not have the model's shape, and OutputExistsError for a
    file or folder in the way that Codekiln did not write; `force` replaces such a file.
    """
    if to not in FORMATS:
        raise ConfigError(f"no format is called {to!r}: known are {', '.join(FORMATS)}")
    _, config = read_config(source)
    if to == "gguf":
        _export_gguf(source, target, config, dtype, force=force)
        return
    if to == "gptj" and not isinstance(config, CodeGenConfig):
        raise ConfigError(f"{source} is of the family {config.family}: only codegen has GPT-J's shape")
    import_model(source, target, to=GPTJ if to == "gptj" else None)


def _export_gguf(source: Path, target: Path, config: ModelConfig, dtype: str, *, force: bool) -> None:
    if dtype not in TYPES:
        raise ConfigError(f"no type is called {dtype!r}: known are {', '.join(TYPES)}")
    require_replaceable_file(target, is_ours=is_written_by_codekiln(target), force=force)
    tokenizer, _ = load_tokenizer(source, config)
    name = (source.parent if source.name == "model" else source).resolve().name
    write_gguf(source, target, gguf_vocab_fields(tokenizer), dtype=dtype, name=name)


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
        raise ConfigError(
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
