"""What tokenizer is trained. Needs no tokenizer library."""

from dataclasses import dataclass

from codekiln.errors import ConfigError
from codekiln.tokenizer.special_tokens import SPM_SPECIAL_TOKENS

N_BYTES = 256
# Where text is split before merges are learned or applied; no token reaches across.
# Words with the sign or space before them, single digits, runs of signs with the newlines after them: the rule of Qwen2.5.
# None of the rules measured for small models is clearly better (docs/log.md), and llama.cpp supports it.
WORD_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GPT-2's rule, which CodeGen has (section 2.2): words with the space before them, runs of digits, runs of signs.
GPT2_SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Whole lines, so that tokens cross spaces (InCoder, section 3.1). Their length is limited, so that long lines take linear
# time.
LINE_SPLIT_PATTERN = r"\n{1,64}|[^\n]{1,1024}"

# Memory of training per byte of text: 90 bytes for code; 210 for lines of random signs with many merges, the worst case
# that was found (tests/test_tokenizer.py).
TRAINING_BYTES_PER_BYTE = 250


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What tokenizer is trained. `vocab_size` counts all ids: bytes, merges and special tokens."""

    vocab_size: int
    pattern: str = WORD_SPLIT_PATTERN
    special_tokens: tuple[str, ...] = SPM_SPECIAL_TOKENS
    memory_bytes: int = 2_000_000_000
    max_token_bytes: int = 32  # banners and license headers would become tokens of 200 bytes
    max_line_characters: int = 300  # longer lines are data, not code
    seed: int = 0

    def __post_init__(self) -> None:
        needed = N_BYTES + len(self.special_tokens)
        if self.vocab_size < needed:
            raise ConfigError(
                f"tokenizer.vocab_size is {self.vocab_size}: "
                f"{N_BYTES} bytes and {len(self.special_tokens)} special tokens need at least {needed}"
            )

    @property
    def sample_bytes(self) -> int:
        """Bytes of text to train on, so that training stays within `memory_bytes`."""
        return self.memory_bytes // TRAINING_BYTES_PER_BYTE
