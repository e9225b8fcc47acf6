"""Who may use the server: API keys, compared in constant time."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from codekiln.errors import ConfigError
from codekiln.serve.limits import refusal

ENVIRONMENT_VARIABLE = "CODEKILN_API_KEY"
MIN_KEY_CHARACTERS = 8
# What needs no key: whether the server is there, and the page with its files, which have no data.
OPEN_PATHS = ("/health", "/v1/health", "/ready", "/")
OPEN_PREFIXES = ("/playground",)


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in a file, one per line, and in the environment. Raises ConfigError for one that is too short."""
    lines = [] if path is None else path.read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in (*lines, os.environ.get(ENVIRONMENT_VARIABLE, "")) if line.strip()]
    if path is not None and not keys:
        raise ConfigError(f"{path} has no API key: write one per line")
    if any(len(key) < MIN_KEY_CHARACTERS for key in keys):
        raise ConfigError(f"an API key has fewer than {MIN_KEY_CHARACTERS} characters")
    return tuple(keys)


class KeyCheck:
    """Refuses requests without one of the keys, as "Authorization: Bearer KEY" or "X-API-Key: KEY".

    Sets `scope["state"]["user"]`, which is different for each key: users do not share cached prefixes.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and not _is_open(scope["path"]):
            found = self._find(Headers(scope=scope))
            if found is None:
                message = "an API key is needed: send it as Authorization: Bearer KEY, or as X-API-Key: KEY"
                await refusal(401, message)(scope, receive, send)
                return
            scope.setdefault("state", {})["user"] = hashlib.sha256(found).hexdigest()[:16]
        await self._app(scope, receive, send)

    def _find(self, headers: Headers) -> bytes | None:
        """The key of a request, if it is one of the known ones. All are compared, so the time does not depend on which."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        found = None
        for key in self._keys:
            if hmac.compare_digest(given.encode(), key):
                found = key
        return found


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
