"""Text about a function that is not code which runs: its docstring, or its return type (InCoder, sections 4.3 and 4.4)."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class AnnotationProblem:
    """A hole in one function. No program judges the answer, and each function is its own group."""

    kind: ClassVar[Literal["completion"]] = "completion"

    task_id: str
    prompt: str
    suffix: str
    reference: str

    @property
    def group(self) -> str:
        return self.task_id

    def program(self, answer: str) -> None:
        return None
