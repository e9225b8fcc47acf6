"""Python code of others: parsed without warnings, and where its nodes are in the text."""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True)
class PythonCode:
    """A parsed text. Offsets are those of its UTF-8 bytes."""

    text: str
    data: bytes
    tree: ast.Module
    line_starts: tuple[int, ...]

    def span(self, node: ast.expr | ast.stmt | ast.arg) -> tuple[int, int]:
        """Start and stop of a node. Wrong for nodes inside f-strings before Python 3.12: compare the text."""
        stop = self.line_starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        return self.line_starts[node.lineno - 1] + node.col_offset, stop

    def cut(self, start: int, stop: int | None = None) -> str:
        """The text between two offsets."""
        return self.data[start:stop].decode(errors="replace")

    def functions(self) -> Iterator[FunctionNode]:
        """All functions and methods, in the order of the text."""
        found = (node for node in ast.walk(self.tree) if isinstance(node, FunctionNode))
        yield from sorted(found, key=lambda node: (node.lineno, node.col_offset))


def parse_python(text: str) -> PythonCode | None:
    """The code, None if it does not parse."""
    tree = syntax_tree(text)
    if tree is None:
        return None
    data = text.encode()
    return PythonCode(text, data, tree, (0, *(match.end() for match in _LINE_END.finditer(data))))


def syntax_tree(text: str) -> ast.Module | None:
    """The tree of a program, None if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about escapes in the code of others
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def docstring_node(node: ast.Module | ast.ClassDef | FunctionNode) -> ast.Constant | None:
    """The constant that is the docstring of a module, class or function."""
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str()) as constant)]:
            return constant
        case _:
            return None
