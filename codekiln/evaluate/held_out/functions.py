"""Docstrings, return types and variable names of functions in held-out Python code."""

import ast
import inspect
from collections.abc import Iterator

from codekiln.evaluate.problems.docstrings import DocstringProblem, docstring_problem
from codekiln.evaluate.problems.names import VariableNameProblem, name_problems
from codekiln.evaluate.problems.return_types import ReturnTypeProblem, return_type_problem
from codekiln.evaluate.python_code import FunctionNode, PythonCode, docstring_node

MIN_DOCSTRING_WORDS = 3  # as in CodeSearchNet, which CodeXGLUE's code-to-text is from


def docstring_problems(code: PythonCode, name: str, file_end: str) -> Iterator[DocstringProblem]:
    """One problem per function with a docstring. The reference is its first paragraph on one line."""
    for function in code.functions():
        constant = docstring_node(function)
        if constant is None:
            continue
        (start, stop), (quote_start, quote_stop) = code.span(function), code.span(constant)
        inner = _inside_quotes(code.cut(quote_start, quote_stop))
        reference = " ".join(inspect.cleandoc(str(constant.value)).split("\n\n")[0].split())
        source = code.cut(start, stop)
        if inner is None or len(reference.split()) < MIN_DOCSTRING_WORDS or source.count(inner) != 1:
            continue
        task_id = f"{name}/docstring/{function.lineno}"
        yield docstring_problem(task_id, source, inner, reference, file_end, name)


def return_type_problems(code: PythonCode, name: str) -> Iterator[ReturnTypeProblem]:
    """One problem per function with a return type that is not None. As in InCoder's code, other annotations of its arguments
    are removed, and the text is written by `ast.unparse`, so comments are lost."""
    for function in code.functions():
        if function.returns is None or ast.unparse(function.returns) == "None":
            continue
        source, reference = _only_return_type(function), ast.unparse(function.returns)
        left, arrow, right = source.partition(f" -> {reference}")
        if arrow and f" -> {reference}" not in right:
            task_id = f"{name}/return-type/{function.lineno}"
            yield return_type_problem(task_id, "", f"{left} -> ", right, reference)


def variable_name_problems(code: PythonCode, name: str) -> Iterator[VariableNameProblem]:
    """One problem per variable of each function that is in no other function."""
    inner = {
        each
        for node in code.functions()
        for each in ast.walk(node)
        if isinstance(each, FunctionNode) and each is not node
    }
    for function in code.functions():
        if function not in inner:
            yield from name_problems(code, function, f"{name}/variable-name/{function.lineno}")


def _inside_quotes(literal: str) -> str | None:
    """The text of a string literal, None for one with a prefix or of several parts."""
    for quote in ('"""', "'''", '"', "'"):
        if literal.startswith(quote) and literal.endswith(quote) and len(literal) >= 2 * len(quote):
            inner = literal[len(quote) : -len(quote)]
            return None if quote in inner or not inner else inner
    return None


def _only_return_type(function: FunctionNode) -> str:
    """The source of a function whose arguments have no annotations."""
    copied = ast.parse(ast.unparse(function)).body[0]
    assert isinstance(copied, FunctionNode)
    copied.decorator_list = []
    for node in ast.walk(copied):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, FunctionNode) and node is not copied:
            node.returns = None
    return ast.unparse(copied)
