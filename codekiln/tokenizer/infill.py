"""Infilling formats: how a document with holes becomes tokens, in training and in prompts.

A tokenizer has one format or none. It is decided once, when the tokenizer is loaded, and stored with it. A prompt is the
training example up to where the middle begins, so the two cannot differ.

SPM, suffix-prefix-middle, is the format of models trained by Codekiln. The middle directly follows the prefix, so what is
learned left to right transfers (Bavarian et al., arXiv 2207.14255, section 3). Their SPM has no sentinel before the middle;
small models then do not learn to end it.

    <|fim_suffix|> suffix <|fim_prefix|> prefix <|fim_middle|> middle <|endoftext|>

PSM, prefix-suffix-middle, is the format of Qwen2.5-Coder, and with other spellings of StarCoder, StarCoder2, Granite,
DeepSeek-Coder and Code Llama:

    <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>

CausalMask is the format of InCoder (section 2.2). The second mask, after the suffix, is advised by its authors: without it
the model continues the document there.

    prefix <|mask:0|> suffix <|mask:1|> <|mask:0|> middle <|endofmask|>

CodeGen2 is the format of the model of that name (arXiv 2305.02309, section 2.3, and its model cards):

    prefix <mask_1> suffix <|endoftext|> <sep> <mask_1> middle <eom>
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from codekiln.errors import ConfigError, InvalidFileError
from codekiln.tokenizer.special_tokens import (
    CODEGEN2_END_OF_MASK,
    CODEGEN2_MASK,
    CODEGEN2_SEPARATOR,
    END_OF_MASK,
    END_OF_MIDDLE,
    FIM_MIDDLE,
    FIM_PAD,
    FIM_PREFIX,
    FIM_SUFFIX,
    MASK_SENTINELS,
    PSM_SPECIAL_TOKENS,
    PSM_SPELLINGS,
    SPM_SPECIAL_TOKENS,
)

# Ids that a prompt adds to a document with one hole. Training adds the end, and no more than these without it.
N_FIM_SENTINELS = 4
N_SENTINELS_PER_SPAN = 3  # ids that each masked span of InCoder adds


@dataclass(frozen=True)
class TokenizedExample:
    """Ids, and the weight of predicting each in the loss: 0 for sentinels."""

    ids: list[int]
    loss_weights: list[float]


@dataclass(frozen=True, kw_only=True)
class SPM:
    """Suffix, prefix, middle, each after its sentinel."""

    name: ClassVar[str] = "spm"
    begins_with_eos: ClassVar[bool] = True

    prefix_id: int
    suffix_id: int
    middle_id: int
    eos_id: int

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Ids after which the model writes the middle."""
        return [self.suffix_id, *suffix, self.prefix_id, *prefix, self.middle_id]

    def example(
        self,
        prefix: Sequence[int],
        middle: Sequence[int],
        suffix: Sequence[int],
        *,
        is_start: bool = False,
        middle_loss_weight: float = 1.0,
    ) -> TokenizedExample:
        """A document with one hole. The middle and its end weigh `middle_loss_weight`, other text 1.

        If `is_start`, the prefix is the beginning of a document, and an end-of-text token comes first.
        """
        bos = [self.eos_id] if is_start else []
        sentinels = {self.prefix_id, self.suffix_id, self.middle_id}
        return _fim_example(bos, self.prompt(prefix, suffix), [*middle, self.eos_id], sentinels, middle_loss_weight)


@dataclass(frozen=True, kw_only=True)
class PSM:
    """Prefix, suffix, middle, each after its sentinel. `eos_id` ends the middle."""

    name: ClassVar[str] = "psm"
    begins_with_eos: ClassVar[bool] = False

    prefix_id: int
    suffix_id: int
    middle_id: int
    eos_id: int

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Ids after which the model writes the middle."""
        return [self.prefix_id, *prefix, self.suffix_id, *suffix, self.middle_id]

    def example(self, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int]) -> TokenizedExample:
        """A document with one hole."""
        return self._example(self.prompt(prefix, suffix), middle)

    def spm_v2_example(self, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int]) -> TokenizedExample:
        """The same document in SPMv2 of Bavarian et al. (appendix D): mixed with PSM in training, never used in prompts."""
        return self._example([self.prefix_id, self.suffix_id, *suffix, self.middle_id, *prefix], middle)

    def _example(self, prompt: list[int], middle: Sequence[int]) -> TokenizedExample:
        return _fim_example([], prompt, [*middle, self.eos_id], {self.prefix_id, self.suffix_id, self.middle_id}, 1.0)


@dataclass(frozen=True, kw_only=True)
class CausalMask:
    """Masked spans are moved to the end of the document, each after its mask."""

    name: ClassVar[str] = "causal-mask"
    begins_with_eos: ClassVar[bool] = True

    mask_ids: tuple[int, ...]
    end_of_mask_id: int
    eos_id: int

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Ids after which the model writes the middle."""
        first, second = self.mask_ids[:2]
        return [*prefix, first, *suffix, second, first]

    def document_with_holes(self, parts: Sequence[Sequence[int]]) -> list[int]:
        """The parts with a mask in each hole between them, and one more mask at the end.

        Then follow, hole by hole, its mask, which asks for it, and what the model writes.
        """
        return [token for part, mask in zip(parts, self.mask_ids, strict=False) for token in (*part, mask)]

    def example(self, ids: Sequence[int], spans: Sequence[tuple[int, int]], *, is_start: bool) -> TokenizedExample:
        """A document whose spans [start, stop), in order, follow it, each between its mask and the end of mask.

        Masks have loss weight 0, also where they replace a span in the document (InCoder, section 2.1).
        """
        kept, moved, at = list[int](), list[int](), 0
        for k, (start, stop) in enumerate(spans):
            kept += [*ids[at:start], self.mask_ids[k]]
            moved += [self.mask_ids[k], *ids[start:stop], self.end_of_mask_id]
            at = stop
        bos = [self.eos_id] if is_start else []
        found = bos + kept + list(ids[at:]) + moved
        unpredicted = {*self.mask_ids[: len(spans)], *bos}
        return TokenizedExample(found, [float(token not in unpredicted) for token in found])


@dataclass(frozen=True, kw_only=True)
class CodeGen2:
    """The hole is masked, and its text follows the end of the document."""

    name: ClassVar[str] = "codegen2"
    begins_with_eos: ClassVar[bool] = False

    mask_id: int
    separator_id: int
    end_of_mask_id: int
    eos_id: int

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Ids after which the model writes the middle."""
        return [*prefix, self.mask_id, *suffix, self.eos_id, self.separator_id, self.mask_id]

    def example(self, prefix: Sequence[int], middle: Sequence[int], suffix: Sequence[int]) -> TokenizedExample:
        """A document with one hole."""
        sentinels = {self.mask_id, self.separator_id}
        return _fim_example([], self.prompt(prefix, suffix), [*middle, self.end_of_mask_id], sentinels, 1.0)


InfillFormat = SPM | PSM | CausalMask | CodeGen2
RECOGNIZE = "recognize"  # in place of the name of a format: nothing is stored
NAMES = (SPM.name, PSM.name, CausalMask.name, CodeGen2.name)


def find_infill_format(special_tokens: Mapping[str, int], eos_id: int, declared: str | None) -> InfillFormat | None:
    """The format that was stored with a tokenizer, or for `RECOGNIZE` the one that its special tokens belong to.

    None means that it has none. Raises InvalidFileError if the format is unknown or its tokens are missing, and if nothing is
    stored and the tokens fit more than one format.
    """
    if declared == RECOGNIZE:
        declared = _recognize(special_tokens)
    try:
        match declared:
            case None:
                return None
            case "spm":
                prefix, suffix, middle = (special_tokens[token] for token in (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE))
                return SPM(prefix_id=prefix, suffix_id=suffix, middle_id=middle, eos_id=eos_id)
            case "psm":
                spelling = _psm_spelling(special_tokens) or PSM_SPELLINGS[0]
                prefix, suffix, middle = (special_tokens[token] for token in spelling)
                end = special_tokens.get(END_OF_MIDDLE, eos_id)
                return PSM(prefix_id=prefix, suffix_id=suffix, middle_id=middle, eos_id=end)
            case "causal-mask":
                masks = tuple(special_tokens[token] for token in MASK_SENTINELS if token in special_tokens)
                return CausalMask(mask_ids=masks, end_of_mask_id=special_tokens[END_OF_MASK], eos_id=eos_id)
            case "codegen2":
                mask, separator, end = (special_tokens[token] for token in _CODEGEN2_TOKENS)
                return CodeGen2(mask_id=mask, separator_id=separator, end_of_mask_id=end, eos_id=eos_id)
            case _:
                raise InvalidFileError(
                    f"the tokenizer's infill_format is {declared!r}: choose one of {', '.join(NAMES)} or null"
                )
    except KeyError as missing:
        raise InvalidFileError(f"the tokenizer's infill_format is {declared}, but it has no token {missing}") from None


def _recognize(special_tokens: Mapping[str, int]) -> str | None:
    """The name of the format whose tokens a tokenizer has. Other tokens, which fine-tuning may add, do not matter."""
    if special_tokens.keys() >= set(_CODEGEN2_TOKENS):
        return CodeGen2.name  # CodeGen2.5 also has StarCoder's tokens, and was not trained with them
    has_masks = END_OF_MASK in special_tokens
    if FIM_MIDDLE not in special_tokens:
        return CausalMask.name if has_masks else None if _psm_spelling(special_tokens) is None else PSM.name
    is_psm = FIM_PAD in special_tokens  # only tokenizers with PSM prompts have it
    is_spm = not is_psm and [token for token in special_tokens if token in SPM_SPECIAL_TOKENS] == [*SPM_SPECIAL_TOKENS]
    if has_masks or not (is_psm or is_spm):
        fit = "two infilling formats" if has_masks else "no known infilling format"
        raise InvalidFileError(
            f"the tokenizer has {FIM_MIDDLE}, but its tokens fit {fit}: "
            f'set "infill_format" in its tokenizer_config.json to one of {", ".join(NAMES)}, or to null'
        )
    return PSM.name if is_psm else SPM.name


_CODEGEN2_TOKENS = (CODEGEN2_MASK, CODEGEN2_SEPARATOR, CODEGEN2_END_OF_MASK)


def _psm_spelling(special_tokens: Mapping[str, int]) -> tuple[str, str, str] | None:
    """The prefix, suffix and middle tokens that a tokenizer has; None if it has none."""
    return next((spelling for spelling in PSM_SPELLINGS if special_tokens.keys() >= set(spelling)), None)


def require_spm(infill_format: InfillFormat | None) -> SPM:
    """Raises ConfigError if a tokenizer's format is another one."""
    if not isinstance(infill_format, SPM):
        raise ConfigError(_needs("suffix-prefix-middle (spm)", infill_format, SPM_SPECIAL_TOKENS[2:]))
    return infill_format


def require_fim(infill_format: InfillFormat | None) -> PSM | CodeGen2:
    """Raises ConfigError if a tokenizer's format is another one."""
    if not isinstance(infill_format, PSM | CodeGen2):
        raise ConfigError(_needs("prefix-suffix-middle (psm) or codegen2", infill_format, PSM_SPECIAL_TOKENS[1:]))
    return infill_format


def require_causal_mask(infill_format: InfillFormat | None) -> CausalMask:
    """Raises ConfigError if a tokenizer's format is another one."""
    if not isinstance(infill_format, CausalMask):
        raise ConfigError(_needs("causal masking", infill_format, (MASK_SENTINELS[0], END_OF_MASK)))
    return infill_format


def _needs(wanted: str, found: InfillFormat | None, tokens: Sequence[str]) -> str:
    name = "none" if found is None else found.name
    return (
        f"this objective trains {wanted}, and the infilling format of the tokenizer is {name}: "
        f"use a tokenizer with {', '.join(tokens)}, or another objective"
    )


def _fim_example(
    bos: list[int], prompt: list[int], answer: list[int], sentinels: set[int], answer_weight: float
) -> TokenizedExample:
    weights = [0.0] * len(bos) + [float(token not in sentinels) for token in prompt] + [answer_weight] * len(answer)
    return TokenizedExample(bos + prompt + answer, weights)


def expand_to_words(text: bytes, start: int, stop: int) -> tuple[int, int]:
    """The hole [start, stop) of UTF-8 text, extended until it cuts no word. Bytes beyond ASCII count as letters."""
    while start > 0 and _is_inside_word(text[start - 1 : start + 1]):
        start -= 1
    while stop < len(text) and _is_inside_word(text[stop - 1 : stop + 1]):
        stop += 1
    return start, stop


def boundary_before(data: bytes, at: int) -> int:
    """The nearest position at or before `at` that is inside neither a UTF-8 character nor a "\\r\\n"."""
    while 0 < at < len(data) and (data[at] & 0xC0 == 0x80 or data[at - 1 : at + 1] == b"\r\n"):
        at -= 1
    return at


def _is_inside_word(pair: bytes) -> bool:
    """Whether both of two adjacent bytes belong to one word."""
    return all(byte >= 0x80 or byte == ord("_") or chr(byte).isalnum() for byte in pair)
