"""Many clients that behave badly at the same time, against the real server: every request ends, and no answer is wrong."""

import contextlib
import json
import random
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.small import running_server

N_CLIENTS = 16
PROMPTS = [
    "def open_door(name",
    "def count(items):\n    ",
    "class Window",
    "x = ",
    "import os\n",
    "return name",
    "# é日😀\n",
]
MAX_GROWTH_MEGABYTES = 60  # of the server's memory, after a tenth of the requests has warmed it up


@dataclass(frozen=True)
class SoakedServer:
    """A server and what it answers when it has nothing else to do."""

    port: int
    process: "subprocess.Popen[str]"
    expected: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/completions"

    def memory_megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1000


@pytest.fixture
def server(small_run: Path) -> Iterator[SoakedServer]:
    with running_server(small_run) as running:
        started = SoakedServer(int(running.url.rpartition(":")[2]), running.process, {})
        for prompt in PROMPTS:
            answer = httpx.post(started.url, json=body(prompt), timeout=60)
            started.expected[prompt] = answer.json()["choices"][0]["text"]
        yield started


def body(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 10, "temperature": 0} | fields


def whole(server: SoakedServer, rng: random.Random) -> str:
    prompts = [rng.choice(PROMPTS) for _ in range(rng.randrange(1, 4))]
    answer = httpx.post(server.url, json=body("", n=rng.randrange(1, 3)) | {"prompt": prompts}, timeout=120)
    if answer.status_code == 429:
        assert answer.headers["retry-after"]
        return "busy"
    choices = answer.json()["choices"]
    n = len(choices) // len(prompts)
    assert [choice["text"] for choice in choices] == [server.expected[p] for p in prompts for _ in range(n)]
    return "whole"


def streamed(server: SoakedServer, rng: random.Random) -> str:
    prompt = rng.choice(PROMPTS)
    with httpx.stream("POST", server.url, json=body(prompt, stream=True, logprobs=2), timeout=120) as answer:
        if answer.status_code == 429:
            return "busy"
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(choice["text"] for choice in choices) == server.expected[prompt]
    return "streamed"


def refused(server: SoakedServer, rng: random.Random) -> str:
    """Requests that no server can honor; each is answered with a status that says so."""
    contents = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 10_000,
        json.dumps(body("x", max_tokens=-1)).encode(),
        json.dumps(body("x", n=10**9)).encode(),
        json.dumps(body("x", max_tokens=10**30)).encode(),
        json.dumps(body("x", temperature="hot")).encode(),
        json.dumps(body("x", stop=[""] * 50)).encode(),
        json.dumps(body("x", beams=3)).encode(),
        b'{"prompt": "x", "top_p": NaN}',
        b'{"prompt": "x", "logit_bias": {"999999": 1}}',
        json.dumps(body("a " * 20_000)).encode(),
    ]
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url, content=rng.choice(contents), headers=headers, timeout=120)
    assert answer.status_code in (400, 429), answer.text
    assert answer.json()["error"]["message"]
    return "refused"


def odd_text(server: SoakedServer, rng: random.Random) -> str:
    """Spellings of control tokens and halves of characters are text as any other."""
    bodies = [
        body("<|endoftext|><|fim_middle|>" * 3, suffix="<|fim_prefix|>"),
        body("half of a character: \ud800", suffix="\udfff"),
        body("y", stop=["\udc00"]),
    ]
    content = json.dumps(rng.choice(bodies)).encode()
    answer = httpx.post(server.url, content=content, headers={"Content-Type": "application/json"}, timeout=120)
    assert answer.status_code in (200, 429), answer.text
    return "odd text"


def request_bytes(content: bytes, length: int | None = None) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content) if length is None else length}\r\n\r\n".encode() + content


def vanishing(server: SoakedServer, rng: random.Random) -> str:
    """The client leaves in the middle of its request, before the answer, or in the middle of the answer."""
    data = request_bytes(json.dumps(body("def f(", max_tokens=100, stream=rng.random() < 0.5)).encode())
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client, contextlib.suppress(OSError):
        client.sendall(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        if rng.random() < 0.5:
            client.recv(300)
    return "vanished"


def slow(server: SoakedServer, rng: random.Random) -> str:
    prompt = rng.choice(PROMPTS)
    data = request_bytes(json.dumps(body(prompt)).encode())
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        for start in range(0, len(data), 40):
            client.sendall(data[start : start + 40])
            time.sleep(0.01)
        received = b""
        while b"}]" not in received and b'"error"' not in received:
            part = client.recv(65_536)
            assert part, received
            received += part
    if b" 429 " not in received.split(b"\r\n")[0]:
        assert json.loads(received.split(b"\r\n\r\n")[1])["choices"][0]["text"] == server.expected[prompt]
    return "slow"


def huge(server: SoakedServer, rng: random.Random) -> str:
    """100 MB are announced; the server answers as soon as it has read more than it takes."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as client,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        client.sendall(request_bytes(b'{"prompt": "', 100_000_000))
        for _ in range(100):
            client.sendall(b"x" * 1_000_000)
        raise AssertionError("the server read 100 MB")
    return "huge"


BEHAVIORS: list[tuple[Callable[[SoakedServer, random.Random], str], int]] = [
    (whole, 30), (streamed, 30), (refused, 15), (odd_text, 5), (vanishing, 15), (slow, 4), (huge, 1)
]  # fmt: skip


def run_clients(server: SoakedServer, n_requests: int) -> Counter[str]:
    functions, weights = zip(*BEHAVIORS, strict=True)

    def client(number: int) -> str:
        rng = random.Random(number)
        return str(rng.choices(functions, weights)[0](server, rng))

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        return Counter(pool.map(client, range(n_requests)))


def check(server: SoakedServer, n_requests: int) -> None:
    seen = run_clients(server, n_requests // 10)
    before = server.memory_megabytes()
    seen += run_clients(server, n_requests - n_requests // 10)
    growth = server.memory_megabytes() - before
    assert sum(seen.values()) == n_requests and seen["whole"] > seen["busy"]
    assert growth < MAX_GROWTH_MEGABYTES, f"the server grew by {growth:.0f} MB"
    # Nothing is left of those who vanished: the engine becomes idle, and a request is answered as at first.
    deadline = time.monotonic() + 60
    metrics = ""
    while "codekiln_open_requests 0.0" not in metrics and time.monotonic() < deadline:
        metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=60).text
    assert "codekiln_open_requests 0.0" in metrics
    for prompt, text in server.expected.items():
        assert httpx.post(server.url, json=body(prompt), timeout=60).json()["choices"][0]["text"] == text


@pytest.mark.process
def test_clients_that_behave_badly_harm_nobody(server: SoakedServer) -> None:
    check(server, 120)


@pytest.mark.slow
@pytest.mark.process
def test_ten_thousand_requests_leave_nothing_behind(server: SoakedServer) -> None:
    check(server, 10_000)
