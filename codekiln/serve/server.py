"""A model behind `/v1/completions`, and a page to try it at `/`.

Requests wait for each other: one is decoded at a time, whether its client reads or not. There is no authentication; it listens
where it is told to, and on this machine's own addresses answers to their names only, so that no page of another name can read
it (DNS rebinding).
"""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from importlib.resources import files as package_files
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codekiln.files import JsonObject
from codekiln.generate import complete
from codekiln.generate.complete import Completer
from codekiln.serve.protocol import CompletionRequest, CompletionResponse, error, finish_of

# The page loads nothing from elsewhere and shows what the model writes as text, never as markup.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"
    )
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY = 20_000_000  # bytes
MAX_CONNECTIONS = 64


def make_app(completer: Completer, model_name: str, host: str) -> FastAPI:
    """The application for one model, to listen on `host`."""
    app = FastAPI(title="codekiln", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestLimits, hosts=LOOPBACK if host in LOOPBACK else ())
    decode_lock = asyncio.Lock()

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, refusal: RequestValidationError) -> JSONResponse:
        first = refusal.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(error(f"the body is no JSON: {first['ctx']['error']}"), status_code=400)
        field = str(first["loc"][1]) if len(first["loc"]) > 1 else "body"
        return JSONResponse(error(f"{field}: {first['msg']}", param=field), status_code=400)

    @app.exception_handler(HTTPException)
    async def fail(_: Request, failure: HTTPException) -> JSONResponse:
        return JSONResponse(error(str(failure.detail)), status_code=failure.status_code, headers=failure.headers)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, connection: Request) -> Response:
        if connection.headers.get("content-type", "").split(";")[0] != "application/json":
            return JSONResponse(error("Content-Type: it must be application/json"), status_code=415)
        if body.max_tokens is not None and body.max_tokens > completer.max_new_tokens_limit:
            message = f"max_tokens: this model takes at most {completer.max_new_tokens_limit}"
            return JSONResponse(error(message, param="max_tokens"), status_code=400)
        requests = [complete.InfillRequest(prompt, body.suffix) for prompt in body.prompts()]
        stream = partial(completer.stream, max_new_tokens=body.max_tokens, sampling=body.sampling(), stop=body.stops())
        try:
            chunks = await run_in_threadpool(stream, requests)
        except ValueError as refusal:
            return JSONResponse(error(str(refusal)), status_code=400)
        response = CompletionResponse(model_name)
        made = _generate_in_thread(chunks, decode_lock, connection)
        if body.stream:
            has_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_events(made, response, has_usage=has_usage), media_type="text/event-stream")
        async with aclosing(made):
            completions = {chunk.index: chunk.completion async for chunk in made if chunk.completion is not None}
        if len(completions) < len(requests):
            return Response(status_code=499)  # the client left
        return JSONResponse(response.body([completions[i] for i in range(len(requests))]))

    @app.get("/v1/models")
    def models() -> JsonObject:
        return {"object": "list", "data": [{"id": model_name, "object": "model", "created": 0, "owned_by": "codekiln"}]}

    @app.get("/health")
    def health() -> JsonObject:
        return {"status": "ok"}

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(_asset("index.html"), headers=PAGE_HEADERS)

    @app.get("/playground.js")
    def script() -> Response:
        return Response(_asset("playground.js"), media_type="text/javascript")

    @app.get("/playground.css")
    def style() -> Response:
        return Response(_asset("playground.css"), media_type="text/css")

    return app


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answers on a socket until it is interrupted."""
    config = uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port, 0 for any free one. Raises OSError in words where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as failure:
        listening.close()
        message = (
            f"cannot listen on {host}:{port} ({failure.strerror}): end what uses that port, or name another with --port"
        )
        raise OSError(message) from None
    return listening


class RequestLimits:
    """Refuses bodies over `MAX_BODY` as they come, and, where `hosts` are named, requests to any other."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = urlsplit("//" + Headers(scope=scope).get("host", "")).hostname
        if self._hosts and asked not in self._hosts:
            refusal = error(f"this server answers to {', '.join(self._hosts)}, not to {asked}")
            await JSONResponse(refusal, status_code=421)(scope, receive, send)
            return
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY:,} bytes", {"Connection": "close"})
            return message

        await self._app(scope, counted, send)


async def _generate_in_thread(
    chunks: Iterator[complete.CompletionChunk], decode_lock: asyncio.Lock, connection: Request
) -> AsyncGenerator[complete.CompletionChunk, None]:
    """The pieces, made in a thread while no other request's are and ahead of who reads them.

    Nothing more is made when the client has left or this is closed.
    """
    queue: asyncio.Queue[complete.CompletionChunk | None] = asyncio.Queue()

    async def make() -> None:
        try:
            async with decode_lock:
                while not await connection.is_disconnected():
                    if (chunk := await run_in_threadpool(next, chunks, None)) is None:
                        return
                    queue.put_nowait(chunk)
        finally:
            queue.put_nowait(None)

    producer = asyncio.create_task(make())
    try:
        while (chunk := await queue.get()) is not None:
            yield chunk
        await producer
    finally:
        producer.cancel()


async def _events(
    made: AsyncGenerator[complete.CompletionChunk, None], response: CompletionResponse, *, has_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events, one a piece that has text or ends an answer, and the end mark."""
    completions = []
    async with aclosing(made):
        async for chunk in made:
            if chunk.completion is not None:
                completions.append(chunk.completion)
                yield _event(response.chunk(chunk.index, chunk.text, finish_of(chunk.completion)))
            elif chunk.text:
                yield _event(response.chunk(chunk.index, chunk.text, None))
    if has_usage:
        yield _event(response.usage_chunk(completions))
    yield "data: [DONE]\n\n"


def _event(record: JsonObject) -> str:
    return f"data: {json.dumps(record)}\n\n"


def _asset(name: str) -> str:
    return package_files("codekiln.serve").joinpath("playground", name).read_text(encoding="utf-8")
