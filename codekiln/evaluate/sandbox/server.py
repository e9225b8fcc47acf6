"""The fork server of a slot: forks one child per program, watches it, and reports what it did.

It holds the nonce of a program, which only a program that ran to its end sends back (see `child.run_to_its_end`). The exit
status of a child never decides: everything but the nonce is some kind of failure.
"""

import errno
import gc
import importlib
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from codekiln.evaluate.sandbox import child
from codekiln.evaluate.sandbox.landlock import restrict
from codekiln.evaluate.sandbox.limits import (
    KEPT_STDERR_CHARACTERS,
    MAX_OUTPUT_BYTES,
    MAX_REPORT_BYTES,
    limit_server,
    wall_seconds,
)
from codekiln.evaluate.sandbox.messages import Channel
from codekiln.evaluate.sandbox.scratch import clear
from codekiln.evaluate.sandbox.seccomp import assemble, install, server_filter
from codekiln.evaluate.sandbox.syscalls import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, drop_capabilities, prctl

NONCE_BYTES = 16
# What most programs import. Each module, and even more each library behind it, makes every fork slower.
PREIMPORTED = (
    "bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "operator", "random", "re", "string", "time",
    "typing",
)  # fmt: skip

# The libraries of numpy would start a thread per processor when they are loaded.
SINGLE_THREADED = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR")}


@dataclass(frozen=True)
class Confinement:
    """How a fork server confines itself before it reads its first program."""

    level: str
    readable: tuple[str, ...]
    folders: tuple[str, ...]  # of programs and of tests: the only writable ones
    has_landlock: bool = False
    user: int | None = None  # the user to become, if the guardian may choose one


class PackageFinder:
    """Finds the packages that programs may import, so that a verdict does not depend on what else is installed.

    What a package imports itself is found while the server imports the package.
    """

    def __init__(self, packages: list[str], folders: list[str]) -> None:
        self.packages = packages
        self.folders = folders
        self.is_open = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if path is None and (self.is_open or name in self.packages):
            return PathFinder.find_spec(name, self.folders)
        return None


class ForkServer:
    def __init__(self, channel: Channel, confinement: Confinement, *, folder: str, settings: dict[str, Any]) -> None:
        self.channel = channel
        self.confinement = confinement
        self.folder = folder
        self.settings = settings
        self.packages: dict[str, bool] = {}  # by name: whether it is installed
        self.finder = PackageFinder(settings["packages"], settings["package_folders"])

    def confine(self) -> None:
        """Imports, then gives up all rights that serving does not need, in the order that leaves them until then."""
        for name in PREIMPORTED:
            importlib.import_module(name)
        os.chdir(self.folder)
        os.umask(0o077)
        sys.meta_path.append(self.finder)
        if self.confinement.user is not None:
            os.setgroups([])
            os.setresgid(*(self.confinement.user,) * 3)
            os.setresuid(*(self.confinement.user,) * 3)
        is_bare = self.confinement.level == "limits"
        if not is_bare:
            drop_capabilities()
            prctl(PR_SET_DUMPABLE, 0)
            child.prepare_filter()
        if self.confinement.has_landlock:
            restrict(self.confinement.readable, (self.folder, "/dev/null"))
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        limit_server(self.settings["memory_bytes"], own_user=self.confinement.user is not None)
        os.environ.clear()
        if not is_bare:
            install(assemble(server_filter()))
        # Frames and objects are where a program would look for the nonce. No hook can be removed.
        sys.addaudithook(child.refusing_hook())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Programs import their own.
        for name in [name for name in sys.modules if name.startswith(("codekiln", "ctypes"))]:
            del sys.modules[name]
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Judges programs until the evaluator closes the channel."""
        self.channel.send({"level": self.confinement.level})
        while True:
            job = self.channel.receive()
            if "stop" not in job:  # the child that it stops has ended
                links, self.channel.descriptors = self.channel.descriptors, []
                reply = self.judge(job, links)
                self.clean()
                self.channel.send(reply)

    def judge(self, job: dict[str, Any], links: list[int]) -> dict[str, Any]:
        """Forks a child for the job and waits for it."""
        self.import_packages(job["code"])
        results, result_end = os.pipe()
        outputs, output_end = os.pipe()
        errors, error_end = os.pipe()
        nonce = os.urandom(NONCE_BYTES)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            held = [nonce]  # emptied before the program runs: frames below the program's are within its reach
            del nonce
            child.main(job, held, result_end, output_end, error_end, links, level=self.confinement.level)
        for descriptor in (result_end, output_end, error_end, *links):
            os.close(descriptor)
        watch = Watch(pid, nonce, job["cpu_seconds"], started, results, outputs, errors, self.channel)
        try:
            return watch.until_it_ends()
        finally:
            for descriptor in (results, outputs, errors):
                os.close(descriptor)

    def import_packages(self, code: str) -> None:
        """Imports a package once a program names it, so that later programs have it without its start-up time."""
        for name in self.settings["packages"]:
            if name not in self.packages and name in code:
                self.finder.is_open = True
                os.environ.update(SINGLE_THREADED)
                try:
                    importlib.import_module(name)
                    self.packages[name] = True
                except ImportError:
                    self.packages[name] = False
                self.finder.is_open = False
                os.environ.clear()
                gc.freeze()

    def clean(self) -> None:
        """Removes the files of a program. If that fails, the server ends, and with it all it has."""
        clear(self.folder)


class Watch:
    """One child, from its fork to its end."""

    def __init__(
        self,
        pid: int,
        nonce: bytes,
        cpu_seconds: float,
        started: float,
        results: int,
        outputs: int,
        errors: int,
        channel: Channel,
    ) -> None:
        self.pid = pid
        self.nonce = nonce
        self.cpu_seconds = cpu_seconds
        self.deadline = started + wall_seconds(cpu_seconds)
        self.results, self.outputs, self.errors = results, outputs, errors
        self.channel = channel
        self.result = b""
        self.stderr = b""
        self.n_output = 0
        self.is_stopping = False
        self.cpu_clock = (~pid << 3) | 2  # the kernel's number of a process' clock (CPUCLOCK_SCHED)

    def until_it_ends(self) -> dict[str, Any]:
        cause = ""
        try:
            cause = self.wait()
        finally:
            os.kill(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        self.drain_errors()
        stderr = self.stderr.decode("utf-8", "replace")[-KEPT_STDERR_CHARACTERS:]
        reply = {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "stderr": stderr,
            "error": "",
            "n_output": self.n_output,
        }
        return reply | self.outcome(cause, status)

    def wait(self) -> str:
        """Waits for the end of the child. Returns the limit that it exceeded, or "". Raises EOFError with the evaluator."""
        poll = select.poll()
        for descriptor in (self.results, self.outputs, self.errors, self.channel.socket.fileno()):
            poll.register(descriptor, select.POLLIN)
        remaining = self.cpu_seconds
        while True:
            wall = self.deadline - time.monotonic()
            if wall <= 0:
                return "stop" if self.is_stopping else "wall"
            for descriptor, _ in poll.poll(1000 * min(max(remaining, 0.005), wall)):
                if descriptor == self.results:
                    data = os.read(descriptor, 1 << 16)
                    self.result += data
                    if not data or self.result == self.nonce or len(self.result) > MAX_REPORT_BYTES:
                        return ""
                elif descriptor == self.channel.socket.fileno():
                    self.channel.fill()
                    message = self.channel.take()
                    if message is not None:
                        self.is_stopping = True
                        self.deadline = min(self.deadline, time.monotonic() + message[0]["stop"])
                else:
                    data = os.read(descriptor, 1 << 16)
                    if not data:
                        poll.unregister(descriptor)
                    self.n_output += len(data)
                    if descriptor == self.errors:
                        self.stderr = (self.stderr + data)[-4 * KEPT_STDERR_CHARACTERS :]
                    if self.n_output > MAX_OUTPUT_BYTES:
                        return "output"
            remaining = self.cpu_seconds - self.used()
            if remaining <= 0:
                return "cpu"

    def used(self) -> float:
        """Processor seconds of all threads of the child so far."""
        try:
            return time.clock_gettime(self.cpu_clock)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ESRCH):
                raise
            return 0.0  # it has ended

    def drain_errors(self) -> None:
        """What the dead child left in its pipe of errors."""
        os.set_blocking(self.errors, False)
        try:
            while data := os.read(self.errors, 1 << 16):
                self.stderr = (self.stderr + data)[-4 * KEPT_STDERR_CHARACTERS :]
        except BlockingIOError:
            pass

    def outcome(self, cause: str, status: int) -> dict[str, Any]:
        if self.result == self.nonce:
            return {"status": "passed"}
        if cause == "cpu" or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            return {"status": "timeout", "error": f"used more than {self.cpu_seconds:g} s of processor time"}
        if cause == "wall":
            return {"status": "timeout", "error": f"ran for more than {wall_seconds(self.cpu_seconds):g} s"}
        if cause == "output":
            return {"status": "output", "error": f"wrote more than {MAX_OUTPUT_BYTES} bytes"}
        if cause == "stop":
            return {"status": "stopped"}
        if self.result:
            return child.read_report(self.result)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            return {"status": "crashed", "error": f"ended by {signal.Signals(os.WTERMSIG(status)).name}"}
        # The pipe of results ended: the process exited, closed it, or was killed because the machine has no memory left.
        if os.WIFEXITED(status):
            return {"status": "exited", "error": f"exited with status {os.WEXITSTATUS(status)}"}
        return {"status": "crashed", "error": "ended by SIGKILL"}
