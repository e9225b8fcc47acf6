"""BPE of bytes: text to ids and back.

Vocabularies are spelled in one of two ways. In a byte-level one (GPT-2), every byte is a printable character. In one with
byte fallback (SentencePiece: Llama 2, Code Llama), tokens are text in which "▁" represents a space, and bytes are `<0x00>` to
`<0xFF>`.

Text never becomes a special token. Of the tokens that a `tokenizer.json` adds to its merges, those of white space (CodeGen's
runs of spaces) are text. All others are special, whatever their flags say: only code puts them into a sequence, as integers.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import fastokens
import numpy as np
import numpy.typing as npt
import tokenizers

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import JsonObject, read_json, shorten, write_json
from codekiln.folders import atomic_folder
from codekiln.tokenizer.config import N_BYTES
from codekiln.tokenizer.infill import RECOGNIZE, InfillFormat, find_infill_format
from codekiln.tokenizer.special_tokens import END_OF_TEXT, END_TOKENS, PAD, START_TOKENS, STOP_TOKENS

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
MAX_IDS = 2_000_000  # far more than any tokenizer has
MAX_NORMALIZERS = 4
SPACE_SYMBOL = "\u2581"  # SentencePiece's replacement for a space
UNUSED_BYTES = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes that are in no UTF-8
INFILL_FORMAT = "infill_format"  # the field of tokenizer_config.json

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_INVALID = re.compile("([\udc80-\udcff]+)")  # bytes that are not valid UTF-8, as `surrogateescape` shows them
_INVALID_OR_SPACE_SYMBOL = re.compile(f"([{SPACE_SYMBOL}\udc80-\udcff]+)")

# Self-check: the fast encoder is used only if both encoders give equal ids on these texts. They hold what encoders are known
# to disagree on: runs of white space around the lengths that have tokens, line ends, joiners, digits, long words, special
# tokens.
_SELF_CHECK_TEXTS = (
    *(f"{space * n}x{space * n}" for space in (" ", "\t", "\n") for n in (1, 2, 9, 10, 31, 32, 33, 63, 64, 300)),
    " \t  \t\tx \n \n\n\t\n  y\r\n\r\rz \u00a0\u3000\u2028\u2029\x85\x0b\x0c\x1c w",
    "I'm you're it's 'S x='re' \u2019s ." + " 0123456789 ٣٤٥ Ⅷ ½ 3.14e-10 0xFF",
    "def f(self, x: int = 0) -> None:\n    return {'a': [1, 2], **kw}  # done\n",
    "import numpy as np\nfor i in range(10):\n\tif i != 3 and not x[i] <<= 2: pass\n",
    "é e\u0301 ﬁ ß İ ı 日本語 ไทย العربية \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0010ffff \ufeff\u200b\x00\x01\x7f",
    "Ġ Ċ ĉ Ā ÿ " + "=" * 200 + "a" * 500 + "_-" * 100,
    "<|endoftext|> <|fim_middle|>x<pad> <|mask:0|><|endofmask|>\n<|pad|>\n<s></s>",
)
N_SELF_CHECK_TOKENS = 2000


class Tokenizer:
    """A BPE of bytes as a `tokenizer.json` has it. Raises InvalidFileError if `record` is not one with an end-of-text token.

    Ids equal those of Hugging Face's tokenizers with special tokens in text split, whichever library encodes.
    `document_start` is text that belongs before every document: SentencePiece's vocabularies have words with a space before
    them, so that the first word of a document has one too.
    `infill_format` is the name of the format that was stored with it: None if it has no format, `RECOGNIZE` if nothing was
    stored.
    """

    def __init__(self, record: JsonObject, *, origin: str, infill_format: str | None = RECOGNIZE) -> None:
        self.record, self._origin, self._declared_format = record, origin, infill_format
        vocab, added = _read_tokens(record, origin)
        self._has_byte_fallback = has_byte_fallback(record)
        self.document_start = " " if _prepends_space(record.get("normalizer")) else ""
        self.vocab_size = 1 + max([*vocab.values(), *added.values()])
        # DeepSeek-Coder has the bytes that are in no UTF-8 as added tokens. Text has the same characters with another meaning.
        names = byte_names(record)
        self.unused_bytes = {names[byte]: added.pop(names[byte]) for byte in UNUSED_BYTES if names[byte] in added}
        self.special_tokens: Mapping[str, int] = {token: number for token, number in added.items() if token.strip()}
        self.special_ids = frozenset(self.special_tokens.values())  # all ids that text never becomes
        self._added_text = {token: number for token, number in added.items() if not token.strip()}
        self._normalized_json = _normalize(record, self.special_tokens, self.unused_bytes)
        self._reference = _load_reference(self._normalized_json, origin)
        self._leaking_specials = self._check()
        self._byte_runs = _INVALID_OR_SPACE_SYMBOL if self._has_byte_fallback else _INVALID
        end = next((token for token in END_TOKENS if token in self.special_tokens), END_OF_TEXT)
        start = next((token for token in START_TOKENS if token in self.special_tokens), None)
        self.eos_id = self.special_id(end)
        # None if a document begins with the end-of-text token of the one before it, or with nothing.
        self.start_id = None if start is None or END_OF_TEXT in self.special_tokens else self.special_id(start)
        self.pad_id = self.special_tokens.get(PAD, self.special_tokens.get("<pad>", self.eos_id))

    def _check(self) -> re.Pattern[str] | None:
        """Raises InvalidFileError if text would not come back, or could become a special token.

        Returns a pattern of the places where text must be split so that merges cannot produce a special token; None if no
        merge can. A vocabulary that was learned from text with such spellings may have these merges.
        """
        text = self.decode(self._reference.encode("a", add_special_tokens=False).ids)
        if text != "a":
            raise InvalidFileError(
                f"{self._origin} does not round-trip ('a' -> {text!r}): set add_prefix_space to false"
            )
        leaks = [t for t in self.special_tokens if not self.special_ids.isdisjoint(self._reference.encode(t).ids)]
        if short := [token for token in leaks if len(token) == 1]:
            raise InvalidFileError(
                f"{self._origin} has the special token {short[0]!r}: special tokens of one character are not supported, "
                "because text contains them"
            )
        # In a text of a vocabulary with byte fallback, "▁" is a space.
        spelled = [token.replace(SPACE_SYMBOL, " ") if self._has_byte_fallback else token for token in leaks]
        places = "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in spelled)
        return re.compile(places) if leaks else None

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a `tokenizer.json`, and the infilling format from the `tokenizer_config.json` next to it.

        Raises MissingFileError or InvalidFileError naming the file.
        """
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist: name a run or a model folder that holds a {TOKENIZER_FILE}")
        config_path = path.with_name(TOKENIZER_CONFIG_FILE)
        declared = read_json(config_path).get(INFILL_FORMAT, RECOGNIZE) if config_path.is_file() else RECOGNIZE
        if declared is not None and not isinstance(declared, str):
            raise InvalidFileError(f"{config_path}: {INFILL_FORMAT} is {declared!r}, and must be a name or null")
        return cls(read_json(path), origin=str(path), infill_format=declared)

    def save(self, path: Path) -> None:
        """Writes a `tokenizer.json`, which Transformers loads with equal ids, and next to it the infilling format."""
        write_json(path, self.record)
        write_json(path.with_name(TOKENIZER_CONFIG_FILE), hugging_face_configs(self, None)[TOKENIZER_CONFIG_FILE])

    @cached_property
    def infill_format(self) -> InfillFormat | None:
        """How documents with holes are laid out; None if the tokenizer has no tokens for it.

        Raises InvalidFileError if its tokens fit no known format or more than one.
        """
        try:
            return find_infill_format(self.special_tokens, self.eos_id, self._declared_format)
        except InvalidFileError as error:
            raise InvalidFileError(f"{self._origin}: {error}") from None

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        known = {self.special_tokens[token] for token in STOP_TOKENS if token in self.special_tokens}
        return frozenset({self.eos_id} | known)

    @property
    def bos_ids(self) -> list[int]:
        """The ids that every document begins with, in training and in prompts."""
        if self.start_id is not None:
            return [self.start_id]
        return [self.eos_id] if self.infill_format is not None and self.infill_format.begins_with_eos else []

    def special_id(self, token: str) -> int:
        """The id of a special token. Raises InvalidFileError if this tokenizer does not have it."""
        if token not in self.special_tokens:
            known = ", ".join(list(self.special_tokens)[:6]) or "none"
            raise InvalidFileError(
                f"{self._origin} has no token {token} (its special tokens: {known}): "
                f"use the {TOKENIZER_FILE} saved with this model"
            )
        return self.special_tokens[token]

    @property
    def bos_id(self) -> int:
        """The id before a document, which others call BOS: the start token, or the end of the previous document."""
        return self.eos_id if self.start_id is None else self.start_id

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of the text, none of them special. `decode_bytes` of them is the text in UTF-8, or the bytes.

        Invalid UTF-8 bytes and lone surrogates become tokens of one byte each.
        """
        ids: list[int] = self.encode_flat([text])[0].tolist()
        return ids

    def encode_document(self, text: str) -> list[int]:
        """Ids of a text that is the beginning of a document: those of `document_start` and the text."""
        return self.encode(self.document_start + text)

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[list[int]]:
        """Ids of each text, encoded on all cores."""
        ids, offsets = self.encode_flat(texts)
        return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]

    def encode_flat(self, texts: Sequence[str | bytes]) -> tuple[Ids, Offsets]:
        """Ids of all texts in one array, and the n + 1 offsets between them. Encoded on all cores."""
        if self._leaking_specials is None and not self._has_byte_fallback:
            try:
                return self._encode_valid([text if isinstance(text, str) else text.decode() for text in texts])
            except (UnicodeError, TypeError):  # one of them is not valid UTF-8
                pass
        pieces = [self._pieces(text) for text in texts]
        ids, offsets = self._encode_valid([piece for row in pieces for piece in row if isinstance(piece, str)])
        encoded = iter([ids[start:stop] for start, stop in pairwise(offsets)])
        rows = [
            np.concatenate(
                [np.empty(0, np.uint32)]
                + [
                    next(encoded)
                    if isinstance(piece, str)
                    else np.concatenate([self._byte_ids[byte] for byte in piece])
                    for piece in row
                ]
            )
            for row in pieces
        ]
        return np.concatenate([np.empty(0, np.uint32), *rows]), np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _encode_valid(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """`encode_flat` for texts without lone surrogates. Raises UnicodeError or TypeError for a text that has one."""
        if self._fast_encoder is not None:
            data, ends = self._fast_encoder.encode_batch_flat(texts, split_special_tokens=True)
            return np.frombuffer(data, np.uint32), np.frombuffer(ends, np.uint64).astype(np.int64)
        rows = [encoding.ids for encoding in self._reference.encode_batch_fast(texts, add_special_tokens=False)]
        return np.array([i for row in rows for i in row], np.uint32), np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _pieces(self, text: str | bytes) -> list[str | bytes]:
        """A text cut where no merge may reach across: around invalid UTF-8, and inside the spelling of a special token.

        Pieces of bytes become one token for each byte. With byte fallback, "▁" is one too: its token is that of a space.
        """
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        pieces: list[str | bytes] = []
        for k, run in enumerate(self._byte_runs.split(data.decode("utf-8", "surrogateescape"))):
            if k % 2:
                pieces.append(run.encode("utf-8", "surrogateescape"))
            elif run:
                pieces += self._leaking_specials.split(run) if self._leaking_specials is not None else [run]
        return pieces

    @cached_property
    def _fast_encoder(self) -> fastokens.Tokenizer | None:
        """A faster encoder; None if it cannot read this tokenizer or fails the self-check: equal ids on texts and tokens."""
        step = 1 + self.vocab_size // N_SELF_CHECK_TOKENS
        texts = [*_SELF_CHECK_TEXTS, *(token.decode(errors="replace") for token in self.token_bytes[::step])]
        try:
            fast = fastokens.Tokenizer.from_json_str(self._normalized_json)
            found = [fast.encode(text, split_special_tokens=True).ids for text in texts]
        except Exception:  # it has many ways to refuse a tokenizer; the reference encodes then
            return None
        return fast if found == [self._reference.encode(text, add_special_tokens=False).ids for text in texts] else None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids. Special tokens and ids outside the vocabulary have none."""
        table, ids = self.token_bytes, list(ids)
        if not ids or min(ids) < 0 or max(ids) >= len(table):
            ids = [i for i in ids if 0 <= i < len(table)]
        return b"".join(map(table.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Invalid UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each id, (vocab_size,). Special tokens have none."""
        table = [b""] * self.vocab_size
        spelled = _text_bytes if self._has_byte_fallback else _byte_level_bytes
        for token, number in (*self.record["model"]["vocab"].items(), *self.unused_bytes.items()):
            if number not in self.special_ids:
                table[number] = spelled(token)
        for token, number in self._added_text.items():
            table[number] = token.encode()
        return tuple(table)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of each id, (vocab_size,)."""
        return np.array([len(token) for token in self.token_bytes], np.int32)

    @cached_property
    def _byte_ids(self) -> list[Ids]:
        """The ids of each single byte. A byte without a token, which is in no UTF-8, has those of U+FFFD."""
        vocab = self.record["model"]["vocab"] | self.unused_bytes
        names = byte_names(self.record)
        replacement = [vocab[names[byte]] for byte in "\ufffd".encode()]
        return [np.array([vocab[name]] if name in vocab else replacement, np.uint32) for name in names]


def byte_names(record: JsonObject) -> list[str]:
    """The token of each byte, in the spelling of a vocabulary."""
    if has_byte_fallback(record):
        return [f"<0x{byte:02X}>" for byte in range(N_BYTES)]
    return [bytes_to_unicode()[byte] for byte in range(N_BYTES)]


def has_byte_fallback(record: JsonObject) -> bool:
    """Whether the tokens of a vocabulary are text, and characters without a token are bytes (SentencePiece)."""
    return bool(record["model"].get("byte_fallback"))


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(
            map(unicode_to_bytes().__getitem__, token)
        )  # without a loop in Python: vocabularies have 50,000 tokens
    except KeyError:
        return token.encode()


def _text_bytes(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token.replace(SPACE_SYMBOL, " ").encode()


def _prepends_space(normalizer: object) -> bool:
    """Whether a normalizer adds a space before a text."""
    match normalizer:
        case {"type": "Prepend"}:
            return True
        case {"type": "Sequence", "normalizers": [*inner]}:
            return any(map(_prepends_space, inner))
        case _:
            return False


def _read_tokens(record: JsonObject, origin: str) -> tuple[dict[str, int], dict[str, int]]:
    """The vocabulary and the added tokens, by their text. Raises InvalidFileError if it is not a BPE of bytes."""
    try:
        model = record.get("model") or {}
        decoder = record.get("decoder") or {}
        is_fallback = bool(model.get("byte_fallback"))
        if model.get("type") != "BPE" or not (is_fallback or decoder.get("type") == "ByteLevel"):
            found = f"{model.get('type')} with the decoder {decoder.get('type')}"
            raise InvalidFileError(f"{origin} is {found}: a byte-level BPE, or one with byte fallback, is needed")
        if is_fallback and (splitter := record.get("pre_tokenizer")) is not None:
            raise InvalidFileError(
                f"{origin} has byte fallback and a pre-tokenizer ({shorten(splitter)}): only a normalizer is supported with it"
            )
        added = {str(token["content"]): token["id"] for token in record.get("added_tokens") or []}
        vocab: dict[str, int] = dict(model["vocab"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidFileError(
            f"{origin} is not a readable tokenizer ({shorten(repr(error), 200)}): download or train it again"
        ) from None
    for token, number in (*vocab.items(), *added.items()):
        if type(number) is not int or not 0 <= number < MAX_IDS:
            raise InvalidFileError(
                f"{origin}: the token {shorten(token)} has the id {shorten(number)}: ids must be from 0 to {MAX_IDS - 1:,}"
            )
    _check_normalizer(record.get("normalizer"), origin, is_fallback=is_fallback)
    names = byte_names(record)
    if missing := [name for byte, name in enumerate(names) if byte not in UNUSED_BYTES and name not in vocab]:
        raise InvalidFileError(
            f"{origin} has no token for {len(missing)} of the bytes that text has: a byte-level BPE is needed"
        )
    return vocab, added


def _check_normalizer(normalizer: object, origin: str, *, is_fallback: bool) -> None:
    """Raises InvalidFileError for a normalizer other than Unicode normalization: text would not come back.

    A vocabulary with byte fallback needs another one, which turns spaces into "▁".
    """
    match normalizer:
        case None | {"type": "NFC" | "NFD" | "NFKC" | "NFKD"}:
            return
        case {"type": "Prepend", "prepend": "▁"} if is_fallback:
            return
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"} if is_fallback:
            return
        case {"type": "Sequence", "normalizers": [*inner]} if len(inner) <= MAX_NORMALIZERS:
            for each in inner:
                _check_normalizer(each, origin, is_fallback=is_fallback)
        case _:
            raise InvalidFileError(
                f"{origin} has an unsupported normalizer ({shorten(normalizer)}); only Unicode normalization is supported"
            )


def _normalize(record: JsonObject, special_tokens: Mapping[str, int], unused_bytes: Mapping[str, int]) -> str:
    """The tokenizer as JSON for the encoders: special tokens flagged, and nothing that changes ids or adds any."""
    added = [
        token | {"special": token["content"] in special_tokens}
        for token in record.get("added_tokens") or []
        if token["content"] not in unused_bytes
    ]
    model = record["model"] | {"dropout": None}  # dropout leaves merges out by chance, for the training of models only
    changed = {"added_tokens": added, "model": model, "post_processor": None, "truncation": None, "padding": None}
    if has_byte_fallback(record):  # without the space before a text, see `document_start`
        changed["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SYMBOL}
    return json.dumps(record | changed)


def _load_reference(normalized_json: str, origin: str) -> tokenizers.Tokenizer:
    """Hugging Face's encoder, which splits special tokens in text into ordinary tokens."""
    try:
        reference = tokenizers.Tokenizer.from_str(normalized_json)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and a panic in it is no Exception at all
        raise InvalidFileError(
            f"{origin} is not a readable tokenizer ({shorten(str(error), 200)}): download or train it again"
        ) from None
    reference.encode_special_tokens = True
    return reference


def hugging_face_configs(tokenizer: Tokenizer, context_length: int | None) -> dict[str, JsonObject]:
    """The two files next to `tokenizer.json` that Transformers reads, by name. They disable clean-up in decoding."""
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    special = {
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
        "pad_token": names[tokenizer.pad_id],
    }
    return {
        TOKENIZER_CONFIG_FILE: special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            INFILL_FORMAT: None if tokenizer.infill_format is None else tokenizer.infill_format.name,
        }
        | ({"model_max_length": context_length} if context_length is not None else {}),
        "special_tokens_map.json": special,
    }


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes a folder that Transformers' AutoTokenizer loads."""
    with atomic_folder(folder, "tokenizer") as temp_path:
        write_json(temp_path / TOKENIZER_FILE, tokenizer.record)
        for name, record in hugging_face_configs(tokenizer, None).items():
            write_json(temp_path / name, record)


@cache
def unicode_to_bytes() -> dict[str, int]:
    """The byte of each of GPT-2's printable characters."""
    return {character: byte for byte, character in bytes_to_unicode().items()}


@cache
def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable character for each byte (Radford et al. 2019), in the order of its ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + n) for n, byte in enumerate(others)}
