"""A document with a hole: one layout for training and for prompting, which the tokenizer's control tokens decide.

Ours is suffix, prefix, middle (SPM; Bavarian et al., arXiv 2207.14255, section 3): what comes after the hole is told first,
so the middle stands behind the prefix, one sentinel apart, and what a model learns left to right serves it:

    <|fim_suffix|> right <|fim_prefix|> left <|fim_middle|> middle <|endoftext|>

That paper's second form of SPM has no sentinel before the middle. Small models then never learn to end it.

The prompt is the training layout up to where the middle begins, so the two cannot differ.

Prompts are made for two others. InCoder's is left, mask, right, and the masked text last (section 2.2; the second mask after
the right context as its authors advise, so that the model does not go on with the document there), Qwen2.5-Coder's (PSM) is
told from ours by its tokenizer, which has no `<|pad_id|>`:

    left <|mask:0|> right <|mask:1|> <|mask:0|> middle <|endofmask|>
    <|fim_prefix|> left <|fim_suffix|> right <|fim_middle|> middle <|endoftext|>
"""

from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.tokenizer.bpe import FIM_MIDDLE, PAD, Tokenizer

MASK_SENTINELS = tuple(f"<|mask:{k}|>" for k in range(256))
END_OF_MASK = "<|endofmask|>"
N_FIM_SENTINELS = 4  # ids that a layout with one hole adds to a document's own
N_SENTINELS_PER_SPAN = 3  # ids that each of InCoder's spans adds


@dataclass(frozen=True)
class TokenizedExample:
    """Ids, and the weight of predicting each in the loss: 0 for sentinels."""

    ids: list[int]
    loss_weights: list[float]


def spm_example(
    tokenizer: Tokenizer,
    prefix: Sequence[int],
    middle: Sequence[int],
    suffix: Sequence[int],
    *,
    is_start: bool = False,
    middle_loss_weight: float = 1.0,
) -> TokenizedExample:
    """A document in our layout whose `middle` is the hole; the middle and its end weigh `middle_loss_weight`, other text 1.

    Where `is_start`, the document begins with it, and what stands before a document comes first.
    """
    if not is_ours(tokenizer):
        raise ValueError(
            "this tokenizer is not of our layout: train with one that has the control tokens of SPM_SPECIAL_TOKENS"
        )
    return _example(
        tokenizer, infill_prompt(tokenizer, prefix, suffix), middle, is_start=is_start, weight=middle_loss_weight
    )


def psm_example(
    tokenizer: Tokenizer, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int]
) -> TokenizedExample:
    """A document told prefix, suffix, middle. Raises ValueError for a tokenizer whose prompts are told otherwise."""
    _require_psm(tokenizer)
    return _example(tokenizer, infill_prompt(tokenizer, prefix, suffix), middle)


def spm_v2_example(
    tokenizer: Tokenizer, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int]
) -> TokenizedExample:
    """The same told suffix, prefix, middle, in the second form of the paper, which shares PSM's sentinels (appendix D).

    Raises ValueError as `psm_example` does, for it is learned beside PSM and never prompted.
    """
    _require_psm(tokenizer)
    prompt = [tokenizer.fim_prefix, tokenizer.fim_suffix, *suffix, tokenizer.fim_middle, *prefix]
    return _example(tokenizer, prompt, middle)


def causal_mask_example(
    tokenizer: Tokenizer, ids: Sequence[int], spans: Sequence[tuple[int, int]], *, is_start: bool
) -> TokenizedExample:
    """A document whose spans [start, stop), in order, stand behind it, each between its mask and the end of mask.

    The masks weigh 0, also where they stand in the document (InCoder, section 2.1).
    """
    masks = [tokenizer.special_id(MASK_SENTINELS[k]) for k in range(len(spans))]
    end = tokenizer.special_id(END_OF_MASK)
    kept, moved, at = list[int](), list[int](), 0
    for mask, (start, stop) in zip(masks, spans, strict=True):
        kept += [*ids[at:start], mask]
        moved += [mask, *ids[start:stop], end]
        at = stop
    before = bos_ids(tokenizer) if is_start else []
    found = before + kept + list(ids[at:]) + moved
    unpredicted = {*masks, *before}
    return TokenizedExample(found, [float(token not in unpredicted) for token in found])


def _require_psm(tokenizer: Tokenizer) -> None:
    if is_ours(tokenizer) or FIM_MIDDLE not in tokenizer.special_tokens:
        raise ValueError(
            "this tokenizer's prompts are not PSM: train with one that has the control tokens of PSM_SPECIAL_TOKENS"
        )


def _example(
    tokenizer: Tokenizer, prompt: list[int], middle: Sequence[int], *, is_start: bool = False, weight: float = 1.0
) -> TokenizedExample:
    """A prompt and its answer."""
    before = bos_ids(tokenizer) if is_start else []
    answer = [*middle, tokenizer.eos_id]
    sentinels = {tokenizer.fim_prefix, tokenizer.fim_suffix, tokenizer.fim_middle}
    weights = [0.0] * len(before) + [float(token not in sentinels) for token in prompt] + [weight] * len(answer)
    return TokenizedExample(before + prompt + answer, weights)


def infill_prompt(tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
    """What the model continues with the middle; its answer ends with one of `stop_token_ids`.

    Raises ValueError for a tokenizer without control tokens for holes: its models complete only.
    """
    if is_ours(tokenizer):
        return [tokenizer.fim_suffix, *suffix, tokenizer.fim_prefix, *prefix, tokenizer.fim_middle]
    if FIM_MIDDLE in tokenizer.special_tokens:
        return [tokenizer.fim_prefix, *prefix, tokenizer.fim_suffix, *suffix, tokenizer.fim_middle]
    if END_OF_MASK in tokenizer.special_tokens:
        first, second = (tokenizer.special_id(mask) for mask in MASK_SENTINELS[:2])
        return [*prefix, first, *suffix, second, first]
    raise ValueError("this model cannot infill: its tokenizer has no control tokens for holes (CodeGen's has none)")


def stop_token_ids_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer."""
    known = {tokenizer.special_tokens[token] for token in _STOP_TOKENS if token in tokenizer.special_tokens}
    return frozenset({tokenizer.eos_id} | known)


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """What stands before a document: in our layout and InCoder's the end of the text before it, in Llama's its start."""
    if tokenizer.start_id is not None:
        return [tokenizer.start_id]
    return [tokenizer.eos_id] if is_ours(tokenizer) or END_OF_MASK in tokenizer.special_tokens else []


def is_ours(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer's documents with holes are told in our layout."""
    return tokenizer.special_tokens.keys() >= {FIM_MIDDLE, PAD}


# Beside the end of the text; the last three are Qwen2.5-Coder's.
_STOP_TOKENS = (END_OF_MASK, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")


def expand_to_words(text: bytes, start: int, stop: int) -> tuple[int, int]:
    """The hole [start, stop) of a text in UTF-8, grown until it cuts no word. Bytes beyond ASCII count as letters."""
    while start > 0 and _is_inside_word(text[start - 1 : start + 1]):
        start -= 1
    while stop < len(text) and _is_inside_word(text[stop - 1 : stop + 1]):
        stop += 1
    return start, stop


def _is_inside_word(pair: bytes) -> bool:
    """Whether a word goes on between two bytes."""
    return all(byte >= 0x80 or byte == ord("_") or chr(byte).isalnum() for byte in pair)
