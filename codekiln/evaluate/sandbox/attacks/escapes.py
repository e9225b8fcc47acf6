"""Escapes: each program raises unless it reaches something outside. It harms nothing if it does.

`{folder}` has a file `secret.txt`, `{pid}` is a process, `{port}` a TCP port, `{socket}` a Unix socket, all of the evaluator.
"""

from dataclasses import dataclass

from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.sandbox.attacks.attack import WRONG, Attack, Kind

CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"

SOURCES = {
    "reads a file": "assert open('{folder}/secret.txt').read()\n",
    "reads /etc/passwd": "assert open('/etc/passwd').read()\n",
    "reads /etc/passwd by a relative path": "assert open('../' * 20 + 'etc/passwd').read()\n",
    "lists a folder": "import os\nassert os.listdir('{folder}')\n",
    "lists the home of root": "import os\nassert os.listdir('/root') or os.listdir('/home')\n",
    "writes a file": "open('{folder}/new.txt', 'w').write('x')\n",
    "writes to another folder": (
        "import os\nopen('/var/tmp/codekiln-escape', 'w').write('x')\nos.unlink('/var/tmp/codekiln-escape')\n"
    ),
    "appends to a file": "open('{folder}/secret.txt', 'a').write('x')\n",
    "truncates a file": "import os\nos.truncate('{folder}/secret.txt', 0)\n",
    "deletes a file": "import os\nos.unlink('{folder}/victim.txt')\n",
    "renames a file": "import os\nos.rename('{folder}/secret.txt', '{folder}/renamed.txt')\n",
    "makes a folder": "import os\nos.mkdir('{folder}/new')\n",
    "changes modes": "import os\nos.chmod('{folder}/secret.txt', 0o777)\n",
    "changes times": "import os\nos.utime('{folder}/secret.txt', (0, 0))\n",
    "changes an attribute": "import os\nos.setxattr('{folder}/secret.txt', 'user.x', b'x')\n",
    "reads through a symbolic link": "import os\nos.symlink('{folder}/secret.txt', 'link')\nassert open('link').read()\n",
    "makes a hard link": "import os\nos.link('{folder}/secret.txt', 'link')\n",
    "connects by TCP": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\n",
    "sends by UDP": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))\n"
    ),
    "listens": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n",
    "connects to a Unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('{socket}')\n",
    "connects to an abstract socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{socket}')\n",
    "sends from a pair of datagram sockets": (
        "import socket\ns, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.sendto(b'x', '{socket}.datagram')\n"
    ),
    "asks the kernel for network interfaces": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n",
    "signals another process": "import os\nos.kill({pid}, 0)\n",
    "signals its parent": "import os\nos.kill(os.getppid() or 1, 0)\n",
    "signals everything": "import os\nos.kill(-1, 0)\n",
    "forks": "import os\nif os.fork() == 0:\n    os._exit(0)\n",
    "executes a program": "import os\nos.execv('/bin/true', ['true'])\n",
    "runs a subprocess": "import subprocess\nsubprocess.run(['/bin/true'], check=True)\n",
    "starts multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=int).start()\n",
    "traces another process": CALL + "assert libc.ptrace(16, {pid}, 0, 0) == 0\nlibc.ptrace(17, {pid}, 0, 0)\n",
    "reads memory of its parent": (
        "import os\nos.lseek(fd := os.open(f'/proc/{{os.getppid()}}/mem', 0), 4096, 0)\n"
        "assert open(f'/proc/{{os.getppid()}}/maps').read()\n"
    ),
    "reads the environment of another process": "assert open('/proc/{pid}/environ').read()\n",
    "opens another process": "import os\nos.pidfd_open({pid})\n",
    "becomes root": "import os\nassert os.getuid() != 0\nos.setuid(0)\n",
    "has a descriptor of a file or folder": (
        "import os, stat\nfound = []\nfor fd in range(3, 256):\n    try:\n        mode = os.fstat(fd).st_mode\n"
        "    except OSError:\n        continue\n    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):\n"
        "        found.append(fd)\nassert found\n"
    ),
    "reads variables of the environment": "import os\nassert 'HOME' in os.environ or 'PATH' in os.environ\n",
    "raises its limits": (
        "import resource\nlimit = resource.RLIM_INFINITY\nresource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
    ),
    "outlives its server": CALL + "assert libc.prctl(1, 0, 0, 0, 0) == 0\n",
    "leaves shared memory": CALL + "assert libc.shmget(0x5EED, 4096, 0o1666) >= 0\n",
    "changes the root": "import os\nos.chroot('.')\n",
}

# Calls that have had holes, with arguments that do nothing. Numbers on x86-64 and aarch64. A call is reachable if the kernel
# judges its arguments, and not reachable if it returns EPERM or ENOSYS.
KERNEL_CALLS = {
    "unshare": (272, 97),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "clone3": (435, 435),
    "process_vm_writev": (311, 271),
}
REACHABLE = """import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
number = {numbers}[platform.machine() != "x86_64"]
result = libc.syscall(*(ctypes.c_long(n) for n in (number, 0, 0, 0, 0, 0)))
assert result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
"""


@dataclass(frozen=True, kw_only=True)
class Bait:
    """What the attacks want to reach."""

    folder: str
    pid: int
    port: int
    socket: str


def attacks(bait: Bait) -> list[Attack]:
    escapes = {name: source.format_map(vars(bait)) for name, source in SOURCES.items()}
    calls = {name: REACHABLE.format(numbers=numbers) for name, numbers in KERNEL_CALLS.items()}
    groups: tuple[tuple[Kind, dict[str, str]], ...] = (("escape", escapes), ("kernel surface", calls))
    return [
        Attack(name=name, kind=kind, program=TestedProgram(source=source, tests="", cpu_seconds=2), expected=WRONG)
        for kind, sources in groups
        for name, source in sources.items()
    ]
