"""Problems with programs, of which the reference is known to pass."""

from collections.abc import Iterator, Sequence

from codekiln.evaluate.problems.doctests import DoctestHoleProblem
from codekiln.evaluate.programs import Program
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.progress import progress_bar


def verified(problems: Sequence[DoctestHoleProblem], sandbox: Sandbox) -> list[DoctestHoleProblem]:
    """The problems whose reference passes and whose failing line does not: the others judge no answer."""

    def programs() -> Iterator[tuple[int, Program]]:
        for number, problem in enumerate(problems):
            yield 2 * number, problem.program(problem.reference)
            yield 2 * number + 1, problem.program(problem.failing_answer)

    statuses: dict[int, str] = {}
    with progress_bar("Check references", 2 * len(problems)) as progress, sandbox:
        for number, verdict in sandbox.judge(programs()):
            statuses[number] = verdict.status
            progress.advance(1)
    return [
        problem
        for number, problem in enumerate(problems)
        if statuses[2 * number] == "passed" and statuses[2 * number + 1] not in ("passed", "unscored")
    ]
