"""Landlock: which files this process and its children may read and write, by kernel and without privileges."""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from codekiln.evaluate.sandbox.syscalls import PR_SET_NO_NEW_PRIVS, prctl, system_call

# linux/landlock.h
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_FIFO, MAKE_SYM, REFER = (
    1 << 4,
    1 << 5,
    1 << 7,
    1 << 8,
    1 << 10,
    1 << 12,
    1 << 13,
)
ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # by the first ABI that has them
READING = READ_FILE | READ_DIR
WRITING = (
    READING | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER
)


def landlock_abi() -> int:
    """The version of Landlock in this kernel. Raises OSError if there is none, or if it is switched off."""
    return system_call("landlock_create_ruleset", 0, 0, 1)


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """From now on, only these folders and files can be opened, made or removed. Missing ones are left out.

    Files are never executed. TCP is refused from ABI 4 on, signals to others and abstract sockets from ABI 6 on: the
    filter of system calls refuses them, too. Raises OSError.
    """
    abi = landlock_abi()
    rights = ALL_RIGHTS[max(version for version in ALL_RIGHTS if version <= abi)]
    # handled_access_fs, handled_access_net (bind, connect), scoped (abstract sockets, signals)
    attributes = struct.pack("<QQQ", rights, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = system_call("landlock_create_ruleset", ctypes.c_char_p(attributes), len(attributes), 0)
    for paths, allowed in ((readable, READING), (writable, WRITING)):
        for path in paths:
            add_rule(ruleset, path, allowed & rights)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    system_call("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def add_rule(ruleset: int, path: str, allowed: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        allowed &= READ_FILE | WRITE_FILE | TRUNCATE
    rule = struct.pack("<Qi", allowed, place)  # struct landlock_path_beneath_attr, packed
    system_call("landlock_add_rule", ruleset, 1, ctypes.c_char_p(rule), 0)
    os.close(place)
