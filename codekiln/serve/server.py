"""A model behind the protocols of editors and SDKs, and a playground at `/`.

One engine answers all requests together. On loopback addresses the server checks the Host header, which protects against DNS
rebinding: no web page of another name can read it. With API keys, all routes but `/health` and the page need one.
"""

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from codekiln.errors import CodekilnError
from codekiln.generate.complete import Completer
from codekiln.generate.postprocess import PostProcessing
from codekiln.serve.access import KeyCheck, read_keys
from codekiln.serve.errors import RETRY_SECONDS, error_body
from codekiln.serve.limits import DEFAULT_MAX_BODY_BYTES, RequestLimits, protocol_class
from codekiln.serve.loading import refusing_requests
from codekiln.serve.openapi import describe_completion
from codekiln.serve.pages import add_playground
from codekiln.serve.protocols import llama_cpp, mistral, ollama, openai, tabby
from codekiln.serve.provenance import Training
from codekiln.serve.request_log import CLIENT_LEFT, RequestLog, print_log
from codekiln.serve.service import CompletionService, Refusal

__all__ = ["LOOPBACK", "Training", "listen", "make_app", "read_keys", "refusing_requests", "serve"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_app(
    completer: Completer,
    model_name: str,
    host: str,
    *,
    allowed_hosts: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    api_keys: Sequence[str] = (),
    recognize_fim: bool = False,
    postprocessing: PostProcessing | None = None,
    training: Training | None = None,
) -> FastAPI:
    """The application for one model, to listen on `host`.

    On loopback addresses it answers to their names and to `allowed_hosts`; elsewhere to `allowed_hosts`, or to any name.
    `recognize_fim`, `postprocessing` and `training` are explained at `CompletionService`.
    """
    service = CompletionService(
        completer, model_name, recognize_fim=recognize_fim, postprocessing=postprocessing, training=training
    )

    @asynccontextmanager
    async def run_engine(_: FastAPI) -> AsyncGenerator[None, None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="codekiln", docs_url=None, redoc_url=None, lifespan=run_engine)
    hosts = (*LOOPBACK, *allowed_hosts) if host in LOOPBACK or allowed_hosts else ()
    app.add_middleware(KeyCheck, keys=api_keys)
    app.add_middleware(RequestLimits, hosts=hosts, max_body_bytes=max_body_bytes)
    app.add_middleware(RequestLog, metrics=service.metrics)

    @app.exception_handler(HTTPException)
    async def fail(_: Request, failure: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(failure.detail)), status_code=failure.status_code, headers=failure.headers)

    @app.exception_handler(CodekilnError)
    async def refuse(_: Request, refused: CodekilnError) -> JSONResponse:
        if not isinstance(refused, Refusal):
            name = str(refused).partition(":")[0]  # as in "prompt: token id 7 is ..."
            record = error_body(str(refused), param=name if name.isidentifier() else None)
            return JSONResponse(record, status_code=400)
        headers = {"Retry-After": str(RETRY_SECONDS)} if refused.status == 429 else None
        body = error_body(refused.message, param=refused.param, code=refused.code)
        return JSONResponse(body, status_code=refused.status, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def leave(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)  # nobody receives it

    async def complete(request: Request) -> Response:
        body = await service.parse_any(request, tabby.request_kind)
        if isinstance(body, tabby.TabbyRequest):
            return await tabby.complete(request, body, service)
        return await openai.complete(request, body, service)

    def show_metrics() -> Response:
        text = service.metrics.page(completer.engine.stats)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    description = describe_completion(openai.CompletionRequest, tabby.TabbyRequest)
    app.add_api_route("/v1/completions", complete, methods=["POST"], response_model=None, openapi_extra=description)
    for path in ("/health", "/ready"):  # while the model is loaded, both are answered with 503
        app.add_api_route(path, lambda: JSONResponse({"status": "ok"}), methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/metrics", show_metrics, methods=["GET", "HEAD"], response_model=None)
    openai.add_openai(app, service)
    llama_cpp.add_llama_cpp(app, service)
    mistral.add_mistral(app, service)
    ollama.add_ollama(app, service)
    tabby.add_tabby(app, service)
    add_playground(app)
    return app


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serves on a socket until it is interrupted. Prints a line for each request on stderr."""
    print_log()
    config = uvicorn.Config(app, log_level="error", http=protocol_class(), timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port; 0 picks a free one. Raises OSError with a clear message if it cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off for sockets with this protocol number only. With it, each answer waits for 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
