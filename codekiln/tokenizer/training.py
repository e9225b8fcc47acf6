"""Trains a byte-level BPE on a sample of a corpus, within a memory limit."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from codekiln.errors import ConfigError
from codekiln.progress import ProgressTask, is_terminal, progress_bar
from codekiln.tokenizer.bpe import Tokenizer, bytes_to_unicode
from codekiln.tokenizer.config import TokenizerConfig


def train_tokenizer(config: TokenizerConfig, texts: Sequence[str]) -> Tokenizer:
    """Trains on `texts`, a sample that the caller made. The result depends on the texts and their order only.

    Raises ConfigError for an empty sample, and if the texts have fewer merges than `vocab_size` needs.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    n_special = len(config.special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - n_special,
        initial_alphabet=list(bytes_to_unicode().values()),
        max_token_length=config.max_token_bytes,
        show_progress=is_terminal(),  # the library draws bars of its own
    )
    with nullcontext() if is_terminal() else progress_bar("Tokenizer", len(texts)) as progress:
        backend.train_from_iterator(_training_text(config, texts, progress), trainer, length=len(texts))
    n_learned = backend.get_vocab_size()
    if not any(_training_text(config, texts, None)):
        raise ConfigError(
            "the sample to train the tokenizer on is empty: the corpus needs at least one document with lines of at most "
            f"{config.max_line_characters} characters"
        )
    if n_learned != config.vocab_size - n_special:
        raise ConfigError(
            f"corpus too small: only {n_learned + n_special:,} of {config.vocab_size:,} tokens could be learned. "
            "Use a larger corpus or a smaller vocab_size"
        )
    leaked = [token for token in config.special_tokens if backend.token_to_id(token) is not None]
    assert not leaked, f"merges spell {leaked}"
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in config.special_tokens])
    return Tokenizer(json.loads(backend.to_str()), origin="the trained tokenizer")


def _training_text(config: TokenizerConfig, texts: Sequence[str], progress: ProgressTask | None) -> Iterator[str]:
    """Texts without spellings of special tokens, which a merge could learn, and without lines that are too long."""
    spelled = re.compile("|".join(map(re.escape, config.special_tokens)))
    for text in texts:
        lines = spelled.sub("\n", text).splitlines(keepends=True)
        yield "".join(line for line in lines if len(line) <= config.max_line_characters)
        if progress is not None:
            progress.advance()
