"""Byte-level BPE: text to ids and back.

Text never becomes a control token. Of the tokens that a `tokenizer.json` adds to its merges, those that are white space
(CodeGen's runs of spaces) are text; every other one is a control token, which only code puts into a sequence, as an integer.
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

from codekiln.files import JsonObject, write_json
from codekiln.folders import atomic_folder

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
# How others spell what ends a document, and what begins one where that is another token (Llama 3 and 2, DeepSeek).
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>")
_STARTS = ("<|begin_of_text|>", "<s>", "<｜begin▁of▁sentence｜>")
# As Qwen2.5-Coder spells them, so that other servers find them by name.
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
TOKENIZER_FILE = "tokenizer.json"
N_BYTES = 256

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]
_INVALID = re.compile("([\udc80-\udcff]+)")  # bytes that are no UTF-8, as `surrogateescape` shows them

# Both encoders read these the same way, or the faster one is not used. They hold what encoders are known to differ in:
# runs of white space around the lengths that have tokens, line ends, joiners, digits, long pieces, control tokens.
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
    """A `tokenizer.json`. Raises ValueError if that is not a byte-level BPE with an end-of-text token.

    Ids equal those of Hugging Face's tokenizers with special tokens split, whichever library encodes.
    """

    def __init__(self, record: JsonObject, *, origin: str) -> None:
        self.record, self._origin = record, origin
        try:
            model = record.get("model") or {}
            if model.get("type") != "BPE" or (record.get("decoder") or {}).get("type") != "ByteLevel":
                found = f"{model.get('type')} with the decoder {(record.get('decoder') or {}).get('type')}"
                raise ValueError(f"{origin} is {found}: a byte-level BPE is needed")
            added = {token["content"]: int(token["id"]) for token in record.get("added_tokens") or []}
            vocab: dict[str, int] = dict(model["vocab"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{origin} is not a readable tokenizer ({error!r}): make it again") from None
        self.special_tokens: Mapping[str, int] = {token: number for token, number in added.items() if token.strip()}
        self.special_ids = frozenset(self.special_tokens.values())  # all ids that text never becomes
        # Ordinary tokens that stand beside the merges.
        self._added = {token: number for token, number in added.items() if not token.strip()}
        if missing := set(bytes_to_unicode().values()) - vocab.keys():
            raise ValueError(f"{origin} has no token for {len(missing)} of the 256 bytes: a byte-level BPE is needed")
        self.vocab_size = 1 + max([*vocab.values(), *added.values()])
        self._normalized_json = json.dumps(
            record
            | {
                "added_tokens": [
                    token | {"special": token["content"] in self.special_tokens}
                    for token in record.get("added_tokens") or []
                ],
                "model": model | {"dropout": None},  # merges left out by chance, for a model's training alone
                "post_processor": None,
                "truncation": None,
                "padding": None,
            }
        )
        try:
            self._reference = tokenizers.Tokenizer.from_str(self._normalized_json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{origin} is not a readable tokenizer ({error}): make it again") from None
        # Special tokens in text are split into plain pieces: their spelling is text like any other.
        self._reference.encode_special_tokens = True
        found_text = self.decode(self._reference.encode("a", add_special_tokens=False).ids)
        if found_text != "a":
            raise ValueError(
                f"{origin} makes {found_text!r} of 'a': text must come back as it was, so set its add_prefix_space to false"
            )
        # A vocabulary learned from text that spelled a control token may have merges for the whole spelling.
        leaks = [t for t in self.special_tokens if not self.special_ids.isdisjoint(self._reference.encode(t).ids)]
        if short := [token for token in leaks if len(token) == 1]:
            raise ValueError(
                f"{origin} has the control token {short[0]!r}, which any text spells: it cannot be used safely"
            )
        self._leaking_specials = (
            re.compile("|".join(f"(?<={re.escape(t[0])})(?={re.escape(t[1:])})" for t in leaks)) if leaks else None
        )
        self.eos_id = self.special_id(next((token for token in _ENDS if token in self.special_tokens), END_OF_TEXT))
        start = next((token for token in _STARTS if token in self.special_tokens), None)
        # None where nothing is put before a document but the end of the one before.
        self.start_id = None if start is None or END_OF_TEXT in self.special_tokens else self.special_id(start)
        self.pad_id = self.special_tokens.get(PAD, self.special_tokens.get("<pad>", self.eos_id))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a `tokenizer.json`. Raises OSError or ValueError naming the file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: name a run or a model folder that holds a {TOKENIZER_FILE}")
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not a readable tokenizer ({error}): make it again") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path} is not a readable tokenizer (it holds a {type(record).__name__}): make it again")
        return cls(record, origin=str(path))

    def save(self, path: Path) -> None:
        """Writes one `tokenizer.json`, which Transformers loads with equal ids."""
        write_json(path, self.record)

    def special_id(self, token: str) -> int:
        """The id of a control token. Raises ValueError if this tokenizer has none of that name."""
        if token not in self.special_tokens:
            known = ", ".join(list(self.special_tokens)[:6]) or "none at all"
            raise ValueError(
                f"{self._origin} has no {token} (it has {known}): use the {TOKENIZER_FILE} saved with this model"
            )
        return self.special_tokens[token]

    @property
    def fim_prefix(self) -> int:
        return self.special_id(FIM_PREFIX)

    @property
    def fim_suffix(self) -> int:
        return self.special_id(FIM_SUFFIX)

    @property
    def fim_middle(self) -> int:
        return self.special_id(FIM_MIDDLE)

    @property
    def bos_id(self) -> int:
        """What others call the beginning of a sequence: the start of a text, or the end of the one before."""
        return self.eos_id if self.start_id is None else self.start_id

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of the text; none of them is a control token. `decode_bytes` of them is the text's UTF-8, or the bytes.

        Bytes that are no UTF-8, and the lone surrogates that Python lets a text hold, become tokens of one byte each.
        """
        ids: list[int] = self.encode_flat([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        ids, offsets = self.encode_flat(texts)
        return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]

    def encode_flat(self, texts: Sequence[str | bytes]) -> tuple[Ids, Offsets]:
        """Ids of all texts, one after the other, and where each begins and ends (n + 1), on all cores."""
        if self._leaking_specials is None:
            try:
                return self._encode_valid([text if isinstance(text, str) else text.decode() for text in texts])
            except (UnicodeError, TypeError):  # one of them is no UTF-8
                pass
        pieces = [self._pieces(text) for text in texts]
        ids, offsets = self._encode_valid([piece for row in pieces for piece in row if isinstance(piece, str)])
        encoded = iter([ids[start:stop] for start, stop in pairwise(offsets)])
        rows = [
            np.concatenate(
                [np.empty(0, np.uint32)]
                + [
                    next(encoded) if isinstance(piece, str) else self._byte_ids[np.frombuffer(piece, np.uint8)]
                    for piece in row
                ]
            )
            for row in pieces
        ]
        return np.concatenate([np.empty(0, np.uint32), *rows]), np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _encode_valid(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """`encode_flat` of texts without lone surrogates; one with them raises UnicodeError or TypeError."""
        if self._fast_encoder is not None:
            data, ends = self._fast_encoder.encode_batch_flat(texts, split_special_tokens=True)
            return np.frombuffer(data, np.uint32), np.frombuffer(ends, np.uint64).astype(np.int64)
        rows = [encoding.ids for encoding in self._reference.encode_batch_fast(texts, add_special_tokens=False)]
        return np.array([i for row in rows for i in row], np.uint32), np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def _pieces(self, text: str | bytes) -> list[str | bytes]:
        """A text cut where no merge may reach across: around bytes that are no UTF-8, and inside spellings that leak."""
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        pieces: list[str | bytes] = []
        for k, run in enumerate(_INVALID.split(data.decode("utf-8", "surrogateescape"))):
            if k % 2:
                pieces.append(run.encode("utf-8", "surrogateescape"))
            elif run:
                pieces += self._leaking_specials.split(run) if self._leaking_specials is not None else [run]
        return pieces

    @cached_property
    def _fast_encoder(self) -> fastokens.Tokenizer | None:
        """A faster encoder, if it reads this tokenizer and gives the reference's ids on `_SELF_CHECK_TEXTS` and on tokens' texts."""
        step = 1 + self.vocab_size // N_SELF_CHECK_TOKENS
        texts = [*_SELF_CHECK_TEXTS, *(token.decode(errors="replace") for token in self.token_bytes[::step])]
        try:
            fast = fastokens.Tokenizer.from_json_str(self._normalized_json)
            found = [fast.encode(text, split_special_tokens=True).ids for text in texts]
        except Exception:  # it refuses what it does not know in many ways; the reference encodes then
            return None
        return fast if found == [self._reference.encode(text, add_special_tokens=False).ids for text in texts] else None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes behind ids; control tokens and ids beyond the vocabulary have none."""
        table, ids = self.token_bytes, list(ids)
        if not ids or min(ids) < 0 or max(ids) >= len(table):
            ids = [i for i in ids if 0 <= i < len(table)]
        return b"".join(map(table.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Text behind ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each id, (vocab_size,); empty for control tokens."""
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        table = [b""] * self.vocab_size
        for token, number in self.record["model"]["vocab"].items():
            if number not in self.special_ids:
                is_bytes = all(character in byte_of for character in token)
                table[number] = bytes(byte_of[c] for c in token) if is_bytes else token.encode()
        for token, number in self._added.items():
            table[number] = token.encode()
        return tuple(table)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of each id, (vocab_size,)."""
        return np.array([len(token) for token in self.token_bytes], np.int32)

    @cached_property
    def _byte_ids(self) -> Ids:
        """The id of each byte alone, (256,)."""
        vocab = self.record["model"]["vocab"]
        return np.array([vocab[bytes_to_unicode()[byte]] for byte in range(N_BYTES)], np.uint32)


def hugging_face_configs(tokenizer: Tokenizer, context_length: int | None) -> dict[str, JsonObject]:
    """The two files that stand beside `tokenizer.json` for Transformers, by name. Decoding cleans nothing up."""
    names = {number: token for token, number in tokenizer.special_tokens.items()}
    special = {
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
        "pad_token": names[tokenizer.pad_id],
    }
    return {
        "tokenizer_config.json": special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        }
        | ({"model_max_length": context_length} if context_length is not None else {}),
        "special_tokens_map.json": special,
    }


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """A folder that Transformers' AutoTokenizer loads."""
    with atomic_folder(folder, "tokenizer") as temp_path:
        tokenizer.save(temp_path / TOKENIZER_FILE)
        for name, record in hugging_face_configs(tokenizer, None).items():
            write_json(temp_path / name, record)


@cache
def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, `bytes_to_unicode`), in the order of its ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + n) for n, byte in enumerate(others)}
