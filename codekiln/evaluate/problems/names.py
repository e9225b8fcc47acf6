"""Variable names (InCoder, section 4.5): all occurrences of a variable are masked, and the most frequent fill is the answer.

InCoder's code and list of names were not published. Here a variable is a parameter of a function or a name that it assigns.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.truncation import leading_name
from codekiln.evaluate.python_code import FunctionNode, PythonCode, parse_python

MIN_CHARACTERS = 4
MAX_NEW_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class VariableNameProblem:
    """The name in the holes between `parts`."""

    kind: ClassVar[Literal["names"]] = "names"
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    max_new_tokens: ClassVar[int] = MAX_NEW_TOKENS

    task_id: str
    group: str
    parts: tuple[str, ...]
    reference: str

    @property
    def prompt(self) -> str:
        return self.parts[0]

    @property
    def suffix(self) -> str:
        return self.reference.join(self.parts[1:])

    def truncate(self, text: str) -> str:
        return leading_name(text)

    def vote(self, fills: Sequence[str]) -> str:
        """Of equally frequent names, the first one."""
        counts = Counter(fill for fill in fills if fill)
        return max(counts, key=lambda name: counts[name], default="")

    def text_scores(self, answer: str) -> dict[str, float]:
        return {"exact_match": float(answer == self.reference)}


def variable_names(rows: Sequence[Row]) -> list[VariableNameProblem]:
    """A problem per variable of the functions of CodeXGLUE's code-to-text. Functions that do not parse have none."""
    found = []
    for number, row in enumerate(rows):
        code = parse_python(row.text("original_string"))
        function = None if code is None else next(code.functions(), None)
        if code is not None and function is not None:
            found += list(name_problems(code, function, f"variable-name/{number}"))
    return found


def name_problems(code: PythonCode, function: FunctionNode, group: str) -> Iterator[VariableNameProblem]:
    """The problems of one function, in the order of the first occurrences. The text is that of the function only."""
    start, stop = code.span(function)
    places: dict[str, list[int]] = {}
    variables: set[str] = set()
    for node in ast.walk(function):
        match node:
            case ast.Name(id=name, ctx=context):
                places.setdefault(name, []).append(code.span(node)[0])
                variables |= {name} if isinstance(context, ast.Store) else set()
            case ast.arg(arg=name):
                places.setdefault(name, []).append(code.span(node)[0])
                variables.add(name)
    fixed = {name for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names}
    for name in sorted(variables - fixed, key=lambda name: min(places[name])):
        offsets, size = sorted(set(places[name])), len(name.encode())
        # Names in f-strings have no true offsets in all versions of Python.
        is_found = all(code.data[at : at + size] == name.encode() and start <= at < stop for at in offsets)
        if len(name) < MIN_CHARACTERS or not is_found or len(offsets) < len(places[name]):
            continue
        bounds = [start, *(edge for at in offsets for edge in (at, at + size)), stop]
        parts = tuple(code.cut(*edges) for number, edges in enumerate(pairwise(bounds)) if number % 2 == 0)
        yield VariableNameProblem(task_id=f"{group}/{name}", group=group, parts=parts, reference=name)
