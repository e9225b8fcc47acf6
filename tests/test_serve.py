"""The server, tested with the openai client, plain HTTP and a browser against the real command."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.serve.limits import DEFAULT_MAX_BODY_BYTES
from codekiln.serve.server import listen
from tests.small import program, program_environment, run_program, running_server

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def url(small_run: Path) -> Iterator[str]:
    with running_server(small_run) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openai_client_gets_the_completion_of_the_engine(client: openai.OpenAI, small_run: Path) -> None:
    prompt = "def open_door(name"
    answer = client.completions.create(model="run", prompt=prompt, max_tokens=20, temperature=0)
    expected = Completer.load(small_run).complete(
        [InfillRequest(prompt)], CompletionParams(max_new_tokens=20, sampling=GREEDY)
    )[0]
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        expected.prompt_tokens,
        expected.completion_tokens,
    )


def test_streamed_equals_whole(client: openai.OpenAI) -> None:
    for stop in (None, "\n"):
        for temperature in (0, 0.7):
            ask: Callable[..., Any] = partial(
                client.completions.create,
                model="run",
                prompt="def f(",
                suffix="\n\nf()",
                max_tokens=30,
                temperature=temperature,
                stop=stop,
                seed=3,
            )
            whole, pieces = ask(stream=False), ask(stream=True)
            chunks = [piece.choices[0] for piece in pieces]
            assert "".join(chunk.text for chunk in chunks) == whole.choices[0].text
            assert [c.finish_reason for c in chunks][-1:] == [whole.choices[0].finish_reason]


def test_special_tokens_in_prompt_and_suffix_are_text(client: openai.OpenAI, small_run: Path) -> None:
    prompt, suffix = "x = '<|endoftext|><|fim_middle|>'\n", "<|fim_prefix|>\n"
    answer = client.completions.create(model="run", prompt=prompt, suffix=suffix, max_tokens=4, temperature=0)
    tokenizer = Completer.load(small_run).tokenizer
    n_text = sum(len(tokenizer.encode(text)) for text in (prompt, suffix))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == n_text + 4, "its pieces, three sentinels and the beginning"


def test_batched_equals_single(client: openai.OpenAI) -> None:
    prompts = ["def a(", "x = ", "import "]
    together = client.completions.create(model="run", prompt=prompts, max_tokens=8, temperature=0)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    for prompt, choice in zip(prompts, together.choices, strict=True):
        alone = client.completions.create(model="run", prompt=prompt, max_tokens=8, temperature=0)
        assert alone.choices[0].text == choice.text


def test_concurrent_requests_are_all_answered(url: str) -> None:
    body = {"prompt": "def f(", "max_tokens": 10, "temperature": 0}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.post(url + "/v1/completions", json=body, timeout=60).json(), range(8)))
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1


@pytest.fixture
def counting() -> Iterator[str]:
    """The address of a server whose completer counts its steps: "fast", "slow" or "silent" ones, as the prompt says."""
    server = subprocess.Popen(program("serve_counter.py"), env=program_environment(), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}/v1/completions"
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=20)


def counted(url: str) -> int:
    answer = httpx.post(url, json={"prompt": "count"}, timeout=20)
    return int(answer.json()["choices"][0]["text"])


def test_client_that_does_not_read_does_not_block_others(counting: str) -> None:
    body = json.dumps({"prompt": "fast", "max_tokens": 4096, "stream": True}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = int(counting.split(":")[2].split("/", maxsplit=1)[0])
        client.connect(("127.0.0.1", port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while counted(counting) < 4096:  # its 20 MB are buffered, and other requests are answered
            pass


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["slow", "silent"])
def test_disconnected_client_stops_decoding(counting: str, prompt: str, stream: bool) -> None:
    body = {"prompt": prompt, "max_tokens": 4096, "stream": stream}
    with pytest.raises(httpx.ReadTimeout), httpx.stream("POST", counting, json=body, timeout=1) as response:
        for _ in response.iter_lines():
            if prompt == "slow" and stream:
                raise httpx.ReadTimeout("disconnects at the first event")
    before, n_steps = -1, counted(counting)
    while n_steps != before:  # a busy server notices it later
        time.sleep(0.5)
        before, n_steps = n_steps, counted(counting)
    assert 0 < n_steps < 4096


def test_other_host_names_are_refused(url: str) -> None:
    for name, status in {
        "localhost:80": 200,
        "127.0.0.1": 200,
        "[::1]:8080": 200,
        "evil.example": 421,
        "": 400,
    }.items():
        assert httpx.get(url + "/health", headers={"Host": name}).status_code == status


def test_oversized_body_is_refused(url: str) -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    # A body that is one byte too long is answered. A client that keeps sending finds the connection closed.
    large = httpx.post(
        url + "/v1/completions", content=b" " * (DEFAULT_MAX_BODY_BYTES + 1), headers=headers, timeout=60
    )
    assert large.status_code == 413 and f"{DEFAULT_MAX_BODY_BYTES:,}" in large.json()["error"]["message"]
    long = httpx.post(url + "/v1/completions", json={"prompt": "x" * DEFAULT_MAX_BODY_BYTES}, timeout=60)
    assert long.status_code == 413
    with contextlib.suppress(httpx.NetworkError):
        assert httpx.post(url + "/v1/completions", content=forever(), headers=headers, timeout=60).status_code == 413
    plain = httpx.post(url + "/v1/completions", content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code in (400, 415)


def test_neutral_parameters_are_accepted(client: openai.OpenAI) -> None:
    usual: dict[str, Any] = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "best_of": 1,
        "logit_bias": {},
        "stop": None,
    }
    answer = client.completions.create(model="run", prompt="x", temperature=0, max_tokens=None, **usual)
    pieces = list(
        client.completions.create(
            model="run", prompt="x", temperature=0, stream=True, stream_options={"include_usage": True}, **usual
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == answer.choices[0].text
    assert pieces[-1].usage == answer.usage is not None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 1000}, "max_tokens"),
        ({"prompt": "x", "temperature": 5}, "temperature"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 300}, "n"),
        ({"prompt": ["x"] * 10, "n": 30}, "n"),
        ({"prompt": "x", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
        ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "x", "top_k": -2}, "top_k"),
        ({"prompt": "x", "suffix": "y", "echo": True}, "suffix"),
        ({"prompt": [1, 2], "suffix": "y"}, "suffix"),
        ({"prompt": [1, 10**6]}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"prompt": "x " * 5000}, "prompt"),
        ({"prompt": "x", "beams": 4}, "beams"),
        ({"prompt": "x", "n": True}, "n"),
        ({"prompt": "x", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "x", "frequency_penalty": 5}, "frequency_penalty"),
        ({"prompt": None}, "prompt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_request_is_refused_by_its_field(url: str, body: dict[str, object], field: str) -> None:
    response = httpx.post(url + "/v1/completions", json=body, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert response.json()["error"]["message"].startswith(field)


def test_invalid_json_is_refused(url: str) -> None:
    for content, message in ((b"\xff{", ""), (b'{"prompt":', "JSON")):
        response = httpx.post(url + "/v1/completions", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]


def test_special_tokens_in_a_request_are_text(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="run", prompt="<|endoftext|><|fim_middle|>", max_tokens=4, temperature=0)
    assert plain.usage is not None and plain.usage.prompt_tokens > 8


def test_each_request_is_counted_and_logged_without_its_text(small_run: Path) -> None:
    with running_server(small_run) as server:
        body = {"prompt": "SECRET_PROMPT = ", "max_tokens": 3, "temperature": 0}
        assert httpx.post(server.url + "/v1/completions", json=body, timeout=60).status_code == 200
        assert httpx.post(server.url + "/v1/completions", json=body | {"n": 0}, timeout=60).status_code == 400
        assert httpx.get(server.url + "/SECRET/%0Apath").status_code == 404
        assert httpx.get(server.url + "/health").status_code == 200
        counts = {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for family in text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
            for sample in family.samples
            if sample.name == "codekiln_requests_total"
        }
    lines = [line for line in server.lines if " GET " in line or " POST " in line]
    assert counts == {
        ("/v1/completions", "200"): 1,
        ("/v1/completions", "400"): 1,
        ("other", "404"): 1,
        ("/health", "200"): 1,
    }
    assert [line.split()[2:5] for line in lines] == [
        ["POST", "/v1/completions", "200"],
        ["POST", "/v1/completions", "400"],
        ["GET", "other", "404"],
    ]
    for part in (" done ", "prompt_tokens=", "cached_tokens=0", "completion_tokens=3", "first_token="):
        assert part in lines[0]
    assert "SECRET" not in "".join(server.lines)


def test_requests_are_refused_until_the_model_is_loaded(small_run: Path) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "codekiln", "serve", str(small_run), "--port", str(port)]
    url, statuses = f"http://127.0.0.1:{port}", list[int]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            while process.poll() is None and 200 not in statuses:
                with contextlib.suppress(httpx.TransportError):
                    answer = httpx.get(url + "/ready", timeout=30)
                    statuses.append(answer.status_code)
                    if answer.status_code == 503:
                        assert answer.headers["retry-after"] == "1"
                        assert "being loaded" in answer.json()["error"]["message"]
                time.sleep(0.01)
            assert process.stdout is not None and url in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
    assert statuses[0] == 503 and set(statuses) == {503, 200}


def test_a_client_that_leaves_before_its_body_has_arrived_is_no_error(small_run: Path) -> None:
    with running_server(small_run) as server:
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 0)) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            time.sleep(0.5)
        time.sleep(0.5)
        assert httpx.get(server.url + "/health").status_code == 200
    assert [line.split()[2:5] for line in server.lines if " POST " in line] == [["POST", "/v1/completions", "499"]]


def test_port_in_use_is_reported(small_run: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "codekiln", "serve", str(small_run), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("codekiln: error: ") and done.stderr.count("\n") == 1
    for part in (f"127.0.0.1:{port}", "Address already in use", "--port"):
        assert part in done.stderr


def test_server_imports_no_training_code(small_run: Path) -> None:
    modules = run_program("list_server_modules.py", small_run).stdout.split()
    assert "codekiln.serve.server" in modules
    assert not [m for m in modules if m.startswith(("codekiln.train", "codekiln.corpus", "daft", "pyarrow"))]


def test_unknown_model_is_answered_with_404(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4") as refusal:
        client.completions.create(model="gpt-4", prompt="x", max_tokens=4)
    assert refusal.value.code == "model_not_found" and refusal.value.param == "model"
    answer = httpx.post(url + "/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
    assert answer.status_code == 200 and answer.json()["model"] == "run"


def test_event_stream_ends_with_done(url: str) -> None:
    body = {"prompt": "x", "max_tokens": 3, "stream": True}
    with httpx.stream("POST", url + "/v1/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line for line in response.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events[:-1])


def test_loading_can_be_interrupted(small_run: Path) -> None:
    """Although a thread computes, which would abort the interpreter at its end."""
    with subprocess.Popen(
        program("load_endlessly.py", small_run),
        env=program_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
