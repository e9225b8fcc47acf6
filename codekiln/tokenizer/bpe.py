"""Byte-level BPE whose tokens may cross spaces but never a newline; control tokens stand above it.

Text never becomes a control token: encoding knows the merges only, and control ids are added as integers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from codekiln.files import Record, replacing

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
# As Qwen2.5-Coder spells them, so that other servers find them by name.
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
# Their ids follow the merges in this order.
CONTROL_TOKENS = (END_OF_TEXT, PAD, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
FILE = "tokenizer.json"
N_BYTES = 256


@dataclass(frozen=True)
class TokenizerPlan:
    """What to train. `vocab_size` counts all ids: bytes, merges and control tokens."""

    vocab_size: int
    sample_bytes: int = 8_000_000
    max_token_bytes: int = 32  # banners and licence boxes would make tokens of 200 bytes
    max_line_characters: int = 300  # a line is one piece, and distinct pieces are what training holds in memory
    seed: int = 0

    def __post_init__(self) -> None:
        needed = N_BYTES + len(CONTROL_TOKENS)
        if self.vocab_size < needed:
            raise ValueError(
                f"vocab_size is {self.vocab_size}: {N_BYTES} bytes and {needed - N_BYTES} control tokens need at least {needed}"
            )


class Tokenizer:
    """Text to ids and back. Raises ValueError if the file lacks the control tokens that the layouts need."""

    def __init__(self, backend: tokenizers.Tokenizer, *, origin: str) -> None:
        self._backend = backend
        # Added tokens in text are split into plain pieces: their spelling is text like any other.
        backend.encode_special_tokens = True
        known = {token: number for token in CONTROL_TOKENS if (number := backend.token_to_id(token)) is not None}
        if missing := [token for token in CONTROL_TOKENS if token not in known]:
            raise ValueError(f"{origin} has no {', '.join(missing)}: use the {FILE} that was saved with this model")
        self.end_of_text, self.pad = known[END_OF_TEXT], known[PAD]
        self.fim_prefix, self.fim_suffix, self.fim_middle = known[FIM_PREFIX], known[FIM_SUFFIX], known[FIM_MIDDLE]
        self.control_ids = frozenset(known.values())  # all ids that text never becomes
        self.vocab_size: int = backend.get_vocab_size()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a `tokenizer.json`. Raises OSError or ValueError naming the file."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: name a run or a model folder that holds a {FILE}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is not a readable tokenizer ({error}): make it again") from None
        return cls(backend, origin=str(path))

    def save(self, path: Path) -> None:
        """Writes one `tokenizer.json`, which Transformers loads with equal ids."""
        with replacing(path) as draft:
            draft.write_text(self._backend.to_str(pretty=True), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of the text; none of them is a control token. `decode_bytes` of them is the text's UTF-8."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes behind ids; control tokens and ids beyond the vocabulary have none."""
        table = self.token_bytes
        return b"".join(table[i] for i in ids if i < len(table))

    def decode(self, ids: Iterable[int]) -> str:
        """Text behind ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each id, (vocab_size,); empty for control tokens."""
        byte_of = {character: byte for byte, character in _byte_alphabet().items()}
        spelled = ["" if i in self.control_ids else self._backend.id_to_token(i) or "" for i in range(self.vocab_size)]
        return tuple(bytes(byte_of[character] for character in token) for token in spelled)

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of each id, (vocab_size,)."""
        return np.array([len(token) for token in self.token_bytes], np.int32)


def train_tokenizer(plan: TokenizerPlan, texts: Iterable[str]) -> Tokenizer:
    """Trains on `texts`, which the caller has sampled. Deterministic in the texts and their order.

    Raises ValueError for an empty sample, and where the texts have fewer merges than `vocab_size` asks for.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=list(_byte_alphabet().values()),
        max_token_length=plan.max_token_bytes,
        show_progress=False,
    )
    backend.train_from_iterator(_training_lines(plan, texts), trainer)
    n_learned = backend.get_vocab_size()
    if n_learned == N_BYTES:
        raise ValueError("the sample to train the tokenizer on is empty: the corpus needs at least one document")
    if n_learned != plan.vocab_size - len(CONTROL_TOKENS):
        raise ValueError(
            f"the corpus has merges for {n_learned + len(CONTROL_TOKENS)} ids and the recipe asks for {plan.vocab_size}: "
            "use a larger corpus or a smaller vocab_size"
        )
    leaked = [token for token in CONTROL_TOKENS if backend.token_to_id(token) is not None]
    assert not leaked, f"merges spell {leaked}"
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return Tokenizer(backend, origin="the trained tokenizer")


def hugging_face_configs(tokenizer: Tokenizer, context_length: int) -> dict[str, Record]:
    """The two files that stand beside `tokenizer.json` for Transformers, by name. Decoding cleans nothing up."""
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PAD}
    return {
        "tokenizer_config.json": special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        },
        "special_tokens_map.json": special,
    }


def _training_lines(plan: TokenizerPlan, texts: Iterable[str]) -> Iterator[str]:
    """Texts in pieces that hold no spelling of a control token (a merge could learn it) and no over-long line."""
    for text in texts:
        cleaned = text
        for token in CONTROL_TOKENS:
            cleaned = cleaned.replace(token, "\n")
        lines = cleaned.splitlines(keepends=True)
        yield "".join(line for line in lines if len(line) <= plan.max_line_characters)


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + n) for n, byte in enumerate(others)}
