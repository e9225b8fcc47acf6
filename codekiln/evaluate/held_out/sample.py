"""A sample of the problems that held-out documents have."""

from collections.abc import Iterable, Iterator
from typing import Literal, assert_never

from codekiln.corpus.documents import Document, hash_order
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.held_out.cloze import cloze_problems
from codekiln.evaluate.held_out.doctests import doctest_problems
from codekiln.evaluate.held_out.functions import docstring_problems, return_type_problems, variable_name_problems
from codekiln.evaluate.held_out.holes import (
    MAX_PROBLEMS_PER_DOCUMENT,
    SINGLE_LINE,
    SPAN,
    multi_line_problems,
    sample_problems,
)
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.python_code import PythonCode, parse_python

HeldOutTask = Literal[
    "single-line",
    "multi-line",
    "span",
    "docstrings",
    "return-types",
    "variable-names",
    "cloze",
    "cloze-calls",
    "doctests",
]


def sample_held_out(
    task: HeldOutTask, documents: Iterable[Document], config: InfillingConfig, *, file_end: str = ""
) -> list[Problem]:
    """`config.n_problems` problems, at most 8 per document, in an order that the seed decides.

    Lines and spans are of any language, the others of Python. `file_end` ends the suffix of docstrings.
    """
    if task == "single-line":
        return list(sample_problems(documents, config)[SINGLE_LINE])
    if task == "span":
        return list(sample_problems(documents, config)[SPAN])
    drawn: list[tuple[str, Problem]] = []
    for document in documents:
        found = [
            (hash_order(config.seed, problem.task_id), problem)
            for problem in _problems(task, document, config, file_end)
        ]
        drawn += sorted(found, key=lambda entry: entry[0])[:MAX_PROBLEMS_PER_DOCUMENT]
    return [problem for _, problem in sorted(drawn, key=lambda entry: entry[0])[: config.n_problems]]


def _problems(
    task: Literal["multi-line", "docstrings", "return-types", "variable-names", "cloze", "cloze-calls", "doctests"],
    document: Document,
    config: InfillingConfig,
    file_end: str,
) -> Iterable[Problem]:
    if task == "multi-line":
        return multi_line_problems(document, config)
    code = parse_python(document.text) if document.language == "Python" else None
    return [] if code is None else _python_problems(task, code, document.name, config, file_end)


def _python_problems(
    task: Literal["docstrings", "return-types", "variable-names", "cloze", "cloze-calls", "doctests"],
    code: PythonCode,
    name: str,
    config: InfillingConfig,
    file_end: str,
) -> Iterator[Problem]:
    match task:
        case "docstrings":
            yield from docstring_problems(code, name, file_end)
        case "return-types":
            yield from return_type_problems(code, name)
        case "variable-names":
            yield from variable_name_problems(code, name)
        case "cloze" | "cloze-calls":
            yield from cloze_problems(code, name, config.context_characters, calls_only=task == "cloze-calls")
        case "doctests":
            yield from doctest_problems(code, name, config.context_characters, config.max_new_tokens)
        case _:
            assert_never(task)
