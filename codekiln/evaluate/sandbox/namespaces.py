"""Namespaces: a file system, a network, process numbers and users of the sandbox's own.

The tree has the interpreter, its libraries, three devices and empty folders for files of programs. It has no /proc.
"""

import ctypes
import os
import socket
from collections.abc import Callable, Iterable

from codekiln.evaluate.sandbox.syscalls import mount, system_call, unmount, unshare

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
PROGRAM_USER = 1000  # in the namespace
# Users of the host that a root evaluator gives programs: unused ones, so that the limit of threads counts only theirs.
HOST_USERS = (1_879_048_192, 65534)
FILES_BYTES, FILES_COUNT = 16 << 20, 1024  # in each folder that programs or tests may write to


def enter() -> bool:
    """Moves this process into new namespaces; its next child has process number 1. Raises OSError where they are forbidden.

    Returns whether programs have a user of the host of their own: only root can give them one.
    """
    user, group = os.geteuid(), os.getegid()
    own_user = False
    if user == 0:
        own_user = any(with_mapper(f"0 0 1\n{PROGRAM_USER} {other} 1\n") for other in HOST_USERS)
    if not own_user:
        unshare(NEW_USER)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{PROGRAM_USER} {user} 1\n")
        write("/proc/self/gid_map", f"{PROGRAM_USER} {group} 1\n")
    unshare(NEW_NS | NEW_PID | NEW_NET | NEW_IPC | NEW_UTS | NEW_CGROUP)
    return own_user


def with_mapper(table: str) -> bool:
    """Makes a user namespace with a map that only a process outside may write. Returns whether that worked.

    The first map that is written stays, so the attempt is made in a child first.
    """
    return in_child(lambda: map_from_outside(table)) and map_from_outside(table)


def map_from_outside(table: str) -> bool:
    ready, made = os.pipe()
    pid = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        try:
            os.close(made)
            os.read(ready, 1)
            write(f"/proc/{pid}/uid_map", table)
            write(f"/proc/{pid}/gid_map", table)
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(ready)
    unshare(NEW_USER)
    os.close(made)
    return os.waitpid(mapper, 0)[1] == 0


def in_child(action: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if action() else 1)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def write(path: str, text: str) -> None:
    place = os.open(path, os.O_WRONLY)
    try:
        os.write(place, text.encode())
    finally:
        os.close(place)


def build_tree(readable: Iterable[str], writable: Iterable[str], owner: int) -> None:
    """Makes a tree of read-only views of `readable` and empty `writable` folders, and enters it. Raises OSError."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    wanted = [path for path in (*readable, *DEVICES) if os.path.exists(path)]
    real = sorted({os.path.realpath(path) for path in wanted})
    tops = [path for path in real if not any(path.startswith(f"{other}/") for other in real)]
    places = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in tops}
    links = {path for path in wanted if os.path.realpath(path) != path}
    # The tree hides a folder of the host in this namespace only; open places stay reachable below it.
    root = next(path for path in ("/tmp", "/mnt", "/var", "/home") if os.path.isdir(path))  # noqa: S108
    mount("sandbox", root, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for path, place in places.items():
        bind(place, root + path, is_folder=os.path.isdir(f"/proc/self/fd/{place}"))
    for link in sorted(links):
        if not os.path.lexists(root + link):
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            os.symlink(os.path.realpath(link), root + link)
    for path in writable:
        os.makedirs(root + path)
        options = f"mode=700,size={FILES_BYTES},nr_inodes={FILES_COUNT},uid={owner},gid={owner}"
        mount("sandbox", root + path, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(root)
    system_call("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    unmount(".", MNT_DETACH)
    os.chdir("/")
    mount("none", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    socket.sethostname("sandbox")


def bind(place: int, target: str, *, is_folder: bool) -> None:
    if is_folder:
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(f"/proc/self/fd/{place}", target, "", MS_BIND | MS_REC)
    # struct mount_attr: attr_set is MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID. Devices stay devices.
    attributes = (ctypes.c_uint64 * 4)(1 | 2, 0, 0, 0)
    path = ctypes.c_char_p(target.encode())
    system_call("mount_setattr", AT_FDCWD, path, AT_RECURSIVE, ctypes.byref(attributes), 32)
    os.close(place)
