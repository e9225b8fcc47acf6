"""Makes the application of a server for a run, and prints the names of all modules that were imported."""
# ruff: noqa: T201 - prints its result

import sys
from pathlib import Path

from codekiln.generate.complete import Completer
from codekiln.serve.server import make_app

make_app(Completer.load(Path(sys.argv[1])), "run", "127.0.0.1")
print("\n".join(sys.modules))
