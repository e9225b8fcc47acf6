"""One hole in a text: a line, lines or a span. The rules of InCoder (section 4.1), for published and for held-out problems.

A model that saw the suffix ends its answer itself. A left-to-right one is cut after the true number of lines.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, assert_never

from codekiln.evaluate.problems.truncation import count_lines, first_lines, has_lines
from codekiln.evaluate.programs import TestedProgram

HoleUnit = Literal["line", "lines", "span"]
"""
line   a line without its line end; the suffix begins with the line end
lines  whole lines with their line ends
span   any text
"""
LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, kw_only=True)
class HoleProblem:
    """The text between `prompt` and `suffix`."""

    kind: ClassVar[Literal["completion"]] = "completion"

    task_id: str
    group: str
    prompt: str
    suffix: str
    reference: str
    unit: HoleUnit
    max_new_tokens: int

    @property
    def stop(self) -> tuple[str, ...]:
        return ("\n", "\r") if self.unit == "line" else ()

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        """Whole lines end with a line end, which InCoder's evaluation adds, too. Nothing is added to a span or removed."""
        match self.unit:
            case "line":
                return LINE_END.split(text, maxsplit=1)[0]
            case "lines":
                lines = text if with_suffix else first_lines(text, count_lines(self.reference))
                return lines if lines.endswith("\n") else lines + "\n"
            case "span":
                return text if with_suffix else "\n".join(text.split("\n")[: self.reference.count("\n") + 1])
            case _:
                assert_never(self.unit)

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        match self.unit:
            case "line":
                return LINE_END.search(text) is not None
            case "lines":
                return not with_suffix and has_lines(text, count_lines(self.reference))
            case "span":
                return not with_suffix and text.count("\n") > self.reference.count("\n")
            case _:
                assert_never(self.unit)

    def program(self, answer: str) -> TestedProgram | None:
        return None

    def text_scores(self, answer: str) -> dict[str, float]:
        """White space at the end does not count (InCoder)."""
        return {"exact_match": float(answer.rstrip() == self.reference.rstrip())}
