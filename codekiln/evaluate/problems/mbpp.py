"""MBPP (arXiv 2108.07732), its sanitized part, and MBPP+: a program from a description.

The prompt is InCoder's: a docstring with the description and the first test. InCoder's paper, and others, have the description
only. A program has no prompt, since the prompt is only a docstring.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from codekiln.errors import InvalidFileError
from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.called_names import called_names
from codekiln.evaluate.problems.humaneval import MAX_NEW_TOKENS, PLUS_CPU_SECONDS
from codekiln.evaluate.problems.truncation import MBPP_STOP, cut_before
from codekiln.evaluate.programs import TestedProgram

TEST_IDS = range(11, 511)
CPU_SECONDS = 10.0  # of InCoder's mbpp.py
# References that take a large part of the limits, or more on a slow machine. Their limits are several times their own time,
# which was 6 seconds for 123 (amicable numbers) of MBPP and 33 for 599 of MBPP+.
SLOW_CPU_SECONDS = {123: 60.0}
SLOW_PLUS_CPU_SECONDS = {599: 150.0}
_ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True, kw_only=True)
class DescribedProgramProblem:
    """A program from its description."""

    kind: ClassVar[Literal["completion"]] = "completion"
    suffix: ClassVar[None] = None
    stop: ClassVar[tuple[str, ...]] = MBPP_STOP
    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    task_id: str
    prompt: str
    reference: str
    setup: str
    tests: str
    cpu_seconds: float

    @property
    def group(self) -> str:
        return self.task_id

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        return cut_before(text, MBPP_STOP)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        return len(cut_before(text, MBPP_STOP)) < len(text)

    def program(self, answer: str) -> TestedProgram:
        return TestedProgram(
            source=answer,
            setup=self.setup,
            tests=self.tests,
            functions=called_names(f"{self.setup}\n{self.tests}", self.reference),
            cpu_seconds=self.cpu_seconds,
        )

    def text_scores(self, answer: str) -> dict[str, float]:
        return {}


def docstring_prompt(description: str, test: str | None) -> str:
    """InCoder's `comment_prompt`; without the test, the form of its paper."""
    return f'"""\n{description}\n"""\n' if test is None else f'"""\n{description}\n{test}\n"""\n'


def mbpp(rows: Sequence[Row], *, with_test: bool) -> list[DescribedProgramProblem]:
    """The 500 test problems of mbpp.jsonl."""
    return [
        _problem(row, "MBPP", row.text("text"), row.text("test_setup_code"), with_test=with_test)
        for row in rows
        if row.integer("task_id") in TEST_IDS
    ]


def mbpp_sanitized(rows: Sequence[Row], *, with_test: bool) -> list[DescribedProgramProblem]:
    """The 257 test problems of sanitized-mbpp.json."""
    return [
        _problem(row, "MBPP", row.text("prompt"), "\n".join(row.texts("test_imports")), with_test=with_test)
        for row in rows
        if row.integer("task_id") in TEST_IDS
    ]


def mbpp_plus(rows: Sequence[Row], *, with_test: bool) -> list[DescribedProgramProblem]:
    """The 378 problems of MBPP+. The tests of its file have the inputs of MBPP, too: a program passes both or fails.

    Addresses are removed from descriptions, as in the prompts of evalplus.
    """
    return [
        DescribedProgramProblem(
            task_id=f"MBPP+/{row.integer('task_id')}",
            prompt=docstring_prompt(_ADDRESS.sub("", row.text("prompt")), _first_test(row) if with_test else None),
            reference=row.text("code"),
            setup="\n".join(row.texts("test_imports")),
            tests=row.text("test"),
            cpu_seconds=SLOW_PLUS_CPU_SECONDS.get(row.integer("task_id"), PLUS_CPU_SECONDS),
        )
        for row in rows
    ]


def _problem(row: Row, name: str, description: str, setup: str, *, with_test: bool) -> DescribedProgramProblem:
    number = row.integer("task_id")
    return DescribedProgramProblem(
        task_id=f"{name}/{number}",
        prompt=docstring_prompt(description, _first_test(row) if with_test else None),
        reference=row.text("code"),
        setup=setup,
        tests="\n".join(row.texts("test_list")),
        cpu_seconds=SLOW_CPU_SECONDS.get(number, CPU_SECONDS),
    )


def _first_test(row: Row) -> str:
    tests = row.texts("test_list")
    if not tests:
        raise InvalidFileError(f"{row.where}: test_list is empty")
    return tests[0]
