"""Answers while the model is loaded."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from codekiln.serve.errors import RETRY_SECONDS, error_body
from codekiln.serve.limits import protocol_class


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    body = error_body("the model is being loaded: try again later", code="loading")
    headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
    await JSONResponse(body, status_code=503, headers=headers)(scope, receive, send)


@contextmanager
def refusing_requests(listening: socket.socket) -> Iterator[None]:
    """Answers every request to the socket with 503 in a thread, while the body of the `with` statement loads the model."""
    config = uvicorn.Config(
        _refuse, log_level="error", http=protocol_class(), lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    # The server closes what it is given, and the socket is still needed.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening.dup()]}, name="loading", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
