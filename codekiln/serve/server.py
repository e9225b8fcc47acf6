"""A model behind `/v1/completions`, and a playground at `/`.

One request is decoded at a time; output is buffered, so a slow client does not block the others. There is no authentication.
On loopback addresses the server checks the Host header, which protects against DNS rebinding: no web page of another name
can read it.
"""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from codekiln.errors import CodekilnError
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, CompletionChunk, InfillRequest
from codekiln.serve.limits import DEFAULT_MAX_BODY_BYTES, RequestLimits, protocol_class
from codekiln.serve.pages import add_playground
from codekiln.serve.protocol import CompletionRequest, CompletionResponse, error_body

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_WAITING = 64  # completion requests that are decoded or wait for it
MAX_PARSING = 2  # bodies that are parsed and tokenized at the same time


class CompletionService:
    """Answers completion requests of one model. One is decoded at a time; the others wait."""

    def __init__(self, completer: Completer, model_name: str) -> None:
        self._completer, self._model_name = completer, model_name
        self._decode_lock = asyncio.Lock()
        self._parse_slots = asyncio.Semaphore(MAX_PARSING)
        self._n_waiting = 0

    async def respond(self, request: Request) -> Response:
        """The response to a request to /v1/completions, whole or streamed."""
        if self._n_waiting >= MAX_WAITING:
            return _error(503, f"{self._n_waiting} requests are waiting: try again later")
        self._n_waiting += 1
        is_streaming = False
        try:
            prepared = await self._prepare(request)
            if isinstance(prepared, Response):
                return prepared
            body, chunks = prepared
            response = CompletionResponse(self._model_name)
            generated = _generate_in_thread(chunks, self._decode_lock, request)
            if body.stream:
                has_usage = body.stream_options is not None and body.stream_options.include_usage
                is_streaming = True
                events = self._leave_after(_events(generated, response, has_usage=has_usage))
                return StreamingResponse(events, media_type="text/event-stream")
            async with aclosing(generated):
                found = {chunk.index: chunk.completion async for chunk in generated if chunk.completion is not None}
            if len(found) < len(body.prompt):
                return Response(status_code=499)  # the client disconnected
            return JSONResponse(response.body([found[i] for i in range(len(body.prompt))]))
        finally:
            self._n_waiting -= not is_streaming

    async def _leave_after(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """The events of a stream. The request no longer waits after the last one, or when its client disconnects."""
        try:
            async for event in events:
                yield event
        finally:
            self._n_waiting -= 1

    async def _prepare(self, request: Request) -> Response | tuple[CompletionRequest, Iterator[CompletionChunk]]:
        """Reads, parses and tokenizes a request, the last two in a thread; or the response that refuses it."""
        if not _is_json(request.headers.get("content-type", "")):
            return _error(415, "Content-Type must be application/json")
        data = await request.body()
        async with self._parse_slots:
            return await run_in_threadpool(self._parse, data)

    def _parse(self, data: bytes) -> Response | tuple[CompletionRequest, Iterator[CompletionChunk]]:
        try:
            body = CompletionRequest.model_validate(json.loads(data.decode("utf-8")))
        except ValidationError as refusal:
            first = refusal.errors(include_url=False, include_context=False)[0]
            field = str(first["loc"][0])[:100] if first["loc"] else "body"
            return _error(400, f"{field}: {first['msg'].removeprefix('Value error, ')[:300]}", param=field)
        except (ValueError, RecursionError) as error:
            return _error(400, f"invalid JSON in UTF-8: {str(error)[:200]}")
        if body.model is not None and body.model != self._model_name:
            return _unknown_model(body.model, self._model_name)
        limit = self._completer.max_new_tokens_limit
        if body.max_tokens is not None and body.max_tokens > limit:
            return _error(400, f"max_tokens must be at most {limit} for this model", param="max_tokens")
        # Editors send an empty suffix at the end of a file: a model that cannot infill completes there.
        suffix = None if body.suffix == "" and not self._completer.can_infill else body.suffix
        try:
            chunks = self._completer.stream(
                [InfillRequest(prompt, suffix) for prompt in body.prompt],
                max_new_tokens=body.max_tokens,
                sampling=body.sampling(),
                stop=body.stop,
            )
        except CodekilnError as refusal:
            return _error(400, str(refusal))
        return body, chunks


def make_app(
    completer: Completer,
    model_name: str,
    host: str,
    *,
    allowed_hosts: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
) -> FastAPI:
    """The application for one model, to listen on `host`.

    On loopback addresses it answers to their names and to `allowed_hosts`; elsewhere to `allowed_hosts`, or to any name.
    """
    app = FastAPI(title="codekiln", docs_url=None, redoc_url=None, openapi_url=None)
    hosts = (*LOOPBACK, *allowed_hosts) if host in LOOPBACK or allowed_hosts else ()
    app.add_middleware(RequestLimits, hosts=hosts, max_body_bytes=max_body_bytes)
    service = CompletionService(completer, model_name)
    model_record: JsonObject = {"id": model_name, "object": "model", "created": 0, "owned_by": "codekiln"}

    @app.exception_handler(HTTPException)
    async def fail(_: Request, failure: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(failure.detail)), status_code=failure.status_code, headers=failure.headers)

    def show_model(name: str) -> Response:
        return JSONResponse(model_record) if name == model_name else _unknown_model(name, model_name)

    app.add_api_route("/v1/completions", service.respond, methods=["POST"], response_model=None)
    pages: dict[str, Callable[..., Response]] = {
        "/v1/models": lambda: JSONResponse({"object": "list", "data": [model_record]}),
        "/v1/models/{name:path}": show_model,
        "/health": lambda: JSONResponse({"status": "ok"}),
    }
    for path, respond in pages.items():
        app.add_api_route(path, respond, methods=["GET", "HEAD"], response_model=None)
    add_playground(app)
    return app


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serves on a socket until it is interrupted."""
    config = uvicorn.Config(app, log_level="error", http=protocol_class(), timeout_graceful_shutdown=5)
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


def _is_json(content_type: str) -> bool:
    """Whether a Content-Type is application/json, in any case and with any parameters (RFC 9110, section 8.3)."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _unknown_model(name: str, model_name: str) -> JSONResponse:
    message = f"model {name[:100]!r} does not exist: this server has {model_name!r}"
    return _error(404, message, param="model", code="model_not_found")


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
