"""Lines of held-out functions whose docstrings have examples."""

import ast
import doctest
import sys
from collections.abc import Iterator

from codekiln.evaluate.held_out.holes import context_of
from codekiln.evaluate.problems.called_names import called_names
from codekiln.evaluate.problems.doctests import DoctestHoleProblem, doctest_tests
from codekiln.evaluate.python_code import FunctionNode, PythonCode, docstring_node


def doctest_problems(
    code: PythonCode, name: str, context_characters: int, max_new_tokens: int
) -> Iterator[DoctestHoleProblem]:
    """One problem per simple statement of one line in a function with examples. Documents that import other packages than the
    standard library have none, and neither has a document with other line ends than "\\n"."""
    if "\r" in code.text or not _is_self_contained(code.tree):
        return
    defined = {node.name for node in code.tree.body if isinstance(node, FunctionNode | ast.ClassDef)}
    for function in code.functions():
        docstring = docstring_node(function)
        examples = [] if docstring is None else _examples(str(docstring.value))
        if docstring is None or not examples:
            continue
        tests = doctest_tests(str(docstring.value))
        used = called_names("\n".join(examples))
        for statement in _simple_lines(code, function):
            start = len(code.cut(0, code.line_starts[statement.lineno - 1]))
            stop = code.text.find("\n", start) + 1 or len(code.text)
            prompt, suffix = context_of(code.text, start, stop, context_characters)
            yield DoctestHoleProblem(
                task_id=f"{name}/doctest/{statement.lineno}",
                group=name,
                prompt=prompt,
                suffix=suffix,
                reference=code.text[start:stop],
                unit="lines",
                max_new_tokens=max_new_tokens,
                before=code.text[:start],
                after=code.text[stop:],
                tests=tests,
                functions=tuple(each for each in used if each in defined),
            )


def _examples(docstring: str) -> list[str]:
    """The sources of the examples; none if they are malformed."""
    try:
        return [example.source for example in doctest.DocTestParser().get_examples(docstring)]
    except ValueError:
        return []


def _is_self_contained(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, level=level):
                modules = ["" if level or module is None else module]
            case _:
                continue
        if not all(module.split(".")[0] in sys.stdlib_module_names for module in modules):
            return False
    return True


def _simple_lines(code: PythonCode, function: FunctionNode) -> list[ast.stmt]:
    """Statements that are a whole line, without the docstring, definitions and those with a block."""
    lines = code.text.split("\n")
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and node is not function.body[0] and node.lineno == node.end_lineno:
            line, text = lines[node.lineno - 1], code.cut(*code.span(node))
            has_block = hasattr(node, "body") or isinstance(node, ast.Match)
            if not has_block and line.partition("#")[0].strip() == text.strip():
                found.append(node)
    return sorted(found, key=lambda node: node.lineno)
