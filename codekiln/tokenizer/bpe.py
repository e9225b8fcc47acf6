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

END_OF_TEXT, PAD, END_OF_MASK = "<|endoftext|>", "<pad>", "<|endofmask|>"
FILE = "tokenizer.json"
N_BYTES = 256


@dataclass(frozen=True)
class TokenizerPlan:
    """What to train. `vocab_size` counts all ids: bytes, merges and control tokens."""

    vocab_size: int
    n_masks: int = 16
    sample_bytes: int = 8_000_000
    max_token_bytes: int = 32  # banners and licence boxes would make tokens of 200 bytes
    max_line_characters: int = 300  # a line is one piece, and distinct pieces are what training holds in memory
    seed: int = 0

    def __post_init__(self) -> None:
        needed = N_BYTES + len(control_tokens(self.n_masks))
        if self.vocab_size < needed:
            raise ValueError(
                f"vocab_size is {self.vocab_size}: {N_BYTES} bytes and {needed - N_BYTES} control tokens need at least {needed}"
            )


def control_tokens(n_masks: int) -> tuple[str, ...]:
    """Their spellings in the order of their ids, which follow the merges."""
    return (END_OF_TEXT, PAD, *(f"<|mask:{k}|>" for k in range(n_masks)), END_OF_MASK)


class Tokenizer:
    """Text to ids and back. Raises ValueError if the file lacks the control tokens that the layouts need."""

    def __init__(self, backend: tokenizers.Tokenizer, *, origin: str) -> None:
        self._backend = backend
        # Added tokens in text are split into plain pieces: their spelling is text like any other.
        backend.encode_special_tokens = True
        missing = [
            token for token in (END_OF_TEXT, PAD, END_OF_MASK, "<|mask:0|>") if backend.token_to_id(token) is None
        ]
        if missing:
            raise ValueError(f"{origin} has no {', '.join(missing)}: use the {FILE} that was saved with this model")
        self.end_of_text: int = backend.token_to_id(END_OF_TEXT)
        self.pad: int = backend.token_to_id(PAD)
        self.end_of_mask: int = backend.token_to_id(END_OF_MASK)
        self.vocab_size: int = backend.get_vocab_size()
        self.masks: tuple[int, ...] = tuple(self._mask_ids())

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
            self._backend.save(str(draft))

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
        controls = self.control_ids
        spelled = [self._backend.id_to_token(i) for i in range(self.vocab_size)]
        return tuple(b"" if i in controls else bytes(byte_of[c] for c in token) for i, token in enumerate(spelled))

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of each id, (vocab_size,)."""
        return np.array([len(token) for token in self.token_bytes], np.int32)

    @property
    def control_ids(self) -> frozenset[int]:
        """All ids that text never becomes."""
        return frozenset({self.end_of_text, self.pad, self.end_of_mask, *self.masks})

    def _mask_ids(self) -> Iterator[int]:
        k = 0
        while (mask := self._backend.token_to_id(f"<|mask:{k}|>")) is not None:
            yield mask
            k += 1


def train_tokenizer(plan: TokenizerPlan, texts: Iterable[str]) -> Tokenizer:
    """Trains on `texts`, which the caller has sampled. Deterministic in the texts and their order.

    Raises ValueError for an empty sample, and where the texts have fewer merges than `vocab_size` asks for.
    """
    controls = control_tokens(plan.n_masks)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab_size - len(controls),
        initial_alphabet=list(_byte_alphabet().values()),
        max_token_length=plan.max_token_bytes,
        show_progress=False,
    )
    backend.train_from_iterator(_training_lines(plan, texts, controls), trainer)
    n_learned = backend.get_vocab_size()
    if n_learned == N_BYTES:
        raise ValueError("the sample to train the tokenizer on is empty: the corpus needs at least one document")
    if n_learned != plan.vocab_size - len(controls):
        raise ValueError(
            f"the corpus has merges for {n_learned + len(controls)} ids and the recipe asks for {plan.vocab_size}: "
            "use a larger corpus or a smaller vocab_size"
        )
    leaked = [token for token in controls if backend.token_to_id(token) is not None]
    assert not leaked, f"merges spell {leaked}"
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in controls])
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


def _training_lines(plan: TokenizerPlan, texts: Iterable[str], controls: Sequence[str]) -> Iterator[str]:
    """Texts in pieces that hold no spelling of a control token (a merge could learn it) and no over-long line."""
    for text in texts:
        cleaned = text
        for token in controls:
            cleaned = cleaned.replace(token, "\n")
        lines = cleaned.splitlines(keepends=True)
        yield "".join(line for line in lines if len(line) <= plan.max_line_characters)


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(N_BYTES + n) for n, byte in enumerate(others)}
