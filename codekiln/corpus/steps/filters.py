"""Filters that drop documents: CodeGen's in characters, InCoder's in tokens.

A filter is called with the text of a document and its statistics. It returns None, or the reason to drop the document. It
never edits. A filter with a `limit` and a method `measure` is explained with both by `codekiln corpus explain`. Lines end at
\\n, \\r\\n or \\r, as in Python; a final line end does not begin another line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from codekiln.corpus.steps.step import Draft, Drop, Step


@dataclass(frozen=True)
class TextStats:
    """Counts over a text. A token is a run of letters, digits and underscores, or any other visible character.

    The InCoder paper measures line length in tokens but does not define a token; this definition needs no tokenizer.
    """

    n_characters: int
    n_lines: int
    max_line_characters: int
    mean_line_characters: float
    max_line_tokens: int
    mean_line_tokens: float
    n_word_characters: int
    n_hex_digits: int


Filter = Callable[[str, TextStats], str | None]

_WORD, _SPACE, _HEX = np.uint8(1), np.uint8(2), np.uint8(4)
_NEWLINE, _RETURN = 10, 13


def text_stats(text: str) -> TextStats:
    """Counts over `text`, which is not empty."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds = _character_classes()[codes]
    is_word = (kinds & _WORD) != 0
    begins_token = (kinds & (_WORD | _SPACE)) == 0
    begins_token |= is_word
    begins_token[1:] &= ~(is_word[1:] & is_word[:-1])

    # A line ends at \n, \r\n or a single \r. `ends` are the positions of these, `starts` those after them.
    is_newline, is_return = codes == _NEWLINE, codes == _RETURN
    is_pair = np.append(is_return[:-1] & is_newline[1:], False)  # the \r of \r\n
    ends: npt.NDArray[np.int64] = np.flatnonzero((is_newline & ~np.roll(is_pair, 1)) | is_return)
    starts = np.concatenate(([0], ends + 1 + is_pair[ends]))
    if starts[-1] == len(codes):
        starts = starts[:-1]
    else:
        ends = np.append(ends, len(codes))
    tokens_before = np.concatenate(([0], np.cumsum(begins_token)))
    line_characters, line_tokens = ends - starts, tokens_before[ends] - tokens_before[starts]
    return TextStats(
        n_characters=len(codes),
        n_lines=len(ends),
        max_line_characters=int(line_characters.max()),
        mean_line_characters=float(line_characters.mean()),
        max_line_tokens=int(line_tokens.max()),
        mean_line_tokens=float(line_tokens.mean()),
        n_word_characters=int(is_word.sum()),
        n_hex_digits=int(np.count_nonzero(kinds & _HEX)),
    )


@dataclass(frozen=True)
class MeanLineLength:
    """CodeGen, section 2.2 and appendix: a mean line of `limit` characters or more is dropped."""

    limit: float = 100

    def measure(self, stats: TextStats) -> float:
        return stats.mean_line_characters

    def __call__(self, text: str, stats: TextStats) -> str | None:
        return "mean line too long (characters)" if self.measure(stats) >= self.limit else None


@dataclass(frozen=True)
class MaxLineLength:
    """CodeGen: a line of more than `limit` characters drops its document."""

    limit: int = 1000

    def measure(self, stats: TextStats) -> float:
        return stats.max_line_characters

    def __call__(self, text: str, stats: TextStats) -> str | None:
        return "line too long (characters)" if self.measure(stats) > self.limit else None


@dataclass(frozen=True)
class DigitFraction:
    """CodeGen: more than `limit` of all characters, white space included, decimal or hexadecimal digits."""

    limit: float = 0.9

    def __call__(self, text: str, stats: TextStats) -> str | None:
        return "mostly digits" if self.measure(stats) > self.limit else None

    def measure(self, stats: TextStats) -> float:
        return stats.n_hex_digits / stats.n_characters


@dataclass(frozen=True)
class MaxLineTokens:
    """InCoder, section 3.1: a line of more than `limit` tokens drops its document."""

    limit: int = 3000

    def measure(self, stats: TextStats) -> float:
        return stats.max_line_tokens

    def __call__(self, text: str, stats: TextStats) -> str | None:
        return "line too long (tokens)" if self.measure(stats) > self.limit else None


@dataclass(frozen=True)
class MeanLineTokens:
    """InCoder: a mean line of more than `limit` tokens is dropped."""

    limit: float = 100

    def measure(self, stats: TextStats) -> float:
        return stats.mean_line_tokens

    def __call__(self, text: str, stats: TextStats) -> str | None:
        return "mean line too long (tokens)" if self.measure(stats) > self.limit else None


@dataclass(frozen=True)
class AlphanumericFraction:
    """InCoder: less than `limit` of all characters alphanumeric or underscore."""

    limit: float = 0.4

    def __call__(self, text: str, stats: TextStats) -> str | None:
        return "few letters and digits" if self.measure(stats) < self.limit else None

    def measure(self, stats: TextStats) -> float:
        return stats.n_word_characters / stats.n_characters


@dataclass(frozen=True)
class AutoGenerated:
    """InCoder: text with a phrase of a generator. The paper names the generators; the phrases are Codekiln's."""

    phrases: tuple[str, ...] = (
        "generated by the protocol buffer compiler",
        "generated by django",
        "generated by epydoc",
        "generated by pdoc",
        "created using sphinx",
        "created by sphinx-quickstart",
        "generated by mkdocs",
        'name="generator" content="mkdocs',
        "generated by mathjax",
        "mathjax.hub.config",
    )

    def __call__(self, text: str, stats: TextStats) -> str | None:
        lowered = text.lower()
        return "automatically generated" if any(phrase in lowered for phrase in self.phrases) else None


CODEGEN_FILTERS: tuple[Filter, ...] = (MeanLineLength(), MaxLineLength(), DigitFraction())
INCODER_FILTERS: tuple[Filter, ...] = (MaxLineTokens(), MeanLineTokens(), AlphanumericFraction(), AutoGenerated())


@dataclass(frozen=True, kw_only=True)
class Filters(Step):
    """Drops documents by the first of `filters` that applies, and documents without text. They do not apply to prose."""

    filters: tuple[Filter, ...] = ()

    def check_document(self, draft: Draft) -> Drop | None:
        return first_drop(draft.text, () if draft.file.is_prose else self.filters)


def first_drop(text: str, filters: tuple[Filter, ...]) -> Drop | None:
    """What the first filter says that drops the text, "empty" if it is only white space, or None."""
    if not text.strip():
        return Drop("empty")
    stats = text_stats(text)
    for filter_ in filters:
        if reason := filter_(text, stats):
            measure = getattr(filter_, "measure", None)
            return Drop(reason, measure(stats) if measure is not None else None)
    return None


@lru_cache(maxsize=1)
def _character_classes() -> npt.NDArray[np.uint8]:
    """The class of each Unicode code point, as bits. Computed once, which takes about 0.25 s."""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(0x110000):
        character = chr(code)
        if character.isalnum() or character == "_":
            kinds[code] = _WORD
        elif character.isspace():
            kinds[code] = _SPACE
    for character in "0123456789abcdefABCDEF":
        kinds[ord(character)] |= _HEX
    return kinds
