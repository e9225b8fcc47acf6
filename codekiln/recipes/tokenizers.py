"""Tokenizers that are trained apart from a model's recipe."""

from codekiln.tokenizer.training import INCODER_SPECIAL_TOKENS, LINE_SPLIT_PATTERN, TokenizerConfig

TOKENIZERS = {
    # Ours, for models of about 1 B parameters and more (docs/log.md).
    "kiln": TokenizerConfig(vocab_size=32_768, memory_bytes=5_000_000_000),
    # InCoder, section 3.1: byte-level, no token across a newline; its released vocabulary has 50,518 ids.
    "incoder": TokenizerConfig(
        vocab_size=50_518, pattern=LINE_SPLIT_PATTERN, special_tokens=INCODER_SPECIAL_TOKENS, memory_bytes=6_250_000_000
    ),
}
