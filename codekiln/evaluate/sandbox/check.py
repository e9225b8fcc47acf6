"""Runs the attacks, so that a user knows what the sandbox does on this machine."""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from codekiln.errors import ConfigError
from codekiln.evaluate.programs import Verdict
from codekiln.evaluate.sandbox.attacks import escapes, exhaustion, fakes, legitimate
from codekiln.evaluate.sandbox.attacks.attack import Attack, Kind
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.evaluate.sandbox.slot import Level

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """The attacks of one kind. `wrong` names those whose verdict is not the expected one."""

    kind: Kind
    n_attacks: int
    n_as_expected: int
    wrong: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SandboxCheck:
    """The result of `check_sandbox`."""

    level: Level
    mode: Literal["split", "compat"]
    rows: tuple[CheckRow, ...]

    @property
    def is_passed(self) -> bool:
        return not any(row.wrong for row in self.rows)


def check_sandbox(
    *,
    slots: int | None = None,
    mode: Literal["split", "compat"] = "split",
    level: Level | Literal["auto"] = "auto",
    kinds: Sequence[Kind] = KINDS,
) -> SandboxCheck:
    """Runs all attacks of some kinds. Takes about 15 seconds on two cores. Raises ConfigError if the level is not possible.

    In compat mode, fake successes that no harness of that mode can see are expected to pass.
    """
    if level == "limits":
        raise ConfigError(
            'The level "limits" confines nothing: its check would harm this machine. Check another level.'
        )
    with set_bait() as bait, Sandbox(slots=slots, mode=mode, level=level) as sandbox:
        every = (*exhaustion.attacks(), *fakes.attacks(), *escapes.attacks(bait), *legitimate.attacks())
        chosen = [attack for attack in every if attack.kind in kinds]
        verdicts = dict(sandbox.judge((k, attack.program) for k, attack in enumerate(chosen)))
        level = sandbox.level
        rows = []
        for kind in kinds:
            found = [(attack, verdicts[k]) for k, attack in enumerate(chosen) if attack.kind == kind]
            wrong = [describe(attack, verdict) for attack, verdict in found if not is_expected(attack, verdict, mode)]
            if kind == "escape":
                wrong += changes(bait)
            rows.append(
                CheckRow(kind=kind, n_attacks=len(found), n_as_expected=len(found) - len(wrong), wrong=tuple(wrong))
            )
    return SandboxCheck(level=level, mode=mode, rows=tuple(rows))


def is_expected(attack: Attack, verdict: Verdict, mode: str) -> bool:
    if attack.fakes_compat and mode == "compat":
        return verdict.is_passed
    return verdict.status in attack.expected


def describe(attack: Attack, verdict: Verdict) -> str:
    return f"{attack.name}: {verdict.status} {verdict.error}".rstrip()


@contextmanager
def set_bait() -> Iterator[escapes.Bait]:
    """Files, a process and sockets that programs must not reach."""
    with (
        tempfile.TemporaryDirectory(prefix="codekiln-bait-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        path = str(Path(folder, "socket"))
        for one, address in ((named, path), (abstract, f"\0{path}"), (datagram, f"{path}.datagram")):
            one.bind(address)
        named.listen()
        abstract.listen()
        for name in ("secret.txt", "victim.txt"):
            Path(folder, name).write_text("secret", encoding="utf-8")
        try:
            yield escapes.Bait(folder=folder, pid=process.pid, port=server.getsockname()[1], socket=path)
        finally:
            process.kill()


def changes(bait: escapes.Bait) -> list[str]:
    """What is not as `set_bait` left it, seen from outside."""
    folder = Path(bait.folder)
    names = sorted(path.name for path in folder.iterdir())
    if names != ["secret.txt", "socket", "socket.datagram", "victim.txt"]:
        return [f"the files in the bait are {names}"]
    secret = folder / "secret.txt"
    is_same = secret.read_text(encoding="utf-8") == "secret" and secret.stat().st_mtime > 0
    return [] if is_same else ["the file in the bait was changed"]
