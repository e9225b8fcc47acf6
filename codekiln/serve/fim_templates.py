"""Infilling templates of other models, spelled in a prompt.

Some clients choose a template by the name of the model, and send its special tokens as text. Each template is in the model
card or the paper of its family. A prompt is only recognized if each of its sentinels is there once, so that code about
templates is rarely taken for one.
"""

from dataclasses import dataclass

from codekiln.generate.complete import InfillRequest


@dataclass(frozen=True)
class _Template:
    """The sentinels of a template, in their order. Text before the first one, such as other files, precedes the prefix."""

    first: str
    second: str
    last: str = ""
    is_suffix_first: bool = False

    def find(self, prompt: str) -> InfillRequest | None:
        """The text around the hole; None if the prompt is not of this template."""
        if any(prompt.count(sentinel) != 1 for sentinel in (self.first, self.second, self.last) if sentinel):
            return None
        before, _, rest = prompt.partition(self.first)
        one, _, rest = rest.partition(self.second)
        other, found, middle = rest.partition(self.last) if self.last else (rest, "-", "")
        if not found:
            return None  # in another order
        prefix, suffix = (other, one) if self.is_suffix_first else (one, other)
        return InfillRequest(before + prefix + middle, suffix)


TEMPLATES = (
    _Template("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    _Template("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StarCoder2, Stable Code
    _Template("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    _Template("<PRE> ", " <SUF>", " <MID>"),  # Code Llama
    _Template("[SUFFIX]", "[PREFIX]", is_suffix_first=True),  # Codestral
)
INCODER_MIDDLE = "<|mask:1|><|mask:0|>"


def find_hole(prompt: str) -> InfillRequest | None:
    """The text around the hole of a prompt in one of the templates; None if it is in none of them."""
    for template in TEMPLATES:
        if (found := template.find(prompt)) is not None:
            return found
    return _find_incoder(prompt)


def _find_incoder(prompt: str) -> InfillRequest | None:
    """InCoder's template has a sentinel twice: prefix <|mask:0|> suffix <|mask:1|><|mask:0|>."""
    body, found, middle = prompt.partition(INCODER_MIDDLE)
    prefix, mask, suffix = body.partition("<|mask:0|>")
    if not found or not mask or "<|mask:" in suffix + middle:
        return None
    return InfillRequest(prefix + middle, suffix)
