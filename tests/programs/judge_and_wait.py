"""Opens a sandbox, gives it a program that sleeps, prints "ready", and waits: judge_and_wait.py LEVEL."""

import sys

from codekiln.evaluate.programs import TestedProgram
from codekiln.evaluate.sandbox.sandbox import Sandbox

source = "import time\nopen('file', 'w').write('x')\ntime.sleep(1000)\n"
with Sandbox(slots=2, level=sys.argv[1]) as sandbox:  # type: ignore[arg-type]
    for n in range(2):
        sandbox.submit(n, TestedProgram(source=source, tests="", cpu_seconds=100))
    print("ready", flush=True)  # noqa: T201
    sandbox.collect()
