"""Programs that use up what they can. None may take more than its limits, and none may harm the sandbox."""

from codekiln.evaluate.programs import Status, TestedProgram
from codekiln.evaluate.sandbox.attacks.attack import WRONG, Attack

# Statuses by name of an attack; "" stands for any that is not "passed".
SOURCES: dict[tuple[str, str], str] = {
    ("loops", "timeout"): "while True:\n    pass\n",
    ("sleeps", "timeout"): "import time\ntime.sleep(1000)\n",
    ("stops itself", "timeout"): "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
    ("computes a number that is too large", "timeout memory"): "x = 9 ** 9 ** 9\n",
    ("backtracks in a regular expression", "timeout"): "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')\n",
    ("ignores all signals and loops", "timeout"): (
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass\n"
    ),
    ("catches everything and loops", "timeout"): (
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass\n"
    ),
    ("loops in threads", "timeout"): (
        "import threading\ndef loop():\n    while True:\n        pass\n"
        "threads = [threading.Thread(target=loop) for _ in range(8)]\n"
        "for thread in threads:\n    thread.start()\nthreads[0].join()\n"
    ),
    ("doubles a list", "memory timeout"): "x = [0]\nwhile True:\n    x += x\n",
    ("wants a terabyte", "memory"): "x = bytearray(1 << 40)\n",
    ("maps memory", "failed memory"): "import mmap\nkept = [mmap.mmap(-1, 1 << 28) for _ in range(64)]\n",
    ("makes small objects", "memory timeout"): "x = []\nwhile True:\n    x.append({len(x): [len(x)]})\n",
    ("prints", "output timeout"): "while True:\n    print('x' * 10000)\n",
    ("writes to stderr", "output timeout"): "import os\nwhile True:\n    os.write(2, b'x' * 100000)\n",
    ("forks", "failed"): "import os\nfor _ in range(200):\n    if os.fork() == 0:\n        os._exit(0)\n",
    ("starts threads", "failed memory timeout crashed"): (
        "import threading, time\nfor _ in range(3000):\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    ),
    ("recurses", "failed crashed memory timeout"): (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n):\n    return f(n + 1)\nf(0)\n"
    ),
    ("recurses in C", "failed crashed memory timeout"): (
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6):\n    x = [x]\nrepr(x)\n"
    ),
    ("nests its source", "failed memory crashed"): "eval('(' * 100000 + ')' * 100000)\n",
    ("fills the disk", "failed"): (
        "for n in range(100):\n    with open(f'{n}', 'wb') as file:\n        for _ in range(64):\n"
        "            file.write(b'x' * (1 << 20))\n"
    ),
    ("makes many files", ""): "for n in range(10**7):\n    open(f'{n}', 'w').close()\n",
    ("makes deep folders", ""): (
        "import os\nfor n in range(2000):\n    os.mkdir('d' * 100, 0o700)\n    os.chdir('d' * 100)\nraise RuntimeError\n"
    ),
    ("makes folders that nobody may read", ""): (
        "import os\nos.makedirs('a/b')\nos.mkdir('a/b/c', 0)\nopen('a/b/d', 'w').close()\nraise RuntimeError\n"
    ),
    ("opens files", "failed"): "kept = [open('/dev/null') for _ in range(100000)]\n",
    ("raises a long message", "failed memory"): "raise ValueError('x' * 10**8)\n",
    ("returns a large value", ""): "def f():\n    return [0] * 10**8\n",
    ("returns an endless generator", ""): "import itertools\ndef f():\n    return (n for n in itertools.count())\n",
    ("returns a deep value", ""): "def f():\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x\n",
    ("closes everything and loops", ""): "import os\nos.closerange(0, 256)\nwhile True:\n    pass\n",
    ("decompresses a bomb", "memory timeout"): (
        "import zlib\nx = zlib.compress(b'0' * (1 << 27))\nkept = [zlib.decompress(x) for _ in range(100)]\n"
    ),
}


def attacks() -> list[Attack]:
    found = []
    for (name, statuses), source in SOURCES.items():
        expected: set[Status] = {status for status in WRONG if status in statuses.split()}
        tests = "assert list(f()) == [1]" if "def f()" in source else ""
        program = TestedProgram(source=source, tests=tests, cpu_seconds=1)
        found.append(Attack(name=name, kind="exhaustion", program=program, expected=frozenset(expected) or WRONG))
    return found
