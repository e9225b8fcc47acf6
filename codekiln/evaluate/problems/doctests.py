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


def doctest_tests(docstring: str, name: str) -> str:
    """Code that runs the examples of a docstring with the names of the program. It fails if there are none."""
    return (
        "import doctest as _doctest\n"
        f"_examples = _doctest.DocTestParser().get_doctest({docstring!r}, dict(globals()), {name!r}, None, None)\n"
        "_runner = _doctest.DocTestRunner(verbose=False)\n"
        "_runner.run(_examples, out=lambda text: None)\n"
        "assert _runner.tries > 0 and _runner.failures == 0, f'{_runner.failures} of {_runner.tries} examples failed'\n"
    )
