"""MTPB, the multi-turn programming benchmark of CodeGen (section 4), with one answer per turn or one for all turns.

A problem has five inputs, each a case of its own. Facts about the file:

    problem 57       has a sixth output, which belongs to no input and is left out, as in the official code
    problem 10       has one input twice; both cases count, as in the official totals, although its test numbers merge them
    problems 89, 41  have golds that are dictionaries (all) and null (two of five), which the released checker never accepts
    problems 38, 46  read data sets that were not published with the file
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, assert_never

from codekiln.errors import InvalidFileError
from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.truncation import CODEGEN_STOP, cut_as_codegen, cut_at_end_mark
from codekiln.evaluate.programs import PrintingProgram

HEADER = "# Import libraries.\n\nimport numpy as np\n\n"
MAX_NEW_TOKENS = 256  # where the file has no max_gen_length
Checker = Literal["released", "fixed"]
Joining = Literal["lines", "sentences"]


@dataclass(frozen=True, kw_only=True)
class TurnsProblem:
    """One case of a problem. `turns` are its filled prompts."""

    kind: ClassVar[Literal["multi-turn"]] = "multi-turn"
    suffix: ClassVar[None] = None
    reference: ClassVar[str] = ""
    stop: ClassVar[tuple[str, ...]] = CODEGEN_STOP

    task_id: str
    group: str
    turns: tuple[str, ...]
    expected: Any
    max_new_tokens: int
    checker: Checker

    @property
    def prompt(self) -> str:
        return self.history(())

    @property
    def n_turns(self) -> int:
        return len(self.turns)

    def truncate(self, text: str) -> str:
        return cut_as_codegen(text)

    def is_ended(self, text: str) -> bool:
        return len(cut_as_codegen(text)) < len(text)

    def history(self, answers: Sequence[str]) -> str:
        """The header, each turn as a comment, and each answer followed by a blank line."""
        pieces = [f"# {turn}\n{answer}\n\n" for turn, answer in zip(self.turns, answers, strict=False)]
        following = [f"# {turn}\n" for turn in self.turns[len(answers) : len(answers) + 1]]
        return "".join([HEADER, *pieces, *following])

    def program(self, answers: Sequence[str]) -> PrintingProgram:
        if len(answers) != self.n_turns:
            raise ValueError(f"{self.task_id} has {self.n_turns} turns (got {len(answers)} answers)")
        return PrintingProgram(source=self.history(answers), expected=self.expected, checker=self.checker)

    def text_scores(self, answer: str) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True)
class JoinedTurnsProblem:
    """One case of a problem, with the prompts of all turns in one. Its official code was not published.

    The answer is cut only at the end marks of CodeGen's rule: a second function or print belongs to it.
    """

    kind: ClassVar[Literal["completion"]] = "completion"
    suffix: ClassVar[None] = None
    reference: ClassVar[str] = ""
    stop: ClassVar[tuple[str, ...]] = CODEGEN_STOP

    task_id: str
    group: str
    prompt: str
    expected: Any
    max_new_tokens: int
    checker: Checker

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        return cut_at_end_mark(text)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        return len(cut_at_end_mark(text)) < len(text)

    def program(self, answer: str) -> PrintingProgram:
        return PrintingProgram(source=self.prompt + answer, expected=self.expected, checker=self.checker)

    def text_scores(self, answer: str) -> dict[str, float]:
        return {}


def mtpb(rows: Sequence[Row], checker: Checker) -> list[TurnsProblem]:
    """The 575 cases, each with all its turns."""
    return [
        TurnsProblem(
            task_id=case.task_id,
            group=case.group,
            turns=case.turns,
            expected=case.expected,
            max_new_tokens=case.max_new_tokens,
            checker=checker,
        )
        for case in _cases(rows)
    ]


def mtpb_single_turn(rows: Sequence[Row], checker: Checker, joining: Joining) -> list[JoinedTurnsProblem]:
    """The 575 cases with one prompt. How the turns were joined was not published: a comment per turn, or one comment.

    The token limit is that of all turns together.
    """
    return [
        JoinedTurnsProblem(
            task_id=case.task_id,
            group=case.group,
            prompt=HEADER + _join(case.turns, joining),
            expected=case.expected,
            max_new_tokens=case.max_new_tokens * len(case.turns),
            checker=checker,
        )
        for case in _cases(rows)
    ]


@dataclass(frozen=True, kw_only=True)
class _Case:
    task_id: str
    group: str
    turns: tuple[str, ...]
    expected: Any
    max_new_tokens: int


def _cases(rows: Sequence[Row]) -> list[_Case]:
    """The cases in the order of the problems' numbers, as in the official code."""
    found = []
    for row in sorted(rows, key=_number):
        group = f"MTPB/{row.text('id')}"
        limit = row.integer("max_gen_length") if "max_gen_length" in row.values else MAX_NEW_TOKENS
        inputs, outputs = row.items("inputs"), row.items("outputs")
        if not inputs or len(outputs) < len(inputs):
            raise InvalidFileError(f"{row.where}: {len(inputs)} inputs and {len(outputs)} outputs: each needs one")
        for number, (values, expected) in enumerate(zip(inputs, outputs, strict=False)):
            turns = tuple(_fill(prompt, values, row) for prompt in row.texts("prompts"))
            case = _Case(task_id=f"{group}/{number}", group=group, turns=turns, expected=expected, max_new_tokens=limit)
            found.append(case)
    return found


def _number(row: Row) -> int:
    text = row.text("id")
    if not text.isdecimal():
        raise InvalidFileError(f"{row.where}: id must be a number in a string (got {text!r})")
    return int(text)


def _fill(prompt: str, values: Any, row: Row) -> str:
    try:
        return prompt.format(**values)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InvalidFileError(f"{row.where}: a prompt cannot be filled with its input ({error!r})") from None


def _join(turns: Sequence[str], joining: Joining) -> str:
    match joining:
        case "lines":
            return "".join(f"# {turn}\n" for turn in turns)
        case "sentences":
            return f"# {' '.join(turns)}\n"
        case _:
            assert_never(joining)
