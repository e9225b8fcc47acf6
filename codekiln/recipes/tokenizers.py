"""Tokenizers that are trained apart from a model's recipe."""

from codekiln.tokenizer.training import INCODER_CONTROL, LINES, TokenizerPlan

TOKENIZERS = {
    # Ours, for models of about 1 B parameters and more (docs/log.md).
    "kiln": TokenizerPlan(vocab_size=32_768, memory_bytes=5_000_000_000),
    # InCoder, section 3.1: byte-level, no token across a newline; its released vocabulary has 50,518 ids.
    "incoder": TokenizerPlan(vocab_size=50_518, pattern=LINES, control=INCODER_CONTROL, memory_bytes=6_250_000_000),
}
