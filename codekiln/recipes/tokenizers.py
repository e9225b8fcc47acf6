"""Tokenizers that can be trained without a recipe."""

from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS

# For models of about 1B parameters and more (docs/log.md).
KILN_TOKENIZER = TokenizerConfig(vocab_size=32_768, memory_bytes=5_000_000_000)
# InCoder, section 3.1: byte-level, no token across a newline. The released vocabulary has 50,518 ids.
INCODER_TOKENIZER = TokenizerConfig(
    vocab_size=50_518,
    pattern=LINE_SPLIT_PATTERN,
    special_tokens=INCODER_SPECIAL_TOKENS,
    memory_bytes=6_250_000_000,
)
TRAINABLE = {"kiln": KILN_TOKENIZER, "incoder": INCODER_TOKENIZER}
