"""The playground: a page at `/`, its files, and the security policy that the browser enforces on them."""

import secrets
from collections.abc import Callable
from functools import partial
from importlib.resources import files as package_files

from fastapi import FastAPI
from fastapi.responses import Response

ASSETS = {
    "/playground.js": "text/javascript",
    "/playground.css": "text/css",
    "/playground.svg": "image/svg+xml",
    "/playground-licenses.txt": "text/plain",
}
# A browser asks for the files again after an update of the server.
HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# The page loads nothing from other hosts, runs no inline script, and cannot turn text into markup (trusted types). The
# editor adds one style sheet, which is allowed by a nonce.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


def add_playground(app: FastAPI) -> None:
    """Adds the routes of the page and of its files to an application."""
    pages: dict[str, Callable[[], Response]] = {"/": _page}
    pages |= {path: partial(_asset, path.removeprefix("/"), media_type) for path, media_type in ASSETS.items()}
    for path, respond in pages.items():
        app.add_api_route(path, respond, methods=["GET", "HEAD"], response_model=None)


def _page() -> Response:
    """The page, with a nonce that no other response has."""
    nonce = secrets.token_urlsafe(16)
    headers = HEADERS | {"Cache-Control": "no-store", "Content-Security-Policy": POLICY.format(nonce=nonce)}
    return Response(_read("index.html").replace("{{ nonce }}", nonce), media_type="text/html", headers=headers)


def _asset(name: str, media_type: str) -> Response:
    return Response(_read(name), media_type=media_type, headers=HEADERS)


def _read(name: str) -> str:
    return package_files("codekiln.serve").joinpath("playground", name).read_text(encoding="utf-8")
