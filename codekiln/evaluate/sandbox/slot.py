"""A slot: one guardian with two fork servers, for programs and for tests. Used by one thread of the evaluator."""

import contextlib
import dataclasses
import importlib.util
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

from codekiln.evaluate.programs import Mode, PrintingProgram, Program, TestedProgram, Verdict
from codekiln.evaluate.sandbox.messages import Channel, MessageError
from codekiln.evaluate.sandbox.printed import is_printed_equal

Level = Literal["namespaces", "landlock", "limits"]

START_SECONDS = 60.0  # for an interpreter to start, on a loaded machine
END_SECONDS = 10.0
STDERR_CHARACTERS = 2000
RELEASED_MARGIN_SECONDS = 2.0  # the published MTPB harness interrupts a program and then still compares
SCORED = ("passed", "failed", "timeout", "memory", "output", "exited", "crashed")
ISOLATED = ("-s", "-S", "-P")  # as -I -S, but reads PYTHONHASHSEED; no other variable is set
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from codekiln.evaluate.sandbox.guardian import main; del sys.path[0]; "
    "main([int(fd) for fd in sys.argv[3:]], int(sys.argv[2]))"
)


class RefusedError(Exception):
    """The level is not possible here. The message is what the system reported."""


@dataclass(frozen=True, kw_only=True)
class SlotSettings:
    level: Level
    packages: tuple[str, ...]
    memory_bytes: int


class Slot:
    """Starts its processes when it is made. Raises RefusedError."""

    def __init__(self, settings: SlotSettings) -> None:
        self.settings = settings
        self._is_ended = False
        self._start()

    def _start(self) -> None:
        needs_scratch = self.settings.level != "namespaces"
        self._scratch = tempfile.mkdtemp(prefix="codekiln-sandbox-") if needs_scratch else ""
        pairs = [socket.socketpair() for _ in range(2)]
        self._programs, self._tests = (Channel(ours) for ours, _ in pairs)
        theirs = [end.fileno() for _, end in pairs]
        command = [
            sys.executable,
            *ISOLATED,
            "-c",
            START,
            str(Path(__file__).parents[3]),
            str(os.getpid()),
            *map(str, theirs),
        ]
        self._guardian = subprocess.Popen(
            command,
            env={"PYTHONHASHSEED": "0"},  # sets have the same order in all processes
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
            start_new_session=True,  # Ctrl-C on the terminal is for the evaluator
        )
        for _, end in pairs:
            end.close()
        for channel in (self._programs, self._tests):
            channel.socket.settimeout(START_SECONDS)
        try:
            self._programs.send(self._server_settings())
            for channel in (self._programs, self._tests):
                reply = channel.receive()
                if "refused" in reply:
                    raise RefusedError(reply["refused"])
                channel.socket.settimeout(None)
        except (OSError, EOFError, MessageError) as error:
            self.close()
            raise RefusedError(f"a process of the sandbox ended while it started: {error}") from None
        except BaseException:
            self.close()
            raise

    def _server_settings(self) -> dict[str, Any]:
        paths = sysconfig.get_paths()
        folders = [paths["purelib"], paths["platlib"]] if self.settings.packages else []
        package_folders = list(dict.fromkeys(folder for folder in folders if Path(folder).is_dir()))
        interpreter = [paths["stdlib"], paths["platstdlib"], str(Path(sys.base_prefix, "lib"))]
        return {
            "level": self.settings.level,
            "scratch": self._scratch,
            "memory_bytes": self.settings.memory_bytes,
            "packages": self.settings.packages,
            "package_folders": package_folders,
            "readable": list(dict.fromkeys(path for path in (*interpreter, *package_folders) if Path(path).is_dir())),
        }

    def judge(self, program: Program, *, split: bool) -> Verdict:
        """Judges one program. If a process of the slot dies, the program crashed, and the slot starts again."""
        try:
            match program:
                case TestedProgram():
                    return self._judge_split(program) if split else self._judge_compat(program)
                case PrintingProgram():
                    return self._judge_printing(program)
                case _:
                    assert_never(program)
        except (OSError, EOFError, MessageError, KeyError):
            self.close()
            if not self._is_ended:
                self._start()
            mode: Mode = "printed" if isinstance(program, PrintingProgram) else "split" if split else "compat"
            return Verdict(status="crashed", error="a process of the sandbox ended", mode=mode)

    def _judge_compat(self, program: TestedProgram, fallback: str = "") -> Verdict:
        code = "\n".join((program.source, *filter(None, (program.setup,)), program.tests))
        self._programs.send({"kind": "compat", "code": code, "cpu_seconds": program.cpu_seconds})
        return dataclasses.replace(verdict(self._programs.receive()), fallback=fallback)

    def _judge_split(self, program: TestedProgram) -> Verdict:
        code = "\n".join(filter(None, (program.setup, program.tests)))
        one, other = socket.socketpair()
        with one, other:
            job = {"kind": "serve", "code": program.source, "cpu_seconds": program.cpu_seconds}
            self._programs.send(job, [one.fileno()])
            job = {
                "kind": "test",
                "code": code,
                "helpers": program.helpers,
                "functions": program.functions,
                "cpu_seconds": program.cpu_seconds,
            }
            self._tests.send(job, [other.fileno()])
        tested = self._tests.receive()
        # A program that ended has left its report, or will in a moment.
        self._programs.send({"stop": END_SECONDS if tested["status"] == "gone" else 0})
        served = self._programs.receive()
        if tested["status"] == "unsupported":
            return self._judge_compat(program, fallback=tested["error"])
        # If the program did not outlive its tests, its own status is the reason.
        blamed = tested if served["status"] == "stopped" or tested["status"] in ("passed", "failed") else served
        if blamed["status"] == "gone":
            blamed = {"status": "exited", "error": "closed its connection to the tests"}
        reply = blamed | {"cpu_seconds": tested["cpu_seconds"] + served["cpu_seconds"], "stderr": served["stderr"]}
        return dataclasses.replace(verdict(reply), mode="split")

    def _judge_printing(self, program: PrintingProgram) -> Verdict:
        job = {"kind": "print", "code": program.source, "cpu_seconds": program.cpu_seconds}
        if program.checker == "released":
            job |= {
                "kind": "print-released",
                "expected": program.expected,
                "alarm_seconds": program.cpu_seconds,
                "cpu_seconds": program.cpu_seconds + RELEASED_MARGIN_SECONDS,
            }
        self._programs.send(job)
        reply = self._programs.receive()
        if reply["status"] == "printed":
            reply |= compare(reply["printed"], program.expected)
        if reply["status"] == "unscored" and not self._is_missing(reply["error"]):
            reply |= {"status": "failed", "error": f"no module named {reply['error']}"}
        return dataclasses.replace(verdict(reply, may_be_unscored=True), mode="printed")

    def _is_missing(self, package: str) -> bool:
        """Whether programs may import a package that is not installed."""
        return package in self.settings.packages and importlib.util.find_spec(package) is None

    def end(self) -> None:
        """Ends the program that runs, from any thread. The slot does not start again."""
        self._is_ended = True
        for channel in (self._programs, self._tests):
            with contextlib.suppress(OSError):
                channel.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends all processes of the slot, and removes its files."""
        for channel in (self._programs, self._tests):
            channel.close()
        try:
            self._guardian.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._guardian.kill()  # its servers follow it
            self._guardian.wait()


def compare(outcome: Any, expected: Any) -> dict[str, str]:
    """Status and error of a program that ran to its end, by what it printed."""
    try:
        error = str(outcome.get("error", ""))
        if outcome.get("missing") and "value" not in outcome:
            return {"status": "unscored", "error": str(outcome["missing"])}
        if "value" not in outcome:
            return {"status": "failed", "error": error or "printed nothing"}
        if is_printed_equal(outcome["value"], expected):
            return {"status": "passed", "error": error}
        return {"status": "failed", "error": error or f"printed another value: {outcome['value']!r:.200}"}
    except (AttributeError, TypeError, RecursionError):
        return {"status": "failed", "error": "wrote to the sandbox's pipe"}


def verdict(reply: dict[str, Any], *, may_be_unscored: bool = False) -> Verdict:
    """A program may have written any report: it must not choose to be left out of the score."""
    status, error = reply["status"], reply["error"]
    if status not in SCORED and not (status == "unscored" and may_be_unscored):
        status, error = "failed", "wrote to the sandbox's pipe"
    return Verdict(
        status=status,
        error=error,
        cpu_seconds=reply["cpu_seconds"],
        stderr=reply["stderr"][-STDERR_CHARACTERS:],
    )
