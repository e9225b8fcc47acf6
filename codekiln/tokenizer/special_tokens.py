"""Names of special tokens, and the sets of them that trained tokenizers get."""

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
# Spelled as in Qwen2.5-Coder, so that other servers find them by name.
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"
# InCoder's: each mask replaces a span, and the end of mask ends the span's text.
MASK_SENTINELS = tuple(f"<|mask:{k}|>" for k in range(256))
END_OF_MASK = "<|endofmask|>"

# Tokens that end a document in released tokenizers, and those that begin one where that is another token
# (Llama 3, Llama 2, DeepSeek).
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>")
START_TOKENS = ("<|begin_of_text|>", "<s>", "<｜begin▁of▁sentence｜>")
# Tokens that end an answer, in addition to the end of the text. The last three are Qwen2.5-Coder's.
STOP_TOKENS = (END_OF_MASK, FIM_PAD, "<|repo_name|>", "<|file_sep|>")

# Sets for training. The ids follow the merges in this order.
SPM_SPECIAL_TOKENS = (END_OF_TEXT, PAD, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
# Those of Qwen2.5-Coder, whose prompts are prefix, suffix, middle.
PSM_SPECIAL_TOKENS = (END_OF_TEXT, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD)
# InCoder, section 2.1 and the released vocabulary.
INCODER_SPECIAL_TOKENS = (END_OF_TEXT, "<pad>", *MASK_SENTINELS, END_OF_MASK)
