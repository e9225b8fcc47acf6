"""Limits that keep one client from blocking the others: connections, times, sizes and host names."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from codekiln.serve.errors import error_body

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_ADDRESS = 256  # editors and their plugins on one machine share an address
REQUEST_SECONDS = 10.0  # from the opening of a connection, or the first byte of a request, to the end of its headers
BODY_SECONDS = 30.0
DEFAULT_MAX_BODY_BYTES = 1_000_000
HTTP_VERSIONS = ("1.0", "1.1")


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a time limit for each request's headers, and limits for open connections.

    When there are too many connections, the one that has been idle for the longest time is closed, so that a new client is
    always answered.
    """

    opened = 0.0  # when this connection became idle last: no request is being answered
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()
        others = [cast(LimitedProtocol, each) for each in self.connections if each is not self]
        address = None if self.client is None else self.client[0]
        same = [each for each in others if each.client is not None and each.client[0] == address]
        if len(same) >= MAX_CONNECTIONS_PER_ADDRESS:
            _close_oldest_idle(same, otherwise=self)
        elif len(others) >= MAX_CONNECTIONS:
            _close_oldest_idle(others, otherwise=self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.is_idle:
            self._stop_timer()
        elif self._timer is None and not self.transport.is_closing():
            self._start_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.opened = self.loop.time()

    @property
    def is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, which its type does not say
        return cycle is None or cycle.response_complete

    def _start_timer(self) -> None:
        self.opened = self.loop.time()
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._close_if_idle)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_idle(self) -> None:
        self._timer = None
        if self.is_idle:
            self.transport.close()


def _close_oldest_idle(connections: Sequence[LimitedProtocol], *, otherwise: LimitedProtocol) -> None:
    """Closes the connection that has been idle for the longest time; if all are busy, `otherwise`."""
    idle = [each for each in connections if each.is_idle and not each.transport.is_closing()]
    oldest = min(idle, key=lambda each: each.opened, default=otherwise)
    oldest.transport.close()


class RequestLimits:
    """Refuses unknown HTTP versions, host names that are not in `hosts` (if there are any), and bodies that are too large
    or too slow."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], max_body_bytes: int) -> None:
        self._app, self._hosts, self._max_body_bytes = app, hosts, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refused := self._refuse(scope)) is not None:
            await refused(scope, receive, send)
            return
        n_bytes = 0
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        is_complete = False

        async def receive_limited() -> Message:
            nonlocal n_bytes, is_complete
            if is_complete:  # what follows is the disconnection, which may come at any time
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds", {"Connection": "close"}
                ) from None
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_body_bytes:
                raise HTTPException(
                    413, f"the body is larger than {self._max_body_bytes:,} bytes", {"Connection": "close"}
                )
            is_complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_limited, send)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        if scope["http_version"] not in HTTP_VERSIONS:
            return refusal(505, f"HTTP {scope['http_version']} is not supported: use HTTP/1.1")
        if not self._hosts:
            return None
        host = Headers(scope=scope).get("host")
        if host is None and scope["http_version"] == "1.0":
            return None  # HTTP/1.0 has no Host header, and no browser speaks it
        try:
            name = urlsplit("//" + (host or "")).hostname
        except ValueError:
            name = None
        if name is None or any(character.isspace() for character in host or ""):
            return refusal(400, "the Host header is malformed")
        if name not in self._hosts:
            return refusal(421, f"host {name[:100]} is not allowed: this server is {', '.join(self._hosts)}")
        return None


def refusal(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's clients read it, after which the connection is closed."""
    return JSONResponse(error_body(message), status_code=status, headers={"Connection": "close"})


def protocol_class() -> Any:
    """The protocol for uvicorn's settings, whose types know its own protocols only."""
    return LimitedProtocol
