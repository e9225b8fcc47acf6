"""What an attack is."""

from dataclasses import dataclass
from typing import Literal

from codekiln.evaluate.programs import Status, TestedProgram

Kind = Literal["fake success", "exhaustion", "escape", "kernel surface", "legitimate"]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A program and the statuses that it may end with. `fakes_compat` is true if compat mode cannot help being fooled."""

    name: str
    kind: Kind
    program: TestedProgram
    expected: frozenset[Status]
    fakes_compat: bool = False


WRONG: frozenset[Status] = frozenset({"failed", "timeout", "memory", "output", "exited", "crashed"})
RIGHT: frozenset[Status] = frozenset({"passed"})
