"""The HTTP client of a forge: waits for rate limits, tries again, and limits the size of each answer.

Requests are made one after the other, as GitHub asks of its clients. githubkit and python-gitlab were not used: they are two
HTTP stacks with different rules for retries, and leave the limits of sizes and hosts of downloads to their caller.
"""

import email.utils
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from codekiln.corpus.sources.tarballs import ArchiveError, verify_archive
from codekiln.errors import CodekilnError
from codekiln.files import atomic_write
from codekiln.progress import print_line

MAX_ARCHIVE_BYTES = 500_000_000  # compressed
MAX_JSON_BYTES = 20_000_000
MAX_JSON_SECONDS, MAX_ARCHIVE_SECONDS = 120, 3600  # for a whole answer
MAX_TRIES = 5
MAX_REDIRECTS = 5
MAX_RATE_LIMITS = 10  # answers to one request
MAX_WAIT_SECONDS = 2 * 3600  # GitHub's limits are per hour
SECONDARY_LIMIT_SECONDS = 60  # GitHub asks for at least one minute where it does not say how long
MAX_BACKOFF_SECONDS = 60
TIMEOUT_SECONDS = 30  # of connecting, and between two parts of an answer
_QUIET_SECONDS = 10  # longer waits are announced

_REASONS = {
    403: "forbidden (HTTP 403)",
    404: "not found (HTTP 404)",
    409: "empty repository (HTTP 409)",
    410: "not found (HTTP 410)",
    451: "blocked for legal reasons (HTTP 451)",
}

_GONE = (404, 410, 451)
T = TypeVar("T")


class ForgeError(CodekilnError):
    """The forge does not answer, or not as its API documents. Running again continues."""


class RefusedError(Exception):
    """The forge does not deliver what was asked for; the argument is the reason. `is_gone` if it does not exist there."""

    def __init__(self, reason: str, *, is_gone: bool = False) -> None:
        super().__init__(reason)
        self.is_gone = is_gone


class _TransientError(Exception):
    """A failure that may not occur the next time."""

    def __init__(self, reason: str, wait_seconds: float = 0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class Clock:
    """Seconds since 1970, and how to wait. Tests have one of their own."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The converted answer, None for "not modified"; its ETag, and the URL of the next page, where there is one."""

    value: T | None
    etag: str | None
    next_url: str | None


class ForgeClient:
    """Requests to `url`. `headers` with the token are sent there only, archives may come from `download_hosts` too.

    A host of the latter is `NAME` or `NAME:PORT`. `name` is that of the forge, for messages.
    """

    def __init__(
        self, name: str, url: str, headers: dict[str, str], download_hosts: tuple[str, ...], clock: Clock
    ) -> None:
        self._name, self._url, self._headers, self._clock = name, httpx.URL(url), headers, clock
        self._download_hosts = download_hosts
        self._not_before: dict[str, float] = {}  # of each rate limit
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS, headers={"User-Agent": "codekiln"})

    def __enter__(self) -> "ForgeClient":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def get_json(self, url: str, check: Callable[[Any], T], *, etag: str | None, limit: str) -> Answer[T]:
        """The answer to GET, converted by `check`, which raises ValueError or KeyError for JSON of another form.

        `limit` names the rate limit that counts the request. Raises RefusedError, or ForgeError if the forge cannot be reached.
        """
        headers = {"Accept": "application/json"} | ({"If-None-Match": etag} if etag else {})

        def consume(response: httpx.Response) -> Answer[T]:
            new_etag = response.headers.get("ETag")
            if response.status_code == httpx.codes.NOT_MODIFIED and etag is not None:
                return Answer(None, new_etag or etag, None)
            content = b"".join(self._body(response, response.iter_bytes(), MAX_JSON_BYTES, MAX_JSON_SECONDS))
            try:
                value = check(json.loads(content))
                next_url = response.links["next"]["url"] if "next" in response.links else None
                next_url = str(response.url.join(next_url)) if next_url is not None else None
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, httpx.InvalidURL):
                raise _TransientError("an answer that its API does not document") from None
            return Answer(value, new_etag, next_url)

        return self._request(url, headers, limit, consume, is_archive=False)

    def download(self, url: str, path: Path, *, limit: str, advance: Callable[[int], None]) -> int:
        """Downloads a .tar.gz atomically, and verifies that it is complete. Returns its size in bytes.

        `advance` is called with the bytes of each part. Raises RefusedError, or ForgeError if the forge cannot be reached.
        """

        def consume(response: httpx.Response) -> int:
            with atomic_write(path) as temp_path:
                with temp_path.open("wb") as file:
                    for part in self._body(response, response.iter_raw(), MAX_ARCHIVE_BYTES, MAX_ARCHIVE_SECONDS):
                        file.write(part)
                        advance(len(part))
                    n_bytes = file.tell()
                try:
                    verify_archive(temp_path)
                except ArchiveError as error:
                    raise _TransientError(str(error)) from None
            return n_bytes

        return self._request(url, {"Accept-Encoding": "identity"}, limit, consume, is_archive=True)

    # One request

    def _request(
        self,
        url: str,
        headers: dict[str, str],
        limit: str,
        consume: Callable[[httpx.Response], T],
        *,
        is_archive: bool,
    ) -> T:
        failures = limits = 0
        while True:
            self._wait_until(self._not_before.get(limit, 0))
            try:
                with self._open(httpx.URL(url), headers, is_archive=is_archive) as response:
                    if self._note_rate_limit(response, limit, limits):
                        limits += 1
                        if limits > MAX_RATE_LIMITS:
                            raise ForgeError(
                                f"{self._name} has limited one request {limits} times: run again later to continue"
                            )
                        continue
                    self._check_status(response)
                    return consume(response)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure: Exception = error
                reason = f"{error.request.url.host} cannot be reached"
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure, reason = error, "connection lost"
            except _TransientError as error:
                failure, reason = error, str(error)
            failures += 1
            if failures == MAX_TRIES:
                if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout):
                    raise ForgeError(f"{reason}: check the network, then run again to continue") from None
                raise RefusedError(reason) from None
            backoff = min(2.0 ** (failures - 1), MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1.5)
            self._wait(max(backoff, getattr(failure, "wait_seconds", 0)))

    @contextmanager
    def _open(self, url: httpx.URL, headers: dict[str, str], *, is_archive: bool) -> Iterator[httpx.Response]:
        """The response, after redirects. The token is sent to the forge only."""
        for _ in range(MAX_REDIRECTS + 1):
            is_forge = _origin(url) == _origin(self._url)
            if not is_forge and not (is_archive and self._may_download_from(url)):
                raise RefusedError("redirected to another host")
            own = self._headers if is_forge else {}
            with self._client.stream("GET", url, headers=headers | own) as response:
                if not response.has_redirect_location:
                    yield response
                    return
                url = url.join(response.headers["Location"])  # which httpx has parsed before
        raise RefusedError("redirected too often")

    def _may_download_from(self, url: httpx.URL) -> bool:
        is_safe = url.scheme in ("https", self._url.scheme)
        port = f":{url.port}" if url.port is not None else ""
        return is_safe and url.host + port in self._download_hosts

    def _check_status(self, response: httpx.Response) -> None:
        """Raises the error of a status that is neither success nor "not modified"."""
        status = response.status_code
        if status in (httpx.codes.OK, httpx.codes.NOT_MODIFIED):
            return
        if status == httpx.codes.UNAUTHORIZED:
            raise ForgeError(f"{self._name} does not accept the token (HTTP 401): set another one, or none")
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.REQUEST_TIMEOUT:
            wait = _seconds(response.headers.get("Retry-After"), self._clock.now()) or 0
            raise _TransientError(f"HTTP {status}", min(wait, MAX_WAIT_SECONDS))
        raise RefusedError(_REASONS.get(status, f"HTTP {status}"), is_gone=status in _GONE)

    def _body(
        self, response: httpx.Response, parts: Iterator[bytes], max_bytes: int, max_seconds: float
    ) -> Iterator[bytes]:
        """The parts of a body within limits. httpx raises an error if it is shorter than its Content-Length."""
        n_bytes, deadline = 0, self._clock.now() + max_seconds
        if len(length := response.headers.get("Content-Length", "0")) > 20 or int(length) > max_bytes:
            raise RefusedError(f"over {max_bytes:,} bytes")
        for part in parts:
            n_bytes += len(part)
            if n_bytes > max_bytes:
                raise RefusedError(f"over {max_bytes:,} bytes")
            if self._clock.now() > deadline:
                raise _TransientError(f"an answer that took over {max_seconds} s")
            yield part

    # Rate limits

    def _note_rate_limit(self, response: httpx.Response, limit: str, n_before: int) -> bool:
        """Whether the request was refused because of a rate limit. Notes until when none is made."""
        headers, now = response.headers, self._clock.now()
        is_refused = response.status_code in (httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS)
        until = None
        if is_refused and (seconds := _seconds(headers.get("Retry-After"), now)) is not None:
            until = now + seconds
        elif _header(headers, "RateLimit-Remaining") == "0":
            reset = _header(headers, "RateLimit-Reset") or ""
            until = float(reset) + 1 if reset.isascii() and reset.isdigit() and len(reset) < 12 else None
        if (
            until is None
            and is_refused
            and (response.status_code == httpx.codes.TOO_MANY_REQUESTS or self._is_secondary_limit(response))
        ):
            until = now + SECONDARY_LIMIT_SECONDS * 2 ** min(n_before, 5)
        if until is None:
            return False
        if is_refused:  # the clocks may differ
            until = max(until, now + 2.0**n_before)
        if until - now > MAX_WAIT_SECONDS:
            if not is_refused:
                return False
            hours = (until - now) / 3600
            raise ForgeError(f"{self._name} asks to wait for {hours:,.1f} hours: run again then to continue")
        self._not_before[limit] = max(until, self._not_before.get(limit, 0))
        return is_refused

    def _is_secondary_limit(self, response: httpx.Response) -> bool:
        """GitHub's secondary limits may have no header; their answer links to the page about rate limits."""
        content = b"".join(self._body(response, response.iter_bytes(), MAX_JSON_BYTES, MAX_JSON_SECONDS))
        return b"rate limit" in content or b"rate-limit" in content

    def _wait_until(self, when: float) -> None:
        self._wait(when - self._clock.now())

    def _wait(self, seconds: float) -> None:
        if seconds > _QUIET_SECONDS:
            print_line(f"{self._name}: waits {seconds:,.0f} s before the next request")
        if seconds > 0:
            self._clock.sleep(seconds)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _header(headers: httpx.Headers, name: str) -> str | None:
    """A header about rate limits, which has an X- before its name on GitHub."""
    found = headers.get(f"X-{name}", headers.get(name))
    return str(found) if found is not None else None


def _seconds(retry_after: str | None, now: float) -> float | None:
    """The seconds in a Retry-After header, which is a number or a date; None if it is neither."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:12])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, OverflowError):
        return None
