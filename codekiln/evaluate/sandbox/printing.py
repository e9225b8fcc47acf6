"""Runs a program of MTPB in the child: what its last print printed.

`run_and_compare` repeats the published `mtpb_exec.py` with its faults. `run_and_capture` is the corrected one; the evaluator
compares what it returns (see `printed`).
"""

import ast
import builtins
import signal
import sys
from contextlib import suppress
from typing import Any

from codekiln.evaluate.sandbox.limits import wall_seconds
from codekiln.evaluate.sandbox.wire import WireError, encode

MAX_TEXT = 100_000
LAST = "__value_of_the_last_statement__"


class MissingPackageError(Exception):
    """The program imports a package that is not installed. It is named by the exception of its import."""


class DifferentError(Exception):
    """The printed value is not the expected one."""


# Corrected.


def run_and_capture(code: str) -> dict[str, Any]:
    """Runs a program. Returns `value`, encoded, if it printed one, and `error` if it raised.

    A value is captured when it is printed, so later changes do not count. A program that raises after a print has printed, as
    in the published harness, and so has one that calls sys.exit. One that loops or ends its process has not.

    Prints without arguments print no value. If the last statement is an expression or an assignment, its value counts as
    printed, unless it is a call of print, or is None and something was printed before.
    """
    captured: list[object] = []

    def capture(*values: Any, **keywords: Any) -> None:
        if values:
            captured[:] = [encode_printed(values[0])]
        builtins.print(*values, **keywords)  # noqa: T201  # the program's own print

    def capture_last(value: Any) -> None:
        if value is not None or not captured:
            capture(value)

    outcome: dict[str, Any] = {}
    try:
        tree = print_last_value(ast.parse(code))
        namespace = {"__name__": "__main__", "print": capture, LAST: capture_last}
        exec(compile(tree, "<program>", "exec", dont_inherit=True), namespace)  # noqa: S102
    except SystemExit:
        pass  # sys.exit() at the end of a script
    except ModuleNotFoundError as error:
        outcome = {"error": f"ModuleNotFoundError: {error}", "missing": (error.name or "").split(".")[0]}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"[:500]}
    if captured:
        outcome["value"] = captured[0]
    return outcome


def print_last_value(tree: ast.Module) -> ast.Module:
    """Passes the value of the last statement to the function named LAST."""
    last = tree.body[-1] if tree.body else None
    value: ast.expr | None = None
    if isinstance(last, ast.Expr):
        called = last.value.func if isinstance(last.value, ast.Call) else None
        if not (isinstance(called, ast.Name) and called.id == "print"):
            value = last.value
            tree.body.pop()
    elif isinstance(last, ast.Assign | ast.AnnAssign | ast.AugAssign):
        target = last.targets[-1] if isinstance(last, ast.Assign) else last.target
        if isinstance(target, ast.Name):
            value = ast.Name(id=target.id, ctx=ast.Load())
    if value is not None:
        call = ast.Call(func=ast.Name(id=LAST, ctx=ast.Load()), args=[value], keywords=[])
        tree.body.append(ast.Expr(value=call))
        ast.fix_missing_locations(tree)
    return tree


def encode_printed(value: Any) -> object:
    """A printed value as data: arrays and series as lists, other objects as their text under the tag "x"."""

    def encode_object(item: Any) -> object:
        module = type(item).__module__.split(".")[0]
        if module in ("numpy", "pandas") and hasattr(item, "tolist"):
            return encode(item.tolist(), encode_object)
        if module == "pandas" and hasattr(item, "to_numpy"):
            return encode(item.to_numpy().tolist(), encode_object)
        return {"x": str(item)[:MAX_TEXT]}

    try:
        return encode(value, encode_object)
    except (WireError, RecursionError):
        return {"x": "a value that is too deep"}


# As published.


class InterruptedByClockError(Exception):
    """As in the published code, a bare `except Exception` of the program or of its harness catches it."""


def run_and_compare(code: str, expected: Any, seconds: float) -> None:
    """Returns if the published harness counts the program as right. Raises DifferentError or what it raises otherwise.

    The clock is processor time instead of wall time.
    """
    printed: list[dict[str, Any]] = []
    namespace: dict[str, Any] = {"print_stack": printed, "__name__": "__main__"}
    exec(OVERRIDE, namespace)  # noqa: S102
    signal.signal(signal.SIGPROF, raise_timeout)
    signal.signal(signal.SIGALRM, raise_timeout)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds(seconds) - 1)
    missing: Exception | None = None
    with suppress(Exception):  # else the program runs as it is
        code = rewritten(code)
    try:
        exec(code, namespace)  # noqa: S102
    except ModuleNotFoundError as error:
        missing = MissingPackageError(error.name or "")
    except Exception:  # noqa: S110  # what was printed before counts
        pass
    if missing is not None and not namespace["print_stack"]:
        raise missing
    value = namespace["print_stack"][-1]["args"][0]
    if not is_equivalent(value, expected):
        raise DifferentError(f"printed {value!r:.200}")


OVERRIDE = """import builtins
def print(*args, **kwargs):
    global print_stack
    print_stack.append({'args': args, 'kwargs': kwargs})
    return builtins.print(*args, **kwargs)
"""


def raise_timeout(number: int, frame: object) -> None:
    raise InterruptedByClockError("Timed out!")


def rewritten(code: str) -> str:
    """Prints the value of the last statement, unless it calls something whose name begins with "print"."""
    tree = ast.parse(code)
    last: Any = tree.body[-1]
    with suppress(Exception):
        if last.value.func.id.startswith("print"):
            return code
    last.value = ast.Call(func=ast.Name(id="print", ctx=ast.Load()), args=[last.value], keywords=[])
    ast.copy_location(last, last)
    ast.fix_missing_locations(last)
    return ast.unparse(tree)


def is_equivalent(value: Any, expected: Any) -> bool:
    """The published comparison: casts the value to the type of the expected one. Raises what the cast raises."""
    numpy: Any = sys.modules.get("numpy")
    if str(type(value)) == "<class 'pandas.core.series.Series'>":
        value, expected = value.to_numpy(), numpy.array(expected)
    elif type(value) is list:
        if len(value) > 0 and type(value[0]) is tuple:
            value = [list(item) for item in value]
    elif numpy is not None:
        if type(value) in (numpy.uint8, numpy.int16, numpy.int32, numpy.int64):
            value = int(value)
        elif type(value) in (numpy.float16, numpy.float32, numpy.float64):
            value = float(value)
        elif type(value) is numpy.bool_:
            value = bool(value)
        elif type(value) is numpy.ndarray:
            value = value.tolist()
    if type(value) is not type(expected):
        if type(expected) is bool:
            value, expected = str(value), str(expected)
        else:
            value = type(expected)(value)
    if type(value) in (str, int, set, list, bool, tuple):
        return bool(value == expected)
    if type(value) is float:
        return bool(abs(value - expected) < 1e-6)
    if numpy is not None and type(value) is numpy.ndarray:
        return bool(numpy.allclose(value, expected))
    raise ValueError(f"Unsupported type {type(value)}")
