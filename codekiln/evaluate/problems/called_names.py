"""Names of a program that its tests use."""

import ast
import builtins
import symtable
import warnings
from functools import lru_cache

from codekiln.evaluate.python_code import syntax_tree


@lru_cache(maxsize=20_000)
def called_names(tests: str, reference: str = "") -> tuple[str, ...]:
    """Global names that tests read and do not bind, in the order of the text; () if they are no Python.

    Builtins are left out, unless the reference defines a function of that name: in MBPP, some do.
    """
    tree = syntax_tree(tests)
    if tree is None:
        return ()
    unbound = _unbound_globals(tests) - (set(dir(builtins)) - _functions_of(reference))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in unbound]
    return tuple(dict.fromkeys(node.id for node in sorted(names, key=lambda node: (node.lineno, node.col_offset))))


def _unbound_globals(code: str) -> set[str]:
    """Names that any scope reads as globals, and that the module does not bind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = symtable.symtable(code, "tests", "exec")
    read: set[str] = set()
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global()}
    bound = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return read - bound


def _functions_of(code: str) -> set[str]:
    """The functions that a program defines at the top."""
    tree = syntax_tree(code)
    return set() if tree is None else {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
