"""A server on this machine that answers as GitHub's and GitLab's APIs do, and on request as no server should.

The forms of the answers are those of docs.github.com/rest and docs.gitlab.com/api.
"""

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

MAX_RESULTS = 1000


@dataclass
class Hosted:
    """A repository on the server."""

    id: int
    name: str
    files: dict[str, str]
    stars: int = 5
    license: str | None = "MIT"
    language: str | None = "Python"
    created_at: str = "2020-05-01T12:00:00Z"
    pushed_at: str = "2021-01-01T00:00:00Z"
    branch: str | None = "main"
    is_fork: bool = False
    is_archived: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(json.dumps([self.id, self.files]).encode()).hexdigest()

    def archive(self) -> bytes:
        return make_archive({f"{self.name.replace('/', '-')}-{self.commit[:7]}/{k}": v for k, v in self.files.items()})


def make_archive(files: dict[str, str]) -> bytes:
    """A .tar.gz as `git archive` makes it: folders before their files, sorted by name, with a global header."""
    out = io.BytesIO()
    comment = {"comment": "0" * 40}
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers=comment) as tar:
        folders: set[str] = set()
        for name in sorted(files):
            parts = name.split("/")
            for n in range(1, len(parts)):
                if (folder := "/".join(parts[:n])) not in folders:
                    folders.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type = tarfile.DIRTYPE
                    tar.addfile(entry)
            entry = tarfile.TarInfo(name)
            data = files[name].encode("utf-8", "surrogateescape")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Request:
    path: str
    headers: Message
    status: int


Fault = Callable[["_Handler"], None]


@dataclass
class ForgeServer:
    """`faults` are answers to the next requests whose path contains the key, one for each."""

    repositories: list[Hosted]
    url: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def requests(self, part: str = "") -> list[Request]:
        return [request for request in self.log if part in unquote(request.path)]

    def named(self, name: str) -> Hosted:
        return next(each for each in self.repositories if each.name == name)

    def numbered(self, id: str) -> Hosted:
        return next(each for each in self.repositories if each.id == int(id))


@contextmanager
def forge_server(repositories: list[Hosted]) -> Iterator[ForgeServer]:
    """A server on a free port of 127.0.0.1."""
    forge = ForgeServer(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"forge": forge}))
    server.daemon_threads = True
    forge.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield forge
    finally:
        forge.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    forge: ForgeServer

    def do_GET(self) -> None:
        for part, faults in self.forge.faults.items():
            if part in unquote(self.path) and faults:
                faults.pop(0)(self)
                return
        url = urlsplit(self.path)
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            self._answer(url.path, parameters)
        except StopIteration:
            self.send({"message": "Not Found"}, status=404)

    def _answer(self, path: str, parameters: dict[str, str]) -> None:
        if path == "/search/repositories":
            self._search(parameters)
        elif found := re.fullmatch(r"/repos/([^/]+/[^/]+)/git/ref/heads/(.+)", path):
            hosted = self.forge.named(found[1])
            assert unquote(found[2]) == hosted.branch
            self.send({"ref": f"refs/heads/{hosted.branch}", "object": {"type": "commit", "sha": hosted.commit}})
        elif found := re.fullmatch(r"/repos/([^/]+/[^/]+)/tarball/(\w+)", path):
            self.send(b"", status=302, headers={"Location": f"/codeload/{found[1]}/legacy.tar.gz/{found[2]}"})
        elif found := re.fullmatch(r"/codeload/([^/]+/[^/]+)/legacy.tar.gz/\w+", path):
            self.send(self.forge.named(found[1]).archive())
        elif path == "/api/v4/projects":
            self._projects(parameters)
        elif found := re.fullmatch(r"/api/v4/projects/(\d+)", path):
            license = self.forge.numbered(found[1]).license
            self.send({"id": int(found[1]), "license": {"key": license.lower()} if license else None})
        elif found := re.fullmatch(r"/api/v4/projects/(\d+)/languages", path):
            self.send({"HTML": 30.5, self.forge.numbered(found[1]).language: 69.5})
        elif found := re.fullmatch(r"/api/v4/projects/(\d+)/repository/branches/(.+)", path):
            hosted = self.forge.numbered(found[1])
            assert unquote(found[2]) == hosted.branch
            self.send({"name": hosted.branch, "commit": {"id": hosted.commit}})
        elif found := re.fullmatch(r"/api/v4/projects/(\d+)/repository/archive.tar.gz", path):
            assert parameters["sha"] == self.forge.numbered(found[1]).commit
            self.send(self.forge.numbered(found[1]).archive())
        else:
            raise StopIteration

    def _search(self, parameters: dict[str, str]) -> None:
        """GitHub's search: 1,000 results at most, qualifiers as its documentation has them."""
        words = dict(re.findall(r'(\w+):("[^"]*"|\S+)', parameters["q"]))

        def fits(each: Hosted) -> bool:
            first, last = words["created"].split("..")
            stars = words["stars"]
            low, high = stars.split("..") if ".." in stars else (stars.removeprefix(">="), "1000000000")
            pushed = words.get("pushed", "0..9").split("..")
            return (
                first <= each.created_at <= last
                and int(low) <= each.stars <= int(high)
                and pushed[0] <= each.pushed_at[:10] <= pushed[1]
                and words.get("language", f'"{each.language}"') == f'"{each.language}"'
                and words.get("license", str(each.license).lower()) == str(each.license).lower()
                and words.get("archived", str(each.is_archived).lower()) == str(each.is_archived).lower()
                and not each.is_fork
            )

        found = sorted(filter(fits, self.forge.repositories), key=lambda each: (-each.stars, each.id))
        page, per_page = int(parameters.get("page", "1")), int(parameters["per_page"])
        if page * per_page > MAX_RESULTS:
            self.send({"message": "Only the first 1000 search results are available"}, status=422)
            return
        items = [
            {
                "id": each.id,
                "full_name": each.name,
                "private": False,
                "fork": each.is_fork,
                "archived": each.is_archived,
                "stargazers_count": each.stars,
                "created_at": each.created_at,
                "pushed_at": each.pushed_at,
                "default_branch": each.branch,
                "language": each.language,
                "license": {"key": each.license.lower(), "spdx_id": each.license} if each.license else None,
            }
            for each in found[(page - 1) * per_page : page * per_page]
        ]
        is_last = page * per_page >= min(len(found), MAX_RESULTS)
        link = f'<{self.forge.url}/search/repositories?{urlencode(parameters | {"page": page + 1})}>; rel="next"'
        record = {"total_count": len(found), "incomplete_results": False, "items": items}
        self.send(record, headers={} if is_last else {"Link": link})

    def _projects(self, parameters: dict[str, str]) -> None:
        """GitLab's projects, by keyset pagination."""
        assert parameters["pagination"] == "keyset" and parameters["order_by"] == "id" and parameters["sort"] == "asc"
        start, per_page = int(parameters.get("id_after", "-1")), int(parameters["per_page"])
        language = parameters.get("with_programming_language")
        found = [
            each
            for each in sorted(self.forge.repositories, key=lambda each: each.id)
            if each.id > start and language in (None, each.language, "HTML")
        ]
        items: list[dict[str, Any]] = [
            {
                "id": each.id,
                "path_with_namespace": each.name,
                "visibility": "public",
                "archived": each.is_archived,
                "star_count": each.stars,
                "created_at": each.created_at,
                "last_activity_at": each.pushed_at,
                "default_branch": each.branch,
            }
            | ({"forked_from_project": {"id": 1}} if each.is_fork else {})
            for each in found[:per_page]
        ]
        following = parameters | {"id_after": items[-1]["id"]} if items else {}
        link = f'<{self.forge.url}/api/v4/projects?{urlencode(following)}>; rel="next"'
        self.send(items, headers={"Link": link} if len(found) > per_page else {})

    def send(self, content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """JSON or bytes, with an ETag: the status is 304 if the client has it."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
        if status == 200 and self.headers.get("If-None-Match") == etag:
            status, body = 304, b""
        self.begin(status, {"ETag": etag, "Content-Length": str(len(body))} | (headers or {}))
        self.wfile.write(body)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Sends the status and the headers only."""
        self.forge.log.append(Request(self.path, self.headers, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


# Faults


def refuse(status: int, headers: dict[str, str] | None = None, message: str = "no") -> Fault:
    return lambda handler: handler.send({"message": message}, status=status, headers=headers)


def drop_connection(handler: _Handler) -> None:
    """Closes the connection in the middle of a body."""
    handler.begin(200, {"Content-Length": "100000"})
    handler.wfile.write(b"[" * 1000)
    handler.close_connection = True


def send_html(handler: _Handler) -> None:
    handler.send(b"<html><body>Our site is down for maintenance.</body></html>")


def send_bytes(body: bytes, length: int | None = None) -> Fault:
    """A body with a Content-Length that may be wrong."""

    def send(handler: _Handler) -> None:
        n_bytes = len(body) if length is None else length
        handler.begin(200, {"Content-Length": str(n_bytes), "Connection": "close"})
        handler.wfile.write(body)
        handler.close_connection = True

    return send


def redirect(url: str) -> Fault:
    return lambda handler: handler.send(b"", status=302, headers={"Location": url})


def never_end(handler: _Handler) -> None:
    """A body in chunks without an end."""
    handler.begin(200, {"Transfer-Encoding": "chunked"})
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    try:
        while not handler.forge.stopped.is_set():
            handler.wfile.write(chunk)
    except OSError:
        handler.close_connection = True


def stall(handler: _Handler) -> None:
    """Half of a body, and then nothing."""
    handler.begin(200, {"Content-Length": "100000"})
    handler.wfile.write(gzip.compress(b"x" * 100))
    handler.wfile.flush()
    handler.forge.stalled.set()
    handler.forge.stopped.wait(60)
    handler.close_connection = True
