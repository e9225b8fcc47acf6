"""Rules that cut a generated text to an answer, as the official code of CodeGen and InCoder does.

The text of special tokens is not part of a generated text. Every rule has the same answer for a text and for the same text with
more after the point where it was cut.
"""

import re
from collections.abc import Sequence
from typing import Literal, assert_never

CutRule = Literal["codegen", "incoder", "codex"]
"""
codegen  `truncate` of CodeGen's sample.py
incoder  the four stop strings of InCoder's he.py, the most that the API of Codex took
codex    those and `print` (Chen et al., section 2.1)
"""
# Section 2.1 of Chen et al. has them all. InCoder's he.py has no "\nprint".
INCODER_STOP = ("\nclass", "\ndef", "\n#", "\nif")
CODEX_STOP = (*INCODER_STOP, "\nprint")
MBPP_STOP = ("\nassert", "\nclass", "\nif", '\n"""', "\nprint", "[DONE]")  # InCoder's mbpp.py
CODEGEN_STOP = (
    "<|endoftext|>",
    "\n\n\n",
)  # of its rules, those after which the answer needs no character of the string
TRIPLE_QUOTE = '"""'
_CODEGEN_ENDS = re.compile(r"""^\#|<\|endoftext\|>|^'''|^\"{3}|\n\n\n""", re.MULTILINE)
_PRINT, _DEF = re.compile(r"^print", re.MULTILINE), re.compile(r"^def", re.MULTILINE)
_NAME = re.compile(r"[^\W\d]\w*")


def cut(text: str, rule: CutRule) -> str:
    """The answer to a prompt with the beginning of a function."""
    match rule:
        case "codegen":
            return cut_as_codegen(text)
        case "incoder":
            return cut_before(text, INCODER_STOP)
        case "codex":
            return cut_before(text, CODEX_STOP)
        case _:
            assert_never(rule)


def stop_strings(rule: CutRule) -> tuple[str, ...]:
    """Strings before which a text can be cut without changing `cut`."""
    match rule:
        case "codegen":
            return CODEGEN_STOP
        case "incoder":
            return INCODER_STOP
        case "codex":
            return CODEX_STOP
        case _:
            assert_never(rule)


def cut_before(text: str, stop: Sequence[str]) -> str:
    """The text before the first of some strings."""
    return text[: min((at for string in stop if (at := text.find(string)) != -1), default=len(text))]


def cut_as_codegen(text: str) -> str:
    """The text before the second line that begins with `print`, then before the second one with `def`, then before the first
    comment or triple quote at the beginning of a line, `<|endoftext|>`, or two blank lines."""
    for pattern in (_PRINT, _DEF):
        starts = [match.start() for match in pattern.finditer(text)]
        text = text[: starts[1]] if len(starts) > 1 else text
    return cut_at_end_mark(text)


def cut_at_end_mark(text: str) -> str:
    """The last part of `cut_as_codegen`."""
    found = _CODEGEN_ENDS.search(text)
    return text if found is None else text[: found.start()]


def count_lines(text: str) -> int:
    """Lines of a text without the line ends around it, at least 1."""
    return len(text.strip("\n").split("\n"))


def first_lines(text: str, n: int) -> str:
    """The first `n` lines after leading line ends, without a line end after them (InCoder's `truncate_num_lines`)."""
    return "\n".join(text.strip("\n").split("\n")[:n])


def has_lines(text: str, n: int) -> bool:
    """Whether `first_lines` cannot change if text is added."""
    lines = text.strip("\n").split("\n")
    return len(lines) > n or (len(lines) == n and bool(lines[-1]) and text.endswith("\n"))


def docstring_line(text: str) -> str:
    """The first line of a docstring, without white space around it: up to triple quotes, then one line."""
    return first_lines(cut_before(text.strip(), (TRIPLE_QUOTE,)).strip(), 1).strip()


def has_docstring_line(text: str) -> bool:
    """Whether `docstring_line` cannot change if text is added."""
    begun = text.lstrip()
    return "\n" in begun or TRIPLE_QUOTE in begun


def leading_name(text: str) -> str:
    """The identifier at the beginning of a text, "" if there is none."""
    found = _NAME.match(text)
    return "" if found is None else found.group()
