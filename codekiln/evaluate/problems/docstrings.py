"""Docstring generation (InCoder, section 4.3): the first line of a docstring, given the function around it.

The prompt is that of InCoder's code: the docstring's own quotes become triple double quotes, as in most code.
"""

import re
from collections.abc import Sequence
from typing import ClassVar

from codekiln.errors import InvalidFileError
from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.bleu import sentence_bleu
from codekiln.evaluate.problems.annotations import AnnotationProblem
from codekiln.evaluate.problems.truncation import TRIPLE_QUOTE, docstring_line, has_docstring_line

MAX_NEW_TOKENS = 450  # InCoder's default
_QUOTES = (TRIPLE_QUOTE, "'''")
_ONE_QUOTE_AT_END = {quote: re.compile(rf"""[^'"]{quote}\s*$""") for quote in ("'", '"')}
_TRIPLE_QUOTE_AT_START = re.compile(r"""^\s*('''|\"{3})""")
_QUOTE_ON_FIRST_LINE = re.compile(r"""^\s*['"]\s*\n""")


class DocstringProblem(AnnotationProblem):
    """The text of a docstring between its quotes."""

    stop: ClassVar[tuple[str, ...]] = (TRIPLE_QUOTE,)
    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        return docstring_line(text)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        return has_docstring_line(text)

    def text_scores(self, answer: str) -> dict[str, float]:
        return {"bleu": sentence_bleu(self.reference, answer)}


def docstrings(rows: Sequence[Row], file_end: str) -> list[DocstringProblem]:
    """One problem per row of CodeXGLUE's code-to-text. `file_end` ends each suffix."""
    return [
        docstring_problem(
            f"docstring/{number}",
            row.text("original_string"),
            row.text("docstring"),
            joined_tokens(row.texts("docstring_tokens")),
            file_end,
            row.where,
        )
        for number, row in enumerate(rows)
    ]


def docstring_problem(
    task_id: str, code: str, docstring: str, reference: str, file_end: str, where: str
) -> DocstringProblem:
    """The problem of one function. Raises InvalidFileError that names `where` if the docstring is not in the code."""
    before, found, after = code.partition(docstring)
    if not docstring or not found:
        raise InvalidFileError(f"{where}: docstring is not a part of original_string")
    prompt, suffix = standardize_quotes(before, after)
    return DocstringProblem(task_id=task_id, prompt=prompt, suffix=suffix + file_end, reference=reference)


def joined_tokens(tokens: Sequence[str]) -> str:
    """The reference of CodeXGLUE: the tokens with one space between them."""
    return " ".join(" ".join(tokens).replace("\n", "").split())


def standardize_quotes(before: str, after: str) -> tuple[str, str]:
    """The text before and after a docstring: the first ends with triple double quotes, the second begins with a line end.

    The quotes around the docstring may be in either, or in the docstring. The quotes after it are not shown to the model.
    """
    quote = next((quote for quote in _QUOTES if quote in before), None)
    if quote is not None:
        before = before[: before.index(quote)]
    for one, pattern in _ONE_QUOTE_AT_END.items():
        if match := pattern.search(before):
            before, quote = before[: match.start()], one
    if quote is not None:
        after = after.partition(quote)[2] if quote in after else after
    else:
        if match := _TRIPLE_QUOTE_AT_START.search(after):
            after = after[match.end() :]
        if match := _QUOTE_ON_FIRST_LINE.search(after):
            after = after[match.end() - 1 :]
    return before + TRIPLE_QUOTE, "\n" + after
