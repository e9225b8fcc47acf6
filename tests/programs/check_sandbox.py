"""Runs attacks on the sandbox, or judges one program, and prints the result as JSON: check_sandbox.py LEVEL MODE KIND ...

Needs only the standard library, so that any interpreter can run it, as any user.
"""

import json
import sys

from codekiln.errors import ConfigError
from codekiln.evaluate.sandbox.check import KINDS, check_sandbox

level, mode, *wanted = sys.argv[1:]
try:
    check = check_sandbox(slots=2, level=level, mode=mode, kinds=[kind for kind in KINDS if kind in wanted])  # type: ignore[arg-type]
except ConfigError as error:
    print(json.dumps({"error": str(error)}))  # noqa: T201
else:
    wrong = [name for row in check.rows for name in row.wrong]
    n = sum(row.n_attacks for row in check.rows)
    print(json.dumps({"level": check.level, "wrong": wrong, "n": n}))  # noqa: T201
