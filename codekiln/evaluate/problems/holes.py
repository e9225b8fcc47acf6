"""One hole in a text: lines or a span. The rules of InCoder (section 4.1), for published and for held-out problems.

A model that saw the suffix ends its answer itself. A left-to-right one is cut after the true number of lines.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, assert_never

from codekiln.evaluate.problems.truncation import count_lines, first_lines, has_lines
from codekiln.evaluate.programs import TestedProgram

HoleUnit = Literal["lines", "span"]


@dataclass(frozen=True, kw_only=True)
class HoleProblem:
    """The text between `prompt` and `suffix`. A hole of "lines" has whole lines with their line ends, a "span" any text."""

    kind: ClassVar[Literal["completion"]] = "completion"
    stop: ClassVar[tuple[str, ...]] = ()

    task_id: str
    group: str
    prompt: str
    suffix: str
    reference: str
    unit: HoleUnit
    max_new_tokens: int

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        """Lines end with a line end, which InCoder's evaluation adds, too. Nothing is added to a span or removed from it."""
        match self.unit:
            case "lines":
                lines = text if with_suffix else first_lines(text, count_lines(self.reference))
                return lines if lines.endswith("\n") else lines + "\n"
            case "span":
                return text if with_suffix else "\n".join(text.split("\n")[: self.reference.count("\n") + 1])
            case _:
                assert_never(self.unit)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        if with_suffix:
            return False
        if self.unit == "lines":
            return has_lines(text, count_lines(self.reference))
        return text.count("\n") > self.reference.count("\n")

    def program(self, answer: str) -> TestedProgram | None:
        return None

    def text_scores(self, answer: str) -> dict[str, float]:
        """White space at the end does not count (InCoder)."""
        return {"exact_match": float(answer.rstrip() == self.reference.rstrip())}
