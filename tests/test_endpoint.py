"""Answers from a server with OpenAI's completions API that does not answer as it should."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from codekiln.errors import ConfigError
from codekiln.evaluate.answers import Question
from codekiln.evaluate.endpoint import EndpointAnswers
from codekiln.evaluate.problems.mbpp import DescribedProgramProblem
from codekiln.evaluate.settings import Settings
from tests.command import codekiln
from tests.peers import published

SAMPLED = Settings(preset="test", n_samples=4, temperatures=(0.5,))


@contextmanager
def answering(reply: Callable[[], tuple[str, str]]) -> Iterator[str]:
    """The address of a server that answers each request with a content type and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kind, body = reply()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
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


def question(n: int = 1, task_id: str = "MBPP/11") -> Question:
    problem = DescribedProgramProblem(
        task_id=task_id, prompt="", reference="", setup="", tests="assert f()", cpu_seconds=1
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
