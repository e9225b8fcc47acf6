"""The fields of a tokenizer in a GGUF file.

llama.cpp splits text by built-in rules (pre-tokenizers). A tokenizer is supported if it splits like one of them: GPT-2, Qwen2
(Codekiln's), Llama 3, or Gemma 4 for whole lines. Gemma 4 merges characters instead of bytes. Ids are equal with three
exceptions: merges with half a character in them, four and more newlines that are not a token, which it takes one by one,
and lines over 1,024 characters, which it does not cut (docs/models.md).
"""

import json

import tokenizers
from gguf import Keys, TokenType
from tokenizers import Regex, pre_tokenizers

from codekiln.errors import ConfigError
from codekiln.files import JsonObject
from codekiln.tokenizer.bpe import Tokenizer, bytes_to_unicode
from codekiln.tokenizer.config import WORD_SPLIT_PATTERN
from codekiln.tokenizer.special_tokens import END_OF_MASK, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

_LLAMA3 = WORD_SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")  # Qwen2's, but numbers in threes
# llama.cpp's names of the rules by which text is split before merging.
GPT2, QWEN2, LLAMA3, GEMMA4, SMOLLM = "gpt-2", "qwen2", "llama-bpe", "gemma4", "smollm"
_RULES = {
    GPT2: pre_tokenizers.ByteLevel(add_prefix_space=False),
    QWEN2: pre_tokenizers.Split(Regex(WORD_SPLIT_PATTERN), "isolated"),
    LLAMA3: pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
    # Single digits, then GPT-2's rule: SmolLM, StarCoder and Refact, which llama.cpp treats alike.
    SMOLLM: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    GEMMA4: pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated"),
}
# Two tokenizers that split this text equally have the same rule.
_PROBE = (
    "def f(x1, y='I''m'):\n\tif not x1:\r\n        return 12345 + 3.14e-10  # it's   done \t \n\n\n\n"
    "class Ünïcode_2(Base): x += [~x]**2;\u3000日本語 \u0663\u0664 don't WE'LL\n   \n  end  "
)
_ROLES = {
    FIM_PREFIX: Keys.Tokenizer.FIM_PRE_ID,
    FIM_SUFFIX: Keys.Tokenizer.FIM_SUF_ID,
    FIM_MIDDLE: Keys.Tokenizer.FIM_MID_ID,
    END_OF_MASK: Keys.Tokenizer.EOT_ID,
}
_SPACE = "\u2581"  # Gemma's replacement for a space


def gguf_vocab_fields(tokenizer: Tokenizer, stop_token_ids: frozenset[int] = frozenset()) -> JsonObject:
    """The fields by name. The lowest of `stop_token_ids` that does not end a document ends a turn.

    Raises ConfigError for a tokenizer that llama.cpp does not support.
    """
    rule = pre_tokenizer_name(tokenizer)
    added = {int(token["id"]) for token in tokenizer.record.get("added_tokens") or []}
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    spelled = {number: token for token, number in tokenizer.record["model"]["vocab"].items()}
    tokens, kinds = [], []
    for number, data in enumerate(tokenizer.token_bytes):
        if number in names:
            token, kind = names[number], TokenType.CONTROL
        elif number in added:
            token, kind = data.decode(), TokenType.USER_DEFINED
        elif number not in spelled:
            token, kind = f"<unused {number}>", TokenType.UNUSED
        elif rule == GEMMA4:
            token, kind = _spm_token(data, number)
        else:
            token, kind = spelled[number], TokenType.NORMAL
        tokens.append(token)
        kinds.append(int(kind))
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in tokenizer.record["model"]["merges"]]
    fields: JsonObject = {
        Keys.Tokenizer.MODEL: GEMMA4 if rule == GEMMA4 else "gpt2",  # gpt2 is any BPE of bytes
        Keys.Tokenizer.PRE: rule,
        Keys.Tokenizer.LIST: tokens,
        Keys.Tokenizer.TOKEN_TYPE: kinds,
        Keys.Tokenizer.MERGES: _character_merges(pairs) if rule == GEMMA4 else [" ".join(pair) for pair in pairs],
        Keys.Tokenizer.BOS_ID: tokenizer.bos_id,
        Keys.Tokenizer.EOS_ID: tokenizer.eos_id,
        Keys.Tokenizer.PAD_ID: tokenizer.pad_id,
        Keys.Tokenizer.ADD_BOS: bool(tokenizer.bos_ids),
    }
    return fields | {
        key: tokenizer.special_tokens[token] for token, key in _ROLES.items() if token in tokenizer.special_tokens
    }


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the rule by which a tokenizer splits text. Raises ConfigError if it has none."""
    splitter = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.record)).pre_tokenizer
    if splitter is not None:
        cut = [offsets for _, offsets in splitter.pre_tokenize_str(_PROBE)]
        for name, rule in _RULES.items():
            if cut == [offsets for _, offsets in rule.pre_tokenize_str(_PROBE)]:
                return name
    found = tokenizer.record.get("pre_tokenizer")
    raise ConfigError(f"llama.cpp does not support this pre-tokenizer ({str(found)[:200]}); export with --to hf")


def _spm_token(data: bytes, number: int) -> tuple[str, TokenType]:
    """A token as Gemma spells it: text or a single byte. Other tokens, and those with its replacement, cannot be reached."""
    if len(data) == 1 and not 0 < data[0] < 0x80:
        return f"<0x{data[0]:02X}>", TokenType.BYTE
    try:
        token = data.decode()
    except UnicodeDecodeError:
        token = _SPACE
    if _SPACE in token:
        return f"<unused {number}>", TokenType.UNUSED
    return token.replace(" ", _SPACE), TokenType.NORMAL


def _character_merges(pairs: list[tuple[str, ...]]) -> list[str]:
    """Merges of whole characters. Newlines are not merged: llama.cpp looks up their runs."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    merges = []
    for pair in pairs:
        try:
            left, right = (bytes(map(byte_of.__getitem__, part)).decode() for part in pair)
        except UnicodeDecodeError:
            continue
        if "\n" not in left and not {"\0", _SPACE} & set(left + right):
            merges.append(" ".join(part.replace(" ", _SPACE) for part in (left, right)))
    return merges
