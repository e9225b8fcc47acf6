"""CRUXEval (arXiv 2401.03065): the output of a function for an input, or an input for an output.

Two forms of prompts. "assert" is an assert statement to complete, for models without instructions. "instructions" are the
official prompts with two examples, which are read from the user's copy of its `prompts.py`, as data: nothing of it is run.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, assert_never

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.truncation import cut_before
from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.python_code import syntax_tree

Direction = Literal["output", "input"]
CPU_SECONDS = 3.0  # of the official evaluation
INSTRUCTIONS_STOP, INSTRUCTIONS_MAX_NEW_TOKENS = ("[/ANSWER]",), 1024
ASSERT_MAX_NEW_TOKENS = 256
_PROMPTS = {"output": "make_direct_output_prompt", "input": "make_direct_input_prompt"}
_ANSWER = "_answer"
_REFUSED = TestedProgram(
    source="raise SyntaxError('the answer is not one expression that answers the problem')", tests=""
)


@dataclass(frozen=True, kw_only=True)
class ExecutionProblem:
    """The value of `call` in the program `code`, or the call that has it. `value` is Python text, as in the file."""

    kind: ClassVar[Literal["completion"]] = "completion"

    task_id: str
    prompt: str
    suffix: str | None
    code: str
    call: str
    value: str
    direction: Direction
    has_instructions: bool

    @property
    def group(self) -> str:
        return self.task_id.rsplit("/", 1)[0]

    @property
    def reference(self) -> str:
        return self.value if self.direction == "output" else self.call

    @property
    def stop(self) -> tuple[str, ...]:
        return INSTRUCTIONS_STOP if self.has_instructions else ("\n",)

    @property
    def max_new_tokens(self) -> int:
        return INSTRUCTIONS_MAX_NEW_TOKENS if self.has_instructions else ASSERT_MAX_NEW_TOKENS

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        """The value, or the call. After instructions, the assert statement of the answer is taken apart as officially."""
        text = cut_before(text, self.stop)
        match self.direction, self.has_instructions:
            case "output", True:
                return text.split("==")[1].strip() if "==" in text else text.strip()
            case "input", True:
                text = text.split("==")[0].strip()
                return ("f" + text.split("assert f")[1].strip() if "assert f" in text else text).strip()
            case "output", False:
                return text.strip()
            case _:
                return f"f({text})" if with_suffix else f"f({text.split('==')[0].strip()}"

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        return any(string in text for string in self.stop)

    def program(self, answer: str) -> TestedProgram:
        """The official check: `assert value == answer`. The answer must be one expression. An output that calls the function is
        wrong, and so is an input that does not."""
        if not _is_expression(answer):
            return _REFUSED
        if self.call in answer if self.direction == "output" else "f(" not in answer:
            return _REFUSED
        return TestedProgram(
            source=f"{self.code}\n\n\ndef {_ANSWER}():\n    return {answer.strip()}\n",
            tests=f"assert {self.value} == {_ANSWER}()",
            functions=(_ANSWER,),
            cpu_seconds=CPU_SECONDS,
        )

    def text_scores(self, answer: str) -> dict[str, float]:
        return {}


def cruxeval(
    rows: Sequence[Row], direction: Direction, templates: Mapping[Direction, "Template"] | None
) -> list[ExecutionProblem]:
    """The 800 problems of one direction, with the official prompts if `templates` has them."""
    return [
        ExecutionProblem(
            task_id=f"CRUXEval/{row.text('id')}/{direction}",
            prompt=_prompt(row, direction) if templates is None else templates[direction].fill(row),
            suffix=f") == {row.text('output')}\n" if direction == "input" and templates is None else None,
            code=row.text("code"),
            call=f"f({row.text('input')})",
            value=row.text("output"),
            direction=direction,
            has_instructions=templates is not None,
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Template:
    """A prompt: text, and names of fields of a row."""

    pieces: tuple[tuple[Literal["text", "field"], str], ...]

    def fill(self, row: Row) -> str:
        return "".join(text if kind == "text" else row.text(text) for kind, text in self.pieces)


def read_templates(path: Path) -> dict[Direction, Template]:
    """The direct prompts of the official `prompts.py`. Raises MissingFileError, or InvalidFileError if it has other ones."""
    try:
        tree = syntax_tree(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"{path} does not exist: it is prompts.py of github.com/facebookresearch/cruxeval"
        ) from None
    except UnicodeDecodeError:
        tree = None
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)} if tree is not None else {}
    return {direction: _template(functions.get(_PROMPTS[direction]), path) for direction in ("output", "input")}


def _template(function: ast.FunctionDef | None, path: Path) -> Template:
    """The f-string that a function returns."""
    returned = function.body[-1] if function is not None else None
    pieces: list[tuple[Literal["text", "field"], str]] = []
    if isinstance(returned, ast.Return) and isinstance(returned.value, ast.JoinedStr):
        for piece in returned.value.values:
            match piece:
                case ast.Constant(value=str(text)):
                    pieces.append(("text", text))
                case ast.FormattedValue(value=ast.Name(id=("code" | "input" | "output") as name), format_spec=None):
                    pieces.append(("field", name))
                case _:
                    pieces.clear()
                    break
    if not pieces:
        raise InvalidFileError(f"{path} is not the prompts.py of CRUXEval: it has no prompts as they were published")
    return Template(tuple(pieces))


def _prompt(row: Row, direction: Direction) -> str:
    code, call, value = row.text("code"), row.text("input"), row.text("output")
    match direction:
        case "output":
            return f"{code}\nassert f({call}) =="
        case "input":
            return f"{code}\n# f(??) == {value}\nassert f("
        case _:
            assert_never(direction)


def _is_expression(text: str) -> bool:
    """Whether a text is one expression on one line."""
    tree = None if "\n" in text.strip() else syntax_tree(text.strip())
    return tree is not None and len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr)
