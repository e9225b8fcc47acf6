"""The process between the evaluator and the fork servers of a slot: confines them, and outlives neither.

It is the only process that the evaluator starts. It forks the fork servers, and ends them when the evaluator ends, however
that happens: it waits on the evaluator's process itself, not on a pipe that other processes may also hold.
"""

import os
import select
import signal
import socket
import sys
from typing import Any

from codekiln.evaluate.sandbox.landlock import landlock_abi
from codekiln.evaluate.sandbox.messages import Channel
from codekiln.evaluate.sandbox.namespaces import PROGRAM_USER, build_tree, enter
from codekiln.evaluate.sandbox.scratch import clear
from codekiln.evaluate.sandbox.server import Confinement, ForkServer

PROGRAM_FOLDER, TESTS_FOLDER = "/tmp", "/tests"  # noqa: S108  # in the tree of namespaces
LIBRARIES = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def main(control_fds: list[int], evaluator: int) -> None:
    """Runs until the evaluator ends or closes the slot. One fork server listens on each of `control_fds`."""
    evaluator_fd = os.pidfd_open(evaluator)
    if os.getppid() != evaluator:
        return
    channels = [Channel(socket.socket(fileno=fd), takes_descriptors=True) for fd in control_fds]
    settings = channels[0].receive()
    scratch: str = settings["scratch"]
    try:
        confinement, reason = confine(settings)
        if confinement is None:
            channels[0].send({"refused": reason})
            return
        servers = [start(channels, k, confinement, settings, evaluator_fd) for k in range(len(channels))]
        for channel in channels:
            channel.close()
        waits = [evaluator_fd, *(os.pidfd_open(server) for server in servers)]
        poll = select.poll()
        for descriptor in waits:
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        for server in servers:
            os.kill(server, signal.SIGKILL)
        # Process 1 of a namespace ends only after all others in it have been waited for.
        for server in reversed(servers):
            os.waitpid(server, 0)
    finally:
        if scratch:
            clear(scratch)
            os.rmdir(scratch)


def confine(settings: dict[str, Any]) -> tuple[Confinement | None, str]:
    """Enters namespaces if wanted. Returns how servers confine themselves, or None and the reason why that is impossible."""
    readable = (*settings["readable"], *LIBRARIES)
    if settings["level"] == "limits":
        return Confinement(level="limits", readable=(), folders=(settings["scratch"],) * 2), ""
    try:
        landlock_abi()
        has_landlock, why = True, ""
    except OSError as error:
        has_landlock, why = False, str(error)
    if settings["level"] == "namespaces":
        try:
            own_user = enter()
            build_tree(readable, (PROGRAM_FOLDER, TESTS_FOLDER), PROGRAM_USER)
        except OSError as error:
            return None, str(error)
        return (
            Confinement(
                level="namespaces",
                readable=(*readable, *DEVICES),
                folders=(PROGRAM_FOLDER, TESTS_FOLDER),
                has_landlock=has_landlock,
                user=PROGRAM_USER if own_user else None,
            ),
            "",
        )
    if not has_landlock:
        return None, why
    folders = tuple(os.path.join(settings["scratch"], name) for name in ("program", "tests"))
    for folder in folders:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    unreadable = [path for path in settings["readable"] if not os.access(path, os.R_OK | os.X_OK)]
    if unreadable:
        return None, f"the interpreter's {unreadable[0]} is not readable"
    return Confinement(level="landlock", readable=(*readable, *DEVICES), folders=folders, has_landlock=True), ""


def start(
    channels: list[Channel], k: int, confinement: Confinement, settings: dict[str, Any], evaluator_fd: int
) -> int:
    """Forks a server that listens on channel `k`. The first one has process number 1 in its namespace."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(evaluator_fd)
        for n, channel in enumerate(channels):
            if n != k:
                channel.close()
        server = ForkServer(channels[k], confinement, folder=confinement.folders[k], settings=settings)
        server.confine()
        server.serve()
    except EOFError:
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        try:
            channels[k].send({"refused": f"{type(error).__name__}: {error}"})
        except OSError:
            os._exit(1)
        os._exit(1)
    os._exit(0)
