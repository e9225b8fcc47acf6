"""A model behind `/v1/completions`, and a page to try it at `/`.

Requests wait for each other: one is decoded at a time. There is no authentication; it listens where it is told to.
"""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from importlib.resources import files as package_files

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from codekiln.files import Record
from codekiln.generate import complete
from codekiln.generate.complete import Completer
from codekiln.serve.protocol import CompletionRequest, Envelope, error, finish_of

# The page loads nothing from elsewhere and shows what the model writes as text, never as markup.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
}


def make_app(completer: Completer, model_name: str) -> FastAPI:
    """The application for one model."""
    app = FastAPI(title="codekiln", docs_url=None, redoc_url=None)
    turn = asyncio.Lock()

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, refusal: RequestValidationError) -> JSONResponse:
        first = refusal.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse(error(f"{field}: {first['msg']}", param=field), status_code=400)

    @app.exception_handler(HTTPException)
    async def fail(_: Request, failure: HTTPException) -> JSONResponse:
        return JSONResponse(error(str(failure.detail)), status_code=failure.status_code)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, connection: Request) -> Response:
        limit = completer.context_length // 2 - 1
        if body.max_tokens > limit:
            message = f"max_tokens: this model takes at most {limit}"
            return JSONResponse(error(message, param="max_tokens"), status_code=400)
        requests = [complete.Request(prompt, body.suffix) for prompt in body.prompts()]
        stream = partial(completer.stream, max_new_tokens=body.max_tokens, sampling=body.sampling(), stop=body.stops())
        try:
            pieces = await run_in_threadpool(stream, requests)
        except ValueError as refusal:
            return JSONResponse(error(str(refusal)), status_code=400)
        envelope = Envelope(model_name)
        if body.stream:
            return StreamingResponse(_events(pieces, turn, envelope), media_type="text/event-stream")
        answers: dict[int, complete.Answer] = {}
        async with aclosing(_in_turn(pieces, turn)) as made:
            async for piece in made:
                if piece.answer is not None:
                    answers[piece.index] = piece.answer
                if await connection.is_disconnected():
                    return Response(status_code=499)
        return JSONResponse(envelope.whole([answers[i] for i in range(len(requests))]))

    @app.get("/v1/models")
    def models() -> Record:
        return {"object": "list", "data": [{"id": model_name, "object": "model", "created": 0, "owned_by": "codekiln"}]}

    @app.get("/health")
    def health() -> Record:
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
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the port, 0 for any free one. Raises OSError in words where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as failure:
        listening.close()
        message = (
            f"cannot listen on {host}:{port} ({failure.strerror}): end what uses that port, or name another with --port"
        )
        raise OSError(message) from None
    return listening


async def _in_turn(pieces: Iterator[complete.Piece], turn: asyncio.Lock) -> AsyncGenerator[complete.Piece, None]:
    """The pieces, made in a thread while no other request's are; closing it ends the turn."""
    async with turn:
        while (piece := await run_in_threadpool(next, pieces, None)) is not None:
            yield piece


async def _events(pieces: Iterator[complete.Piece], turn: asyncio.Lock, envelope: Envelope) -> AsyncIterator[str]:
    """Server-sent events, one a piece, and the end mark."""
    async with aclosing(_in_turn(pieces, turn)) as made:
        async for piece in made:
            finish = finish_of(piece.answer) if piece.answer is not None else None
            yield f"data: {json.dumps(envelope.chunk(piece.index, piece.text, finish))}\n\n"
    yield "data: [DONE]\n\n"


def _asset(name: str) -> str:
    return package_files("codekiln.serve").joinpath("playground", name).read_text(encoding="utf-8")
