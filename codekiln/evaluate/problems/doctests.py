"""Holes in documents whose doctests run the hole: infilling that a program judges, made from any Python code."""

from dataclasses import dataclass

from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.evaluate.programs import TestedProgram

CPU_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class DoctestHoleProblem(HoleProblem):
    """A line of a function whose docstring has examples. `before` and `after` are the whole document around it.

    The examples judge an answer only if they run the line. To know it, two programs are run first: that of `reference` must
    pass, and that of `failing_answer` must fail.
    """

    before: str
    after: str
    tests: str
    functions: tuple[str, ...]

    @property
    def failing_answer(self) -> str:
        """A line that raises an exception where the hole is."""
        indentation = self.reference[: len(self.reference) - len(self.reference.lstrip())]
        return f"{indentation}raise AssertionError('the line was run')\n"

    def program(self, answer: str) -> TestedProgram:
        return TestedProgram(
            source=self.before + answer + self.after,
            tests=self.tests,
            functions=self.functions,
            cpu_seconds=CPU_SECONDS,
        )


# Runs examples as doctest does, without its debugger, which a sandbox does not allow. `_docstring` is set before.
_RUNNER = """
import contextlib as _contextlib, doctest as _doctest, io as _io, traceback as _traceback
_examples = _doctest.DocTestParser().get_examples(_docstring)
_names, _failures = dict(globals()), []
for _example in _examples:
    _found, _raised = _io.StringIO(), None
    try:
        with _contextlib.redirect_stdout(_found):
            exec(compile(_example.source, "<example>", "single"), _names)
    except Exception as _error:
        _raised = "".join(_traceback.format_exception_only(_error))
    _flags = sum(_flag for _flag, _is_on in _example.options.items() if _is_on)
    _checker = _doctest.OutputChecker()
    if _example.exc_msg is not None:
        _is_right = _raised is not None and _checker.check_output(_example.exc_msg, _raised, _flags)
    else:
        _is_right = _raised is None and _checker.check_output(_example.want, _found.getvalue(), _flags)
    if not _is_right:
        _failures.append(_example.source)
assert _examples and not _failures, f"{len(_failures)} of {len(_examples)} examples failed"
"""


def doctest_tests(docstring: str) -> str:
    """Code that runs the examples of a docstring with the names of the program. It fails if there are none."""
    return f"_docstring = {docstring!r}\n{_RUNNER}"
