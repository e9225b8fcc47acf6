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
# The prefix, suffix and middle tokens of released models with prompts in the order prefix, suffix, middle.
PSM_SPELLINGS = (
    (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE),  # Qwen2.5-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder2, Granite
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
END_OF_MIDDLE = "▁<EOT>"  # Code Llama's end of a middle. In other models it is the end of the text.
# CodeGen2's: the mask replaces the hole, the separator follows the document, and the end of mask ends the middle.
CODEGEN2_MASK, CODEGEN2_SEPARATOR, CODEGEN2_END_OF_MASK = "<mask_1>", "<sep>", "<eom>"
# The tokens before the name of a repository and before a file of it: Qwen2.5-Coder's, StarCoder2's, StarCoder's.
QWEN_REPOSITORY = ("<|repo_name|>", "<|file_sep|>")
STARCODER2_REPOSITORY = ("<repo_name>", "<file_sep>")
STARCODER_REPOSITORY = ("<reponame>", "<filename>")
# Tokens that end an answer, in addition to the end of the text. The later ones begin another file or repository
# (Qwen2.5-Coder, StarCoder2).
STOP_TOKENS = (
    *(END_OF_MASK, END_OF_MIDDLE, CODEGEN2_END_OF_MASK, FIM_PAD, "<fim_pad>"),
    *(*QWEN_REPOSITORY, *STARCODER2_REPOSITORY),
)

# Sets for training. The ids follow the merges in this order.
GPT2_SPECIAL_TOKENS = (END_OF_TEXT,)
SPM_SPECIAL_TOKENS = (END_OF_TEXT, PAD, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
# Those of Qwen2.5-Coder, whose prompts are prefix, suffix, middle.
PSM_SPECIAL_TOKENS = (END_OF_TEXT, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD)
# InCoder, section 2.1 and the released vocabulary.
INCODER_SPECIAL_TOKENS = (END_OF_TEXT, "<pad>", *MASK_SENTINELS, END_OF_MASK)
