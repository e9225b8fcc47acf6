"""The server under abuse and at the edges of HTTP: slow and idle clients, odd headers, wrong and large bodies."""

import asyncio
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from codekiln.serve.server import listen
from tests.small import program, program_environment

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def address(small_run: Path) -> Iterator[tuple[str, int]]:
    """A server with short time limits, so that the tests need not wait for the real ones."""
    with subprocess.Popen(
        program("serve_with_limits.py", small_run), env=program_environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield "127.0.0.1", port
        server.terminate()


@pytest.fixture
def url(address: tuple[str, int]) -> str:
    return f"http://{address[0]}:{address[1]}"


def post(url: str, body: dict[str, Any]) -> tuple[int, str]:
    answer = httpx.post(url + "/v1/completions", json={"prompt": "def f(", "max_tokens": 2} | body, timeout=60)
    return answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]["message"]


def exchange(address: tuple[str, int], request: bytes) -> bytes:
    """The raw answer to a raw request."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(request)
        client.settimeout(30)
        received = b""
        while part := client.recv(65_536):
            received += part
            head, _, rest = received.partition(b"\r\n\r\n")
            lengths = [
                line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
            ]
            if head and lengths and len(rest) >= int(lengths[0]):
                break
        return received


def test_many_stop_strings_and_prompts_are_taken_and_wrong_ones_named(url: str) -> None:
    assert post(url, {"stop": [f"stop {k}" for k in range(32)]})[0] == 200
    for body, field, value in (
        ({"stop": [f"stop {k}" for k in range(33)]}, "stop", "at most 32"),
        ({"stop": [""]}, "stop", "1 to 1000 characters"),
        ({"stop": 5}, "stop", "a text or a list of texts"),
        ({"prompt": ["x"] * 17}, "prompt", "1 to 16 texts (got 17)"),
        ({"prompt": []}, "prompt", "1 to 16 texts (got 0)"),
        ({"prompt": [1, "x"]}, "prompt", "a list of texts, of token ids"),
        ({"prompt": 7}, "prompt", "a text or a list of texts"),
    ):
        status, message = post(url, body)
        assert status == 400 and message.startswith(f"{field}: ") and value in message, message


def test_an_unknown_model_is_not_found(url: str) -> None:
    assert post(url, {"model": "run"})[0] == 200
    assert post(url, {"model": "gpt-4"}) == (404, "model 'gpt-4' does not exist: this server has 'run'")
    assert httpx.get(url + "/v1/models/run").json()["id"] == "run"
    assert httpx.get(url + "/v1/models/other").status_code == 404


def test_head_is_answered_wherever_get_is(url: str) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/models/run", "/playground.js", "/playground.css"):
        head, get = httpx.head(url + path), httpx.get(url + path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


def test_content_type_is_compared_as_the_standard_says(url: str) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    for content_type, status in (
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/json ;charset=utf-8", 200),
        ("text/plain", 415),
        ("application/jsonx", 415),
        ("", 415),
    ):
        answer = httpx.post(url + "/v1/completions", content=body, headers={"Content-Type": content_type}, timeout=60)
        assert answer.status_code == status, content_type


def test_bodies_in_other_encodings_and_nested_without_end_are_refused(url: str) -> None:
    headers = {"Content-Type": "application/json"}
    for content in (
        '{"prompt": "x"}'.encode("utf-16"),
        b"\xff",
        b"[" * 100_000,
        b'{"prompt": 1e',
        b"9" * 10_000,
        b"[]",
    ):
        answer = httpx.post(url + "/v1/completions", content=content, headers=headers, timeout=60)
        assert answer.status_code == 400, content[:20]


def test_hosts_and_versions(address: tuple[str, int]) -> None:
    for request, status in (
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nHost: box:80\r\n\r\n", b"200"),  # allowed by the option
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET /health HTTP/1.1\r\nHost: [::1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a b\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /health HTTP/2.7\r\nHost: localhost\r\n\r\n", b"505"),
    ):
        answer = exchange(address, request)
        assert answer.split(b" ")[1] == status, (request, answer)


def test_large_bodies_are_refused_while_they_arrive(address: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(2_000):
            connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    connection.close()
    assert httpx.get(f"http://{address[0]}:{address[1]}/health").status_code == 200


def test_silent_and_slow_clients_keep_nobody_out(address: tuple[str, int], url: str) -> None:
    """More connections than the server allows, half of them silent, half sending a header byte by byte."""
    clients = [socket.create_connection(address, timeout=30) for _ in range(60)]
    try:
        for k in range(20):
            for client in clients[::2]:
                with contextlib.suppress(OSError):  # closed, to make room
                    client.send(b"GET /health HTTP/1.1\r\nX: y"[k : k + 1])
            assert httpx.get(url + "/health", timeout=30).status_code == 200
        assert post(url, {})[0] == 200
        deadline = time.monotonic() + 60
        for client in clients:  # all are closed by the server at last
            client.settimeout(max(1.0, deadline - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                while client.recv(1000):
                    pass
    finally:
        for client in clients:
            client.close()


def test_a_body_that_never_ends_is_answered_408(address: tuple[str, int]) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    assert exchange(address, head).split(b" ")[1] == b"408"


def test_an_empty_suffix_is_a_completion_where_the_model_cannot_infill(small_run: Path, tmp_path: Path) -> None:
    """Editors send an empty suffix at the end of a file. The tokenizer is made one without an infilling format."""
    shutil.copytree(small_run / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"infill_format": None}), encoding="utf-8"
    )
    with subprocess.Popen(
        program("serve_with_limits.py", tmp_path / "model"),
        env=program_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        try:
            assert post(url, {"suffix": ""})[0] == 200
            status, message = post(url, {"suffix": "\n"})
        finally:
            server.terminate()
    assert status == 400
    assert "cannot infill" in message


def test_answers_do_not_wait_for_acknowledgments_of_their_headers() -> None:
    """Nagle's algorithm would hold back the second part of each answer, and each token of a stream, for 40 ms."""

    async def ask() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as listening:
            address = listening.getsockname()
            async with await asyncio.start_server(answer, sock=listening):
                _, writer = await asyncio.open_connection(*address)
                writer.close()
                return await asyncio.wait_for(accepted, 10)

    assert asyncio.run(ask())
