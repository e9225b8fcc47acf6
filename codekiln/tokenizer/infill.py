"""A document with holes: one layout for training and for prompting.

InCoder's (section 2.1): sentinels stand where text is missing, and after the last part each hole's sentinel, its text and
the end-of-mask token follow. With two holes, A m0 C m1 E m0 B eom m1 D eom. The prompt for a hole is the training layout
up to where the text of that hole begins, so the two cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Layout:
    """Ids, and whether the model is to learn to predict each: all but the sentinels."""

    ids: list[int]
    is_learned: list[bool]


def training_layout(tokenizer: Tokenizer, parts: Sequence[Sequence[int]], holes: Sequence[Sequence[int]]) -> Layout:
    """`parts` are the ids around the holes, one more than `holes`. Raises ValueError for more holes than sentinels."""
    assert len(parts) == len(holes) + 1
    ids = infill_prompt(tokenizer, parts, holes[:0])[:-1] if holes else list(parts[0])
    for k, hole in enumerate(holes):
        ids += [tokenizer.masks[k], *hole, tokenizer.end_of_mask]
    sentinels = set(tokenizer.masks)
    return Layout(ids, [token not in sentinels for token in ids])


def infill_prompt(tokenizer: Tokenizer, parts: Sequence[Sequence[int]], filled: Sequence[Sequence[int]]) -> list[int]:
    """What the model continues to fill the hole after the `filled` ones; its answer ends with the end-of-mask token."""
    n_holes = len(parts) - 1
    if not len(filled) < n_holes:
        raise ValueError(f"{n_holes} holes and {len(filled)} filled: nothing is left to fill")
    if n_holes > len(tokenizer.masks):
        raise ValueError(
            f"{n_holes} holes, and this tokenizer has sentinels for {len(tokenizer.masks)}: fill fewer at once"
        )
    ids = list(parts[0])
    for k, part in enumerate(parts[1:]):
        ids += [tokenizer.masks[k], *part]
    for k, hole in enumerate(filled):
        ids += [tokenizer.masks[k], *hole, tokenizer.end_of_mask]
    return [*ids, tokenizer.masks[len(filled)]]


def n_layout_tokens(n_holes: int) -> int:
    """Ids that the layout adds to a document's own."""
    return 3 * n_holes
