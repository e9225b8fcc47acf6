"""HumanEval infilling (arXiv 2207.14255): single lines, runs of lines and random spans of HumanEval's solutions."""

from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.holes import HoleProblem, HoleUnit
from codekiln.evaluate.problems.humaneval import CPU_SECONDS, checked_program
from codekiln.evaluate.programs import TestedProgram

SINGLE_LINE_MAX_NEW_TOKENS = 128  # InCoder: 30, of a vocabulary with tokens of several words


@dataclass(frozen=True, kw_only=True)
class FunctionHoleProblem(HoleProblem):
    """A hole in a solution of HumanEval, judged by HumanEval's tests."""

    entry_point: str
    test: str

    def program(self, answer: str) -> TestedProgram:
        return checked_program(self.prompt + answer + self.suffix, self.test, self.entry_point, CPU_SECONDS)


def humaneval_infilling(rows: Sequence[Row], unit: HoleUnit, max_new_tokens: int) -> list[FunctionHoleProblem]:
    """The problems of one of the four files. Those of one function of HumanEval are a group."""
    return [
        FunctionHoleProblem(
            task_id=row.text("task_id"),
            group=function_of(row.text("task_id")),
            prompt=row.text("prompt"),
            suffix=row.text("suffix"),
            reference=row.text("canonical_solution"),
            unit=unit,
            max_new_tokens=max_new_tokens,
            entry_point=row.text("entry_point"),
            test=row.text("test"),
        )
        for row in rows
    ]


def function_of(task_id: str) -> str:
    """`HumanEval/0` of `SingleLineInfilling/HumanEval/0/L0`."""
    return "/".join(task_id.split("/")[1:3])
