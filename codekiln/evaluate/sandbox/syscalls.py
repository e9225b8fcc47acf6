"""System calls that Python does not have, through ctypes. Runs in the fork server: standard library only."""

import ctypes
import os
import platform
import sys

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 24, 38
ARCHITECTURES = ("x86_64", "aarch64")

# Numbers of calls by architecture, in the order of ARCHITECTURES (asm/unistd_64.h, asm-generic/unistd.h).
NUMBERS = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "seccomp": (317, 277),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}


def architecture() -> int:
    """The index of this machine in ARCHITECTURES. Raises OSError on others, and in a 32-bit interpreter."""
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in ARCHITECTURES or sys.maxsize < 2**32:
        raise OSError(f"the filter of system calls has no table for {sys.platform} on {machine}")
    return ARCHITECTURES.index(machine)


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def check(result: int, name: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def system_call(name: str, *arguments: object) -> int:
    """Calls by number. Integers are passed as 64 bits. Raises OSError."""
    assert _libc is not None
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return check(_libc.syscall(ctypes.c_long(NUMBERS[name][architecture()]), *words), name)


def prctl(option: int, value: int) -> None:
    """Raises OSError."""
    assert _libc is not None
    zero = ctypes.c_ulong(0)
    check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl({option})")


def unshare(flags: int) -> None:
    assert _libc is not None
    check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    assert _libc is not None
    texts = (source.encode(), target.encode(), kind.encode())
    check(_libc.mount(*texts, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def unmount(target: str, flags: int) -> None:
    assert _libc is not None
    check(_libc.umount2(target.encode(), flags), f"umount {target}")


def drop_capabilities() -> None:
    """Drops all capabilities, also those that a later exec could give."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # not a capability of this kernel, or not permitted: then the process has none to drop
            break
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    system_call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
