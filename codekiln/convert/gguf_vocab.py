"""The fields of a tokenizer in a GGUF file.

llama.cpp splits text by built-in rules (pre-tokenizers). A tokenizer is supported if it splits like one of them: GPT-2, Qwen2
(Codekiln's), Llama 3, StarCoder, DeepSeek-Coder, or Gemma 4 for whole lines. A vocabulary with byte fallback becomes
llama.cpp's "llama", which does not split text. Gemma 4 merges characters instead of bytes. Ids are equal with three
exceptions: merges with half a character in them, four and more newlines that are not a token, which it takes one by one, and
lines over 1,024 characters, which it does not cut (docs/models.md).
"""

import json

import tokenizers
from gguf import Keys, TokenType
from tokenizers import Regex, pre_tokenizers

from codekiln.errors import ConfigError
from codekiln.files import JsonObject
from codekiln.tokenizer.bpe import SPACE_SYMBOL, Tokenizer, has_byte_fallback, unicode_to_bytes
from codekiln.tokenizer.config import WORD_SPLIT_PATTERN
from codekiln.tokenizer.infill import PSM, SPM, CausalMask, CodeGen2

_LLAMA3 = WORD_SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")  # Qwen2's, but numbers in threes
# llama.cpp's names of the rules by which text is split before merging.
GPT2, QWEN2, LLAMA3, GEMMA4, SMOLLM = "gpt-2", "qwen2", "llama-bpe", "gemma4", "smollm"
DEEPSEEK_CODER, UNSPLIT = "deepseek-coder", "default"
_RULES = {
    GPT2: pre_tokenizers.ByteLevel(add_prefix_space=False),
    QWEN2: pre_tokenizers.Split(Regex(WORD_SPLIT_PATTERN), "isolated"),
    LLAMA3: pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
    # Single digits, then GPT-2's rule: SmolLM, StarCoder and Refact, which llama.cpp treats alike.
    SMOLLM: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    DEEPSEEK_CODER: pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(Regex(pattern), "isolated")
                for pattern in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
            ),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    ),
    GEMMA4: pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated"),
}
# Two tokenizers that split this text equally have the same rule.
_PROBE = (
    "def f(x1, y='I''m'):\n\tif not x1:\r\n        return 12345 + 3.14e-10  # it's   done \t \n\n\n\n"
    "class Ünïcode_2(Base): x += [~x]**2;\u3000日本語 \u0663\u0664 don't WE'LL\n   \n  end  "
)


def gguf_vocab_fields(tokenizer: Tokenizer, stop_token_ids: frozenset[int] = frozenset()) -> JsonObject:
    """The fields by name. The lowest of `stop_token_ids` that does not end a document ends a turn.

    Raises ConfigError for a tokenizer that llama.cpp does not support.
    """
    rule = pre_tokenizer_name(tokenizer)
    added = {int(token["id"]) for token in tokenizer.record.get("added_tokens") or []} - {
        *tokenizer.unused_bytes.values()
    }
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    vocab = tokenizer.record["model"]["vocab"] | tokenizer.unused_bytes
    spelled = {number: token for token, number in vocab.items()}
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
        elif rule == UNSPLIT:
            token, kind = spelled[number], TokenType.BYTE if len(spelled[number]) > 1 == len(data) else TokenType.NORMAL
        else:
            token, kind = spelled[number], TokenType.NORMAL
        tokens.append(token)
        kinds.append(int(kind))
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in tokenizer.record["model"]["merges"]]
    models = {GEMMA4: GEMMA4, UNSPLIT: "llama"}
    fields: JsonObject = {
        Keys.Tokenizer.MODEL: models.get(rule, "gpt2"),  # gpt2 is any byte-level BPE
        Keys.Tokenizer.PRE: rule,
        Keys.Tokenizer.LIST: tokens,
        Keys.Tokenizer.TOKEN_TYPE: kinds,
        Keys.Tokenizer.BOS_ID: tokenizer.bos_id,
        Keys.Tokenizer.EOS_ID: tokenizer.eos_id,
        Keys.Tokenizer.PAD_ID: tokenizer.pad_id,
        Keys.Tokenizer.ADD_BOS: bool(tokenizer.bos_ids),
    }
    if rule == UNSPLIT:
        fields[Keys.Tokenizer.SCORES] = _scores(tokens, pairs)
        fields[Keys.Tokenizer.ADD_PREFIX] = bool(tokenizer.document_start)
    else:
        fields[Keys.Tokenizer.MERGES] = (
            _character_merges(pairs) if rule == GEMMA4 else [" ".join(pair) for pair in pairs]
        )
    return fields | _infill_fields(tokenizer)


def _infill_fields(tokenizer: Tokenizer) -> JsonObject:
    """The tokens of the infilling format; EOT is the token that ends a middle, if that is not the end of the text."""
    match tokenizer.infill_format:
        case SPM() | PSM() as fim:
            fields: JsonObject = {
                Keys.Tokenizer.FIM_PRE_ID: fim.prefix_id,
                Keys.Tokenizer.FIM_SUF_ID: fim.suffix_id,
                Keys.Tokenizer.FIM_MID_ID: fim.middle_id,
            }
            return fields | ({Keys.Tokenizer.EOT_ID: fim.eos_id} if fim.eos_id != tokenizer.eos_id else {})
        case CausalMask(end_of_mask_id=end) | CodeGen2(end_of_mask_id=end):
            return {Keys.Tokenizer.EOT_ID: end}
        case None:
            return {}


def _scores(tokens: list[str], pairs: list[tuple[str, ...]]) -> list[float]:
    """llama.cpp merges the two neighbors whose token has the highest score: minus the place of its first merge."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(pairs))) for token in tokens]


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the rule by which a tokenizer splits text. Raises ConfigError if it has none."""
    if has_byte_fallback(tokenizer.record):
        return UNSPLIT
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
        token = SPACE_SYMBOL
    if SPACE_SYMBOL in token:
        return f"<unused {number}>", TokenType.UNUSED
    return token.replace(" ", SPACE_SYMBOL), TokenType.NORMAL


def _character_merges(pairs: list[tuple[str, ...]]) -> list[str]:
    """Merges of whole characters. Newlines are not merged: llama.cpp looks up their runs."""
    byte_of = unicode_to_bytes()
    merges = []
    for pair in pairs:
        try:
            left, right = (bytes(map(byte_of.__getitem__, part)).decode() for part in pair)
        except UnicodeDecodeError:
            continue
        if "\n" not in left and not {"\0", SPACE_SYMBOL} & set(left + right):
            merges.append(" ".join(part.replace(" ", SPACE_SYMBOL) for part in (left, right)))
    return merges
