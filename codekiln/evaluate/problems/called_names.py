"""Names of a program that its tests use."""

import ast
import builtins
from functools import lru_cache

from codekiln.evaluate.python_code import syntax_tree


@lru_cache(maxsize=20_000)
def called_names(tests: str, reference: str = "") -> tuple[str, ...]:
    """Names that tests read and do not bind anywhere, in the order of the text; () if they are no Python.

    Builtins are left out, unless the reference defines a function of that name: in MBPP, some do.
    """
    tree = syntax_tree(tests)
    if tree is None:
        return ()
    read: dict[tuple[int, int], str] = {}
    bound: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read[node.lineno, node.col_offset] = name
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                bound.add(name)
            case ast.ClassDef(name=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=new):
                bound.add(new or name.split(".")[0])
    excluded = bound | (set(dir(builtins)) - _functions_of(reference))
    return tuple(dict.fromkeys(name for _, name in sorted(read.items()) if name not in excluded))


def _functions_of(code: str) -> set[str]:
    """The functions that a program defines at the top."""
    tree = syntax_tree(code)
    return set() if tree is None else {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
