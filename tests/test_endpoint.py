"""Answers from a server with OpenAI's completions API that does not answer as it should."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from codekiln.errors import ConfigError
from codekiln.evaluate.answers import Question
from codekiln.evaluate.endpoint import EndpointAnswers
from codekiln.evaluate.problems.mbpp import DescribedProgramProblem
from codekiln.evaluate.settings import Settings, preset_settings
from tests.command import codekiln
from tests.peers import published

SAMPLED = Settings(preset="test", n_samples=4, temperatures=(0.5,))


@contextmanager
def answering(reply: Callable[[], tuple[str, str]]) -> Iterator[str]:
    """The address of a server that answers each request with a content type and a body."""
    with answering_requests(lambda _: (200, *reply())) as url:
        yield url


@contextmanager
def answering_requests(reply: Callable[[dict[str, Any]], tuple[int, str, str]]) -> Iterator[str]:
    """The address of a server that answers each request with a status, a content type and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, kind, body = reply(request)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have left
                self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


def question(n: int = 1, task_id: str = "MBPP/11", prompt: str = "") -> Question:
    problem = DescribedProgramProblem(
        task_id=task_id, prompt=prompt, reference="", setup="", tests="assert f()", cpu_seconds=1
    )
    return Question(problem, 0.5, 0, n)


def completion(*texts: str | None) -> str:
    return json.dumps({"choices": [{"index": k, "text": text} for k, text in enumerate(texts)]})


@pytest.mark.parametrize(
    ("kind", "body", "part"),
    [
        ("text/html", "<html>welcome</html>", "did not answer with a completion"),
        ("application/json", '{"object": "error"}', "did not answer with a completion"),
        ("application/json", completion(None, None), "did not answer with a completion"),
        ("application/json", completion("    return 1"), "answered with 1 choices, and 2 are needed"),
    ],
)
def test_an_answer_that_is_no_completion_is_refused(kind: str, body: str, part: str) -> None:
    with answering(lambda: (kind, body)) as url:
        answers = EndpointAnswers(url, "m", "mbpp", SAMPLED).answer(iter([question(2)]))
        with pytest.raises(ConfigError, match=part):
            list(answers)


def refusal(code: str, message: str = "too long") -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}})


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_an_error_of_its_samples_only(status: int) -> None:
    def reply(request: dict[str, Any]) -> tuple[int, str, str]:
        if request["prompt"] == "long":
            return status, "application/json", refusal("context_length_exceeded")
        return 200, "application/json", completion(*["    return 1"] * request["n"])

    asked = [question(2, f"MBPP/{k}", "long" if k in (0, 1, 5) else "short") for k in range(11, 21)]
    asked += [question(2, f"MBPP/{k}", "long") for k in range(30, 50)]
    with answering_requests(reply) as url:
        found = {
            each.problem: samples for each, samples in EndpointAnswers(url, "m", "mbpp", SAMPLED).answer(iter(asked))
        }
    assert len(found) == len(asked)
    for problem, samples in found.items():
        assert [sample.number for sample in samples] == [0, 1]
        for sample in samples:
            if problem.prompt == "long":
                assert f"({status})" in sample.error and "too long" in sample.error and sample.answers == ()
            else:
                assert sample.error == "" and sample.answer == "    return 1"


@pytest.mark.parametrize(
    ("n", "status", "code", "part"),
    [
        (1, 401, "invalid_api_key", r"refused a problem \(401\)"),
        (1, 404, "model_not_found", r"refused a problem \(404\)"),
        (1, 400, "model_not_found", r"refused a problem \(400\)"),
        (8, 400, "unsupported_parameter", "refused all of the first problems"),
    ],
)
def test_a_cause_that_concerns_all_requests_ends_the_evaluation(n: int, status: int, code: str, part: str) -> None:
    with answering_requests(lambda _: (status, "application/json", refusal(code))) as url:
        asked = iter([question(task_id=f"MBPP/{k}") for k in range(11, 11 + n)])
        with pytest.raises(ConfigError, match=part):
            list(EndpointAnswers(url, "m", "mbpp", SAMPLED).answer(asked))


def test_tokens_and_cut_prompts_are_those_of_the_usage() -> None:
    def reply(request: dict[str, Any]) -> tuple[int, str, str]:
        answer = json.loads(completion(*["    return 1"] * request["n"]))
        answer["usage"] = {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}
        if request["prompt"] == "cut":
            answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 0, "cut_tokens": 7}
        return 200, "application/json", json.dumps(answer)

    asked = [question(3, "MBPP/11", "cut"), question(1, "MBPP/12", "short")]
    with answering_requests(reply) as url:
        found = dict(EndpointAnswers(url, "m", "mbpp", SAMPLED).answer(iter(asked)))
    assert [sample.n_tokens for sample in found[asked[0]]] == [4, 3, 3]
    assert [sample.n_cut_tokens for sample in found[asked[0]]] == [7, 7, 7]
    assert [(sample.n_tokens, sample.n_cut_tokens) for sample in found[asked[1]]] == [(10, 0)]


def test_answers_end_before_the_tags_of_incoder() -> None:
    sent: list[dict[str, Any]] = []

    def reply(request: dict[str, Any]) -> tuple[int, str, str]:
        sent.append(request)
        return 200, "application/json", completion("    return 1\n</code>\nThanks")

    settings = preset_settings("incoder", "programs", can_infill=True)
    with answering_requests(reply) as url:
        [(_, [sample])] = EndpointAnswers(url, "m", "mbpp", settings).answer(iter([question()]))
    assert sample.answer == "    return 1\n" and sample.texts == ("    return 1\n</code>\nThanks",)
    assert len(sent[0]["stop"]) == 4  # of OpenAI's API


def test_an_open_request_does_not_delay_the_end() -> None:
    is_first, is_over, has_answered = threading.Lock(), threading.Event(), threading.Event()

    def reply() -> tuple[str, str]:
        if not is_first.acquire(blocking=False):
            is_over.wait(30)
            has_answered.set()
        return "application/json", completion("    return 1")

    with answering(reply) as url:
        answers = EndpointAnswers(url, "m", "mbpp", SAMPLED).answer(iter([question(), question(task_id="MBPP/12")]))
        assert next(answers)[1][0].texts == ("    return 1",)
        answers.close()  # type: ignore[attr-defined]
        assert not has_answered.is_set()
        is_over.set()


def test_no_key_is_needed_and_none_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = published("HumanEval.jsonl.gz").parent
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with answering(lambda: ("application/json", completion("    return 1"))) as url:
        address = url.replace("//", "//user:secret@") + "?key=secret"
        done = codekiln(
            "evaluate", "m", "--endpoint", address, "--on", "humaneval", "--data", data, "--limit", 1,
            "--out", tmp_path / "out",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or "secret" not in path.read_text(encoding="utf-8"), path
