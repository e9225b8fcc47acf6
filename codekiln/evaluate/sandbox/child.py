"""The child that runs one program: its limits, its filter, and how it proves that it ran to its end.

Compat mode is in this file: one exec of source, setup and tests, as HumanEval's own harness does it. The other kinds of jobs
are in `split` and `printing`, and run through `run_to_its_end`, too, wherever a verdict "passed" depends on it.
"""

import json
import operator
import os
import signal
import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from itertools import starmap
from types import FunctionType
from typing import Any, NoReturn

from codekiln.evaluate.sandbox import printing, split
from codekiln.evaluate.sandbox.limits import limit_cpu
from codekiln.evaluate.sandbox.messages import Channel
from codekiln.evaluate.sandbox.seccomp import assemble, install, program_filter
from codekiln.evaluate.sandbox.syscalls import PR_SET_PDEATHSIG, prctl

MAX_ERROR_CHARACTERS = 500
REPORTED = ("failed", "memory", "exited", "gone", "unsupported", "unscored", "printed")  # never "passed"
MAX_DESCRIPTOR = 1 << 16
PID_MARK = 0x7EADBEEF
_filter: list[bytes] = []  # the assembled filter, around the places of the process number


def prepare_filter() -> None:
    """Assembles the filter of programs once. Only the process number is missing in it."""
    _filter[:] = assemble(program_filter(PID_MARK)).split(PID_MARK.to_bytes(4, "little"))


def refusing_hook() -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses to show objects and frames of others, and to trace.

    It has globals of its own, because an exception that it raises shows them.
    """
    return FunctionType(refuse.__code__, {"__builtins__": {"RuntimeError": RuntimeError}})


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {
        "gc.get_objects",
        "gc.get_referrers",
        "gc.get_referents",
        "sys._current_frames",
        "sys._current_exceptions",
        "sys.settrace",
        "sys.setprofile",
    }:
        raise RuntimeError(f"{event} is not available in the sandbox")


def main(
    job: dict[str, Any],
    held: list[bytes],
    results: int,
    outputs: int,
    errors: int,
    links: list[int],
    *,
    level: str,
) -> NoReturn:
    """Runs the job in the forked process. `held` has the nonce, and is empty when the program starts."""
    try:
        keep_descriptors(outputs, errors, [results, *links])
        limit_cpu(job["cpu_seconds"])
        if level != "namespaces":  # there, programs end with the first process of their namespace
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if level != "limits":
            install(os.getpid().to_bytes(4, "little").join(_filter))
        run(job, held, results, links)
    except BaseException as error:
        report_exception(results, error)
    os._exit(0)


def keep_descriptors(outputs: int, errors: int, kept: list[int]) -> None:
    """Closes all descriptors but those of the program. The server's channel must not be one of them: it carries verdicts."""
    os.dup2(outputs, 1)
    os.dup2(errors, 2)
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, MAX_DESCRIPTOR)


def run(job: dict[str, Any], held: list[bytes], results: int, links: list[int]) -> None:
    kind = job["kind"]
    if kind == "compat":
        code = compile(job["code"], "<program>", "exec", dont_inherit=True)
        run_to_its_end(exec, (code, {}), results, held)
    elif kind == "print":
        held.clear()
        report(results, {"status": "printed", "printed": printing.run_and_capture(job["code"])})
    elif kind == "print-released":
        arguments = (job["code"], job["expected"], job["alarm_seconds"])
        try:
            run_to_its_end(printing.run_and_compare, arguments, results, held)
        except printing.MissingPackageError as error:
            report(results, {"status": "unscored", "error": str(error)})
    elif kind == "serve":
        held.clear()
        split.serve(Channel(socket.socket(fileno=links[0])), job["code"])
    elif kind == "test":
        tests = split.Tests(Channel(socket.socket(fileno=links[0])), job["functions"])
        try:
            run_to_its_end(tests.run, (job["code"], job["helpers"]), results, held)
        except split.UnsupportedError as error:
            report(results, {"status": "unsupported", "error": str(error)})
        except split.ProgramEnded:
            report(results, {"status": "gone"})
    else:
        raise ValueError(f"no kind of job: {kind}")


def run_to_its_end(
    function: Callable[..., object], arguments: tuple[Any, ...], results: int, held: list[bytes]
) -> None:
    """Calls the function, and sends the nonce if it returns.

    The nonce must be out of reach of the function, which may be a program that models wrote. So both calls are made in C, by
    an iterator that is made before and holds the nonce. It is on the stack of values of this frame, which is no attribute of
    a frame and no variable; `gc`, which could find it, is refused by the audit hook; descriptors of the process lead only to
    the writing end of a pipe. The program ends the process, raises, or returns: only then is the second call made, without
    any line of Python in between. Native code in the program could search the memory; "split" mode is for that.
    """
    deque(prepared(function, arguments, results, held), 0)


def prepared(
    function: Callable[..., object], arguments: tuple[Any, ...], results: int, held: list[bytes]
) -> Iterator[object]:
    return starmap(operator.call, [(function, *arguments), (os.write, results, held.pop())])


def report(results: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    while data:
        data = data[os.write(results, data) :]


def report_exception(results: int, error: BaseException) -> None:
    """Reports how a program failed, and prints its traceback."""
    status = "exited" if isinstance(error, SystemExit) else "memory" if isinstance(error, MemoryError) else "failed"
    text = describe(error)
    try:
        report(results, {"status": status, "error": text})
        os.write(2, traceback_of_program(error).encode("utf-8", "replace")[-4000:])
    except BaseException:
        os._exit(1)


def traceback_of_program(error: BaseException) -> str:
    """A traceback without the frames of the sandbox."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<"):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace, limit=-4))


def describe(error: BaseException) -> str:
    """The last line of a traceback. The class of the error may be the program's."""
    try:
        text = str(error).strip()
    except BaseException:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}"[:MAX_ERROR_CHARACTERS] if text else name


def read_report(data: bytes) -> dict[str, Any]:
    """What a child reported, read in the fork server. The program may have written it: it can say all but "passed"."""
    try:
        message = json.loads(data)
        status, error = message["status"], str(message.get("error", ""))[:MAX_ERROR_CHARACTERS]
        if status in REPORTED:
            return {"status": status, "error": error, "printed": message.get("printed")}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return {"status": "failed", "error": "wrote to the sandbox's pipe"}
