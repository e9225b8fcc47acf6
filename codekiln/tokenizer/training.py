"""Training a byte-level BPE on a sample of a corpus, within a bound on memory."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from codekiln.progress import ProgressTask, is_terminal, progress_bar
from codekiln.tokenizer.bpe import (
    END_OF_TEXT,
    FIM_MIDDLE,
    FIM_PREFIX,
    FIM_SUFFIX,
    N_BYTES,
    PAD,
    Tokenizer,
    bytes_to_unicode,
)
from codekiln.tokenizer.infill import END_OF_MASK, MASK_SENTINELS

# Where text is split before merges are learned or applied; no token reaches across.
# Words with the sign or space before them, single digits, runs of signs with the newlines behind them: Qwen2.5's rule, the
# best of those measured for small models (docs/log.md), and one that llama.cpp has.
WORD_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Whole lines, so that tokens cross spaces (InCoder, section 3.1), in pieces of bounded length, so that a line of any
# length takes linear time.
LINE_SPLIT_PATTERN = r"\n{1,64}|[^\n]{1,1024}"

# Control tokens, whose ids follow the merges in this order.
SPM_SPECIAL_TOKENS = (END_OF_TEXT, PAD, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
# Those of Qwen2.5-Coder, whose prompts are prefix, suffix, middle.
PSM_SPECIAL_TOKENS = (END_OF_TEXT, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, "<|fim_pad|>")
# InCoder's (section 2.1 and the released vocabulary).
INCODER_SPECIAL_TOKENS = (END_OF_TEXT, "<pad>", *MASK_SENTINELS, END_OF_MASK)

# What training holds for each byte of text at most: 90 of code, 210 where pieces are lines of random signs, nearly all
# distinct, and merges many (tests/test_tokenizer.py).
BYTES_HELD_PER_BYTE = 250


@dataclass(frozen=True)
class TokenizerConfig:
    """What to train. `vocab_size` counts all ids: bytes, merges and control tokens."""

    vocab_size: int
    pattern: str = WORD_SPLIT_PATTERN
    special_tokens: tuple[str, ...] = SPM_SPECIAL_TOKENS
    memory_bytes: int = 2_000_000_000
    max_token_bytes: int = 32  # banners and licence boxes would make tokens of 200 bytes
    max_line_characters: int = 300  # lines over that are data, not code
    seed: int = 0

    def __post_init__(self) -> None:
        needed = N_BYTES + len(self.special_tokens)
        if self.vocab_size < needed:
            raise ValueError(
                f"vocab_size is {self.vocab_size}: "
                f"{N_BYTES} bytes and {len(self.special_tokens)} control tokens need at least {needed}"
            )

    @property
    def sample_bytes(self) -> int:
        """How much text training takes, so that it stays within `memory_bytes`."""
        return self.memory_bytes // BYTES_HELD_PER_BYTE


def train_tokenizer(config: TokenizerConfig, texts: Sequence[str]) -> Tokenizer:
    """Trains on `texts`, which the caller has sampled. Deterministic in the texts and their order.

    Raises ValueError for an empty sample, and where the texts have fewer merges than `vocab_size` asks for.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    n_control = len(config.special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - n_control,
        initial_alphabet=list(bytes_to_unicode().values()),
        max_token_length=config.max_token_bytes,
        show_progress=is_terminal(),  # the library draws its own bars, of reading, counting and merging
    )
    with nullcontext() if is_terminal() else progress_bar("Tokenizer", len(texts)) as progress:
        backend.train_from_iterator(_training_text(config, texts, progress), trainer, length=len(texts))
    n_learned = backend.get_vocab_size()
    if not any(_training_text(config, texts, None)):
        raise ValueError(
            "the sample to train the tokenizer on is empty: the corpus needs at least one document with lines of at most "
            f"{config.max_line_characters} characters"
        )
    if n_learned != config.vocab_size - n_control:
        raise ValueError(
            f"the corpus has merges for {n_learned + n_control} ids and the recipe asks for {config.vocab_size}: "
            "use a larger corpus or a smaller vocab_size"
        )
    leaked = [token for token in config.special_tokens if backend.token_to_id(token) is not None]
    assert not leaked, f"merges spell {leaked}"
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in config.special_tokens])
    return Tokenizer(json.loads(backend.to_str()), origin="the trained tokenizer")


def _training_text(config: TokenizerConfig, texts: Sequence[str], progress: ProgressTask | None) -> Iterator[str]:
    """Texts in pieces that hold no spelling of a control token (a merge could learn it) and no over-long line."""
    spelled = re.compile("|".join(map(re.escape, config.special_tokens)))
    for text in texts:
        lines = spelled.sub("\n", text).splitlines(keepends=True)
        yield "".join(line for line in lines if len(line) <= config.max_line_characters)
        if progress is not None:
            progress.advance()
