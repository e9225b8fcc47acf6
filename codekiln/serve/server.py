"""A model behind `/v1/completions`, and a playground at `/`.

One request is decoded at a time; output is buffered, so a slow client does not block the others. There is no authentication.
On loopback addresses the server checks the Host header, which protects against DNS rebinding: no web page of another name
can read it.
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

from codekiln.errors import ConfigError
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, CompletionChunk, InfillRequest
from codekiln.serve.protocol import CompletionRequest, CompletionResponse, error_body

# The page loads nothing from other hosts, and shows generated text as text, never as markup.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"
    )
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY_BYTES = 20_000_000
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
            return _error(400, f"invalid JSON: {first['ctx']['error']}")
        field = str(first["loc"][1]) if len(first["loc"]) > 1 else "body"
        return _error(400, f"{field}: {first['msg']}", param=field)

    @app.exception_handler(HTTPException)
    async def fail(_: Request, failure: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(failure.detail)), status_code=failure.status_code, headers=failure.headers)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            return _error(415, "Content-Type must be application/json")
        if body.model is not None and body.model != model_name:
            message = f"model {body.model!r} does not exist: this server has {model_name!r}"
            return _error(404, message, param="model", code="model_not_found")
        if body.max_tokens is not None and body.max_tokens > completer.max_new_tokens_limit:
            message = f"max_tokens must be at most {completer.max_new_tokens_limit} for this model"
            return _error(400, message, param="max_tokens")
        requests = [InfillRequest(prompt, body.suffix) for prompt in body.prompts()]
        stream = partial(
            completer.stream, max_new_tokens=body.max_tokens, sampling=body.sampling(), stop=body.stop_strings()
        )
        try:
            chunks = await run_in_threadpool(stream, requests)
        except ConfigError as refusal:
            return _error(400, str(refusal))
        response = CompletionResponse(model_name)
        generated = _generate_in_thread(chunks, decode_lock, request)
        if body.stream:
            has_usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_events(generated, response, has_usage=has_usage), media_type="text/event-stream")
        async with aclosing(generated):
            found = {chunk.index: chunk.completion async for chunk in generated if chunk.completion is not None}
        if len(found) < len(requests):
            return Response(status_code=499)  # the client disconnected
        return JSONResponse(response.body([found[i] for i in range(len(requests))]))

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
    """Serves on a socket until it is interrupted."""
    config = uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port; 0 picks a free one. Raises OSError with a clear message if it cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as failure:
        listening.close()
        message = (
            f"cannot listen on {host}:{port} ({failure.strerror}): "
            "stop the program that uses this port, or choose another with --port"
        )
        raise OSError(message) from None
    return listening


class RequestLimits:
    """Refuses bodies over `MAX_BODY_BYTES` while they arrive and, if `hosts` are given, requests for any other host."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = urlsplit("//" + Headers(scope=scope).get("host", "")).hostname
        if self._hosts and asked not in self._hosts:
            refusal = error_body(f"host {asked} is not allowed: this server is {', '.join(self._hosts)}")
            await JSONResponse(refusal, status_code=421)(scope, receive, send)
            return
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes", {"Connection": "close"})
            return message

        await self._app(scope, counted, send)


async def _generate_in_thread(
    chunks: Iterator[CompletionChunk], decode_lock: asyncio.Lock, request: Request
) -> AsyncGenerator[CompletionChunk, None]:
    """The chunks, generated in a thread while no other request is decoded, and buffered for a slow client.

    Generation stops when the client disconnects or this generator is closed.
    """
    queue: asyncio.Queue[CompletionChunk | None] = asyncio.Queue()

    async def produce() -> None:
        try:
            async with decode_lock:
                while not await request.is_disconnected():
                    if (chunk := await run_in_threadpool(next, chunks, None)) is None:
                        return
                    queue.put_nowait(chunk)
        finally:
            queue.put_nowait(None)

    producer = asyncio.create_task(produce())
    try:
        while (chunk := await queue.get()) is not None:
            yield chunk
        await producer
    finally:
        producer.cancel()


async def _events(
    generated: AsyncGenerator[CompletionChunk, None], response: CompletionResponse, *, has_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events: one per chunk that has text or ends a completion, and the end mark."""
    completions = []
    async with aclosing(generated):
        async for chunk in generated:
            if chunk.completion is not None:
                completions.append(chunk.completion)
                yield _event(response.chunk(chunk.index, chunk.text, chunk.completion.finish_reason))
            elif chunk.text:
                yield _event(response.chunk(chunk.index, chunk.text, None))
    if has_usage:
        yield _event(response.usage_chunk(completions))
    yield "data: [DONE]\n\n"


def _event(record: JsonObject) -> str:
    return f"data: {json.dumps(record)}\n\n"


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(message, param=param, code=code), status_code=status)


def _asset(name: str) -> str:
    return package_files("codekiln.serve").joinpath("playground", name).read_text(encoding="utf-8")
