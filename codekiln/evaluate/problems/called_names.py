"""Names of a program that its tests use."""

import ast
import builtins
from functools import lru_cache

from codekiln.evaluate.python_code import syntax_tree


@lru_cache(maxsize=20_000)
def called_names(code: str) -> tuple[str, ...]:
    """Names that a code reads and does not bind anywhere, without builtins, in the order of the text; () if it is no Python."""
    tree = syntax_tree(code)
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
    unbound = (name for _, name in sorted(read.items()) if name not in bound and not hasattr(builtins, name))
    return tuple(dict.fromkeys(unbound))
