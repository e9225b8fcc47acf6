"""Programs to run and their verdicts. The problems make them, the sandbox runs them. Needs no PyTorch."""

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "timeout", "memory", "output", "exited", "crashed", "unscored"]
"""
passed    the tests ended without an exception
failed    the program or a test raised an exception
timeout   the program used its processor time, or its wall time, up
memory    it asked for more memory than it may have
output    it wrote more than it may
exited    it ended the process before the tests ended
crashed   a signal ended it
unscored  the program was not judged, through no fault of its own: it counts neither as right nor as wrong
"""

Mode = Literal["split", "compat", "printed"]
"""
split    the tests ran in a process that never saw the program, and only data came back
compat   source, setup and tests ran as one program, as the official harnesses do it; a program can fake that it passes
printed  the last value that the program printed was compared
"""


@dataclass(frozen=True, kw_only=True)
class TestedProgram:
    """A program with tests of the benchmark: it passes if both run without an exception.

    `source` is all text that the model may have changed: the prompt, its completion and the suffix. `setup` and `tests` are
    code of the benchmark that runs after it. `functions` are the names of `source` that `tests` calls; others are found, too,
    unless they are names of Python such as `sum`. `helpers` are definitions of the prompt that `tests` use: split mode takes
    them from here and not from `source`.
    """

    __test__ = False  # pytest takes classes whose name begins with "Test" for its own

    source: str
    tests: str
    setup: str = ""
    helpers: str = ""
    functions: tuple[str, ...] = ()
    cpu_seconds: float = 3.0


@dataclass(frozen=True, kw_only=True)
class PrintingProgram:
    """A program of MTPB: it passes if the value that it prints last equals `expected`.

    `checker` is "released", with the faults of the published one, or "fixed".
    """

    source: str
    expected: Any  # as JSON has it
    checker: Literal["released", "fixed"] = "fixed"
    cpu_seconds: float = 20.0


Program = TestedProgram | PrintingProgram


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a program did. `error` is the last line of its traceback, or what was exceeded.

    `mode` is how it was judged. If that is "compat" although "split" was wanted, `fallback` is the reason, a property of the
    tests.
    """

    status: Status
    error: str = ""
    cpu_seconds: float = 0.0
    mode: Mode = "compat"
    fallback: str = ""
    stderr: str = ""  # the end of what it wrote, at most 2,000 characters

    @property
    def is_passed(self) -> bool:
        return self.status == "passed"
