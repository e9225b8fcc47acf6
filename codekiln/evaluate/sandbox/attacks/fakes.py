"""Fake successes: programs that are wrong and want to pass."""

from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.sandbox.attacks.attack import WRONG, Attack

TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(10, 20) == 30
    assert candidate(-1, 1) == 0
check(add)
"""
REAL_TESTS = """
import math
def check(candidate):
    assert abs(candidate(2, 2) - 4.0) < 1e-6
    assert math.isclose(candidate(1, 2), 3.0)
check(add)
"""
LIST_TESTS = "assert add([1], [2]) == [1, 2]\nassert add([], [3]) == [3]"
ZERO = "def add(a, b):\n    return 0\n"
EVERY_PIPE = "for fd in range(3, 256):\n    try:\n        os.write(fd, {data})\n    except OSError:\n        pass\n"

SOURCES = {
    "exits with status 0": "import os\nos._exit(0)\n",
    "exits in the function": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "raises SystemExit": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
    "raises a class of its own above Exception": "class E(BaseException):\n    pass\ndef add(a, b):\n    raise E\n",
    "kills itself": "import os, signal\ndef add(a, b):\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "replaces AssertionError": "import builtins\nbuiltins.AssertionError = SystemExit\n" + ZERO,
    "replaces the hook of exceptions": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n" + ZERO,
    "reports through all pipes": "import os\n" + EVERY_PIPE.format(data="""b'{"status": "passed"}'""") + ZERO,
    "sends the verdict of its server": (
        "import json, os\nreply = {'status': 'passed', 'error': '', 'cpu_seconds': 0.0, 'stderr': '', 'n_output': 0}\n"
        "data = json.dumps(reply).encode()\n" + EVERY_PIPE.format(data="len(data).to_bytes(4, 'little') + data") + ZERO
    ),
    "reports at exit": (
        "import atexit, os\ndef report():\n    "
        + EVERY_PIPE.format(data="""b'{"status": "passed"}'""").replace("\n", "\n    ").rstrip()
        + "\natexit.register(report)\ndef add(a, b):\n    raise SystemExit\n"
    ),
    "changes what is reported": (
        "import json, os\nreal = json.dumps\n"
        """json.dumps = lambda *a, **k: real({"status": "passed", "error": ""})\n""" + ZERO
    ),
    "looks for the nonce in frames": (
        "import os, sys\nfound = []\nframe = sys._getframe()\nwhile frame:\n"
        "    for value in [*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts]:\n"
        "        for item in value if isinstance(value, (list, tuple)) else [value]:\n"
        "            if isinstance(item, bytes) and len(item) == 16:\n                found.append(item)\n"
        "    frame = frame.f_back\n"
        "for nonce in found:\n"
        + "    "
        + EVERY_PIPE.format(data="nonce").replace("\n", "\n    ").rstrip()
        + "\n"
        + ZERO
    ),
    "looks for the nonce among all objects": (
        "import gc, os\nfound = []\nfor value in gc.get_objects():\n"
        "    for item in value if isinstance(value, (list, tuple)) else gc.get_referents(value):\n"
        "        if isinstance(item, bytes) and len(item) == 16:\n            found.append(item)\n"
        "for nonce in found:\n"
        + "    "
        + EVERY_PIPE.format(data="nonce").replace("\n", "\n    ").rstrip()
        + "\n"
        + ZERO
    ),
    "looks for the nonce in frames of exceptions": (
        "import os\nfound = []\ntry:\n    1 / 0\nexcept ZeroDivisionError as error:\n"
        "    frame = error.__traceback__.tb_frame.f_back\n"
        "while frame:\n    found += [v for v in frame.f_locals.values() if isinstance(v, bytes)]\n    frame = frame.f_back\n"
        "for nonce in found:\n"
        + "    "
        + EVERY_PIPE.format(data="nonce").replace("\n", "\n    ").rstrip()
        + "\n"
        + ZERO
    ),
    "calls the functions of the sandbox": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    for name in ('report', 'prepared', 'run_to_its_end'):\n"
        "        function = frame.f_globals.get(name)\n"
        "        for fd in range(3, 64):\n            try:\n"
        "                function(fd, {'status': 'passed', 'error': ''})\n"
        "            except Exception:\n                pass\n"
        "    frame = frame.f_back\n" + ZERO
    ),
    "skips lines of the tests with a trace": (
        "import sys\ndef trace(frame, event, value):\n"
        "    if frame.f_code.co_name == 'check' and event == 'line':\n        try:\n"
        "            frame.f_lineno = max(line for *_, line in frame.f_code.co_lines() if line)\n"
        "        except ValueError:\n            pass\n    return trace\nsys.settrace(trace)\n" + ZERO
    ),
    "forks and lets the child end well": "import os\nif os.fork() == 0:\n    os._exit(0)\n" + ZERO,
    "reports from a thread": (
        "import os, threading\ndef report():\n    while True:\n        "
        + EVERY_PIPE.format(data="""b'{"status": "passed"}'""").replace("\n", "\n        ").rstrip()
        + "\nthreading.Thread(target=report, daemon=True).start()\n"
        + ZERO
    ),
    "closes the pipes and leaves": "import os\nos.closerange(3, 256)\n" + ZERO,
}
FOOLING_COMPAT = {
    "returns an object that equals everything": (
        "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()\n"
    ),
    "returns mock.ANY": "from unittest.mock import ANY\ndef add(a, b):\n    return ANY\n",
    "returns an integer that equals everything": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any(0)\n"
    ),
    "reads the answer in the frame of the tests": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n"
        "    constants = [c for c in frame.f_code.co_consts if isinstance(c, int)]\n"
        "    return {(2, 3): 5, (10, 20): 30}.get((a, b), 0) if {5, 30} <= set(constants) else None\n"
    ),
}
FOOLING_REAL = {
    "replaces abs and math.isclose": (
        "import builtins, math\nbuiltins.abs = lambda x: 0\nmath.isclose = lambda *a, **k: True\n" + ZERO
    ),
    "returns a float that subtracts to zero": (
        "class F(float):\n    def __sub__(self, other):\n        return 0.0\ndef add(a, b):\n    return F(3)\n"
        "import math\nmath.isclose = lambda a, b: True\n"
    ),
}
FOOLING_LISTS = {
    "returns a list that equals everything": (
        "class L(list):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return L()\n"
    ),
}


def attacks() -> list[Attack]:
    groups = (
        (SOURCES, TESTS, False),
        (FOOLING_COMPAT, TESTS, True),
        (FOOLING_REAL, REAL_TESTS, True),
        (FOOLING_LISTS, LIST_TESTS, True),
    )
    return [
        Attack(
            name=name,
            kind="fake success",
            program=TestedProgram(source=source, tests=tests, functions=("add",), cpu_seconds=2),
            expected=WRONG,
            fakes_compat=fooling,
        )
        for sources, tests, fooling in groups
        for name, source in sources.items()
    ]
