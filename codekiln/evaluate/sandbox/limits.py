"""Limits of a program, by setrlimit, and how its limits of time follow from its processor time."""

import math
import resource

MAX_FILE_BYTES = 16 << 20
MAX_OPEN_FILES = 256
MAX_THREADS = 64
MAX_OUTPUT_BYTES = 64 << 20  # of stdout and stderr together; more ends the program
MAX_REPORT_BYTES = 1 << 20  # of the value that a program printed last
KEPT_STDERR_CHARACTERS = 2000


def wall_seconds(cpu_seconds: float) -> float:
    """The backstop for programs that wait: a loaded machine must not change a verdict, so it is generous."""
    return max(10.0, 5 * cpu_seconds)


def limit_server(memory_bytes: int, *, own_user: bool) -> None:
    """Limits that the fork server sets once, and its programs inherit.

    `own_user` is true if nothing else runs as the user of the server: the kernel counts processes by user.
    """
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    lower(resource.RLIMIT_AS, memory_bytes)
    if own_user:
        lower(resource.RLIMIT_NPROC, MAX_THREADS)


def limit_cpu(cpu_seconds: float) -> None:
    """The kernel's limit is in whole seconds. It is the backstop of the server's own clock."""
    seconds = math.ceil(cpu_seconds) + 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    except ValueError:  # the whole sandbox has a lower limit
        lower(resource.RLIMIT_CPU, seconds)


def lower(kind: int, value: int) -> None:
    """Sets both limits, not above the hard limit there is."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
