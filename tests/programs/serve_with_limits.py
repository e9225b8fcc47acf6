"""Serves a run with short time limits and few connections, and prints the port: serve_with_limits.py RUN."""

import sys
from pathlib import Path

from codekiln.generate.complete import Completer
from codekiln.serve import limits
from codekiln.serve.server import listen, make_app, serve

limits.REQUEST_SECONDS = 3.0
limits.BODY_SECONDS = 3.0
limits.MAX_CONNECTIONS = 40
listening = listen("127.0.0.1", 0)
app = make_app(Completer.load(Path(sys.argv[1])), "run", "127.0.0.1", allowed_hosts=["box"])
print(listening.getsockname()[1], flush=True)  # noqa: T201
serve(app, listening)
