"""One count and one log line for each request. Nothing of a prompt or a completion is in them."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codekiln.serve.metrics import ServerMetrics

LOG = logging.getLogger("codekiln.serve")
CLIENT_LEFT = 499  # nginx's status for a client that left before the answer began
# Asked every few seconds by monitors: their lines are of level DEBUG.
QUIET_ROUTES = ("/health", "/v1/health", "/ready", "/metrics")

HEADERS = ("note", "provenance")


class RequestLog:
    """Counts and logs requests, and adds what an answer stored in `scope["state"]` as headers.

    It may have "summary", what an answer adds to the line, "note" for the header `Codekiln-Note`, and "provenance" for the
    header `Codekiln-Provenance`.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = CLIENT_LEFT
        state = scope.setdefault("state", {})

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(f"codekiln-{name}".encode(), state[name].encode()) for name in HEADERS if state.get(name)]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            # The path of a request may be any text, so only known ones are named.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
            summary = state.get("summary", "")
            LOG.log(
                level, "%s %s %d %.3fs %s", scope["method"][:10], route, status, time.monotonic() - started, summary
            )


def print_log() -> None:
    """Prints the lines of level INFO and above on stderr, with their time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
