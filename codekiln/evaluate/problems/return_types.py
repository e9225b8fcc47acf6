"""Return types (InCoder, section 4.4): the annotation after `->`, given the function without other annotations."""

import ast
from collections.abc import Sequence
from typing import ClassVar

from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.annotations import AnnotationProblem
from codekiln.evaluate.problems.truncation import cut_before
from codekiln.evaluate.python_code import syntax_tree

MAX_NEW_TOKENS = 20  # of InCoder's script
NEXT_FUNCTION = "\n\ndef "  # shows where the function ends


class ReturnTypeProblem(AnnotationProblem):
    """The type between "-> " and the colon."""

    stop: ClassVar[tuple[str, ...]] = (":",)
    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        return cut_before(text, self.stop)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        return ":" in text

    def text_scores(self, answer: str) -> dict[str, float]:
        """`predicted` is 0 if the answer is no Python: it then counts for the recall and not for the precision."""
        found = normalized_type(answer)
        return {
            "predicted": float(found is not None),
            "correct": float(found is not None and found == normalized_type(self.reference)),
        }


def return_types(rows: Sequence[Row]) -> list[ReturnTypeProblem]:
    """The functions of the file that do not return None."""
    return [
        return_type_problem(
            f"return-type/{number}",
            "".join(f"{line}\n" for line in row.texts("extra_left")),
            row.text("left"),
            row.text("right"),
            row.text("return_type_from_source"),
        )
        for number, row in enumerate(rows)
        if row.text("return_type_from_source") != "None"
    ]


def return_type_problem(task_id: str, imports: str, left: str, right: str, reference: str) -> ReturnTypeProblem:
    """The problem of one function, cut at its return type. `imports` is "" or ends with a line end.

    As in InCoder's code, a method is indented by four spaces. The colon after the type is not shown: it is a stop string.
    """
    right = (right + NEXT_FUNCTION).removeprefix(":")
    if "(self" in "\n".join(left.split("\n")[:2]):
        left, right = ("\n".join(f"    {line}" for line in text.split("\n")) for text in (left, right))
    return ReturnTypeProblem(
        task_id=task_id, prompt=(f"{imports}\n" if imports else "") + left, suffix=right, reference=reference
    )


def normalized_type(text: str) -> str | None:
    """A type in one spelling, None if it is no Python. Official: astunparse, which writes more parentheses, for both sides."""
    tree = syntax_tree(text)
    return None if tree is None else ast.unparse(tree).strip()
