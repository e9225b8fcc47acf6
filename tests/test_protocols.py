"""The protocols of editors, with their real clients and their recorded requests, against the real command."""

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mistralai.client
import ollama
import openai
import pytest

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.context import ContextFile, RepositoryContext
from codekiln.generate.postprocess import Cursor, PostProcessing, postprocess
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.serve.fim_templates import find_hole
from codekiln.serve.protocols.llama_cpp import LineLimits
from tests.small import program, program_environment, running_server

pytestmark = pytest.mark.process

REQUESTS = Path(__file__).parent / "golden" / "requests"
PREFIX, SUFFIX = "def open_door(name, count=1):\n", "\n    return steps\n"
INFILL: dict[str, Any] = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 24}
FIM: dict[str, Any] = {"model": "run", "prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 24}
GENERATE: dict[str, Any] = {"model": "run", "prompt": PREFIX, "suffix": SUFFIX, "stream": False}
TABBY: dict[str, Any] = {"segments": {"prefix": PREFIX, "suffix": SUFFIX}}


@contextlib.contextmanager
def serving(run: Path, *options: str) -> Iterator[str]:
    """The address of `codekiln serve` with the precision of `Completer.load`."""
    with running_server(run, "--weights", "float32", *options) as server:
        yield server.url


@pytest.fixture(scope="module")
def url(small_run: Path) -> Iterator[str]:
    with serving(small_run) as address:
        yield address


@pytest.fixture(scope="module")
def recognizing(small_run: Path) -> Iterator[str]:
    with serving(small_run, "--recognize-fim") as address:
        yield address


@pytest.fixture(scope="module")
def postprocessing(small_run: Path) -> Iterator[str]:
    with serving(small_run, "--postprocess", "block") as address:
        yield address


@pytest.fixture(scope="module")
def completer(small_run: Path) -> Completer:
    return Completer.load(small_run)


@pytest.fixture
def counting() -> Iterator[str]:
    """A server whose completer counts its steps: those of the prompt "slow" take 10 ms."""
    server = subprocess.Popen(program("serve_counter.py"), env=program_environment(), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=20)


def post(url: str, path: str, body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=60)


def answered(url: str, path: str, body: Any) -> Any:
    response = post(url, path, body)
    assert response.status_code == 200, response.text
    return response.json()


def events(url: str, path: str, body: Any) -> list[Any]:
    """The records of a stream of server-sent events, without the end mark."""
    with httpx.stream("POST", url + path, json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def expected(
    completer: Completer,
    *,
    prompt: str = PREFIX,
    suffix: str | None = SUFFIX,
    context: RepositoryContext | None = None,
    max_new_tokens: int | None = 24,
    stop: tuple[str, ...] = (),
    **sampling: Any,
) -> str:
    """The completion by the engine itself."""
    params = CompletionParams(sampling=SamplingParams(**sampling), max_new_tokens=max_new_tokens, stop=stop)
    return completer.complete([InfillRequest(prompt, suffix, context)], params)[0].text


LLAMA_FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 1.5, "seed": 5}, {"temperature": 1.5, "seed": 5}),
    ({"temperature": 1.5, "seed": 6}, {"temperature": 1.5, "seed": 6}),
    ({"temperature": 1.5, "top_k": 2}, {"temperature": 1.5, "top_k": 2}),
    ({"temperature": 1.5, "top_p": 0.5}, {"temperature": 1.5, "top_p": 0.5}),
    ({"temperature": 1.5, "min_p": 0.3}, {"temperature": 1.5, "min_p": 0.3}),
    ({"temperature": 0, "repeat_penalty": 2}, {"temperature": 0, "repetition_penalty": 2}),
    ({"temperature": 0, "frequency_penalty": 2}, {"temperature": 0, "frequency_penalty": 2}),
    ({"temperature": 0, "presence_penalty": 2}, {"temperature": 0, "presence_penalty": 2}),
    ({"temperature": 0, "presence_penalty": 2, "penalty_last_n": 0}, {"temperature": 0}),
    ({"temperature": 0, "n_predict": 5}, {"temperature": 0, "max_new_tokens": 5}),
    ({"temperature": 0, "n_predict": -1}, {"temperature": 0, "max_new_tokens": 64}),
    ({"temperature": 0, "n_predict": 4000}, {"temperature": 0, "max_new_tokens": 127}),
    ({"temperature": 0, "stop": [" for", "e"]}, {"temperature": 0, "stop": (" for", "e")}),
    ({"temperature": 0, "samplers": [], "repeat_penalty": 2}, {"temperature": 1, "top_p": 1}),
    ({"top_k": 3, "samplers": ["top_k"], "min_p": 0.5}, {"temperature": 1, "top_p": 1, "top_k": 3}),
    ({"samplers": ["infill", "temperature"]}, {"temperature": 0.2, "top_p": 1, "min_p": 0.5}),
    ({"temperature": 0, "cache_prompt": False}, {"temperature": 0}),
    ({"temperature": 0, "input_suffix": ""}, {"temperature": 0, "suffix": ""}),
    ({"temperature": 0, "prompt": "    steps"}, {"temperature": 0, "prompt": PREFIX + "    steps"}),
    (
        {"temperature": 0, "input_extra": [{"text": "A = 1", "filename": "a.py"}, {"text": "B = 2"}]},
        {
            "temperature": 0,
            "context": RepositoryContext(files=(ContextFile("a.py", "A = 1"), ContextFile("", "B = 2"))),
        },
    ),
]


@pytest.mark.parametrize(("change", "params"), LLAMA_FIELDS, ids=lambda value: str(value)[:60])
def test_llama_cpp_fields_are_honored(
    url: str, completer: Completer, change: dict[str, Any], params: dict[str, Any]
) -> None:
    assert answered(url, "/infill", INFILL | change)["content"] == expected(completer, **params)


def test_mistral_fields_are_honored(url: str, completer: Completer) -> None:
    for change, params in (
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1.5, "random_seed": 5}, {"temperature": 1.5, "seed": 5}),
        ({"temperature": 1.5, "top_p": 0.5}, {"temperature": 1.5, "top_p": 0.5}),
        ({"temperature": 0, "frequency_penalty": 2}, {"temperature": 0, "frequency_penalty": 2}),
        ({"temperature": 0, "presence_penalty": 2}, {"temperature": 0, "presence_penalty": 2}),
        ({"temperature": 0, "stop": " for"}, {"temperature": 0, "stop": (" for",)}),
        ({"temperature": 0, "max_tokens": None}, {"temperature": 0, "max_new_tokens": 64}),
        ({"temperature": 0, "suffix": None}, {"temperature": 0, "suffix": None}),
        ({"min_tokens": 0, "metadata": {"a": 1}, "prompt_cache_key": "k", "temperature": 0}, {"temperature": 0}),
    ):
        answer = answered(url, "/v1/fim/completions", FIM | change)
        assert answer["choices"][0]["message"]["content"] == expected(completer, **params), change


def test_ollama_options_are_honored(url: str, completer: Completer) -> None:
    for options, params in (
        ({"temperature": 0, "num_predict": 24}, {"temperature": 0}),
        ({"temperature": 1.5, "seed": 5, "num_predict": 24}, {"temperature": 1.5, "seed": 5}),
        ({"temperature": 1.5, "top_k": 2, "num_predict": 24}, {"temperature": 1.5, "top_k": 2}),
        ({"temperature": 1.5, "top_p": 0.5, "num_predict": 24}, {"temperature": 1.5, "top_p": 0.5}),
        ({"temperature": 1.5, "min_p": 0.3, "num_predict": 24}, {"temperature": 1.5, "min_p": 0.3}),
        ({"temperature": 0, "repeat_penalty": 2, "num_predict": 24}, {"temperature": 0, "repetition_penalty": 2}),
        ({"temperature": 0, "frequency_penalty": 2, "num_predict": 24}, {"temperature": 0, "frequency_penalty": 2}),
        ({"temperature": 0, "presence_penalty": 2, "num_predict": 24}, {"temperature": 0, "presence_penalty": 2}),
        ({"temperature": 0, "stop": [" for"], "num_predict": 24}, {"temperature": 0, "stop": (" for",)}),
        ({"temperature": 0, "num_ctx": 256}, {"temperature": 0, "max_new_tokens": 64}),
        ({"temperature": 0, "num_predict": -1}, {"temperature": 0, "max_new_tokens": 127}),
        ({"temperature": 0, "num_predict": 9999}, {"temperature": 0, "max_new_tokens": 127}),
    ):
        for more in ({}, {"raw": True, "keep_alive": "5m", "model": "run:latest"}):
            answer = answered(url, "/api/generate", GENERATE | more | {"options": options})
            assert answer["response"] == expected(completer, **params), options


def test_holes_are_post_processed_if_the_server_was_told_to(postprocessing: str, completer: Completer) -> None:
    """By all protocols, whole and streamed: as the completion itself, post-processed."""
    settings, n_changed = PostProcessing(mode="block"), 0
    for seed in range(6):
        sampling: dict[str, Any] = {"temperature": 1.0, "seed": seed}
        raw = expected(completer, max_new_tokens=60, **sampling)
        text = postprocess(PREFIX, raw, SUFFIX, settings)
        n_changed += text != raw
        infill = INFILL | sampling | {"n_predict": 60}
        fim = FIM | {"temperature": 1.0, "random_seed": seed, "max_tokens": 60}
        generate = GENERATE | {"options": sampling | {"num_predict": 60}}
        plain = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 60, **sampling}
        assert answered(postprocessing, "/infill", infill)["content"] == text
        assert answered(postprocessing, "/v1/fim/completions", fim)["choices"][0]["message"]["content"] == text
        assert answered(postprocessing, "/api/generate", generate)["response"] == text
        assert answered(postprocessing, "/v1/completions", plain)["choices"][0]["text"] == text
        *parts, last = events(postprocessing, "/infill", infill | {"stream": True})
        assert not parts and last["content"] == text
        (only,) = events(postprocessing, "/v1/completions", plain | {"stream": True})
        assert only["choices"][0]["text"] == text and only["choices"][0]["finish_reason"]
        with httpx.stream("POST", postprocessing + "/api/generate", json=generate | {"stream": True}) as response:
            assert "".join(json.loads(line)["response"] for line in response.iter_lines()) == text
        with_logprobs = answered(postprocessing, "/v1/completions", plain | {"logprobs": 0})["choices"][0]
        assert with_logprobs["text"] == raw
        without_suffix = {key: value for key, value in plain.items() if key != "suffix"}
        continued = expected(completer, suffix=None, max_new_tokens=60, **sampling)
        assert answered(postprocessing, "/v1/completions", without_suffix)["choices"][0]["text"] == continued
        continued = expected(completer, suffix=None, max_new_tokens=60, **sampling)
        plainly = {key: value for key, value in generate.items() if key != "suffix"}
        assert answered(postprocessing, "/api/generate", plainly)["response"] == continued
        tabby = answered(postprocessing, "/v1/completions", TABBY | sampling)["choices"][0]["text"]
        assert tabby == postprocess(PREFIX, expected(completer, max_new_tokens=None, **sampling), SUFFIX, settings)
    assert n_changed >= 3


def test_each_of_several_samples_is_post_processed(postprocessing: str, url: str) -> None:
    body = INFILL | {"temperature": 1.0, "n_cmpl": 4, "n_predict": 40}
    raw, found = (answered(each, "/infill", body) for each in (url, postprocessing))
    settings = PostProcessing(mode="block")
    assert [each["content"] for each in found] == [
        postprocess(PREFIX, each["content"], SUFFIX, settings) for each in raw
    ]
    assert all(each["has_new_line"] == ("\n" in each["content"]) for each in found)
    last = {each["index"]: each["content"] for each in events(postprocessing, "/infill", body | {"stream": True})}
    assert last == {each["index"]: each["content"] for each in found}


def test_holes_in_templates_are_post_processed(small_run: Path, completer: Completer) -> None:
    with serving(small_run, "--recognize-fim", "--postprocess", "line") as address:
        prompt = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"
        body = {"prompt": prompt, "max_tokens": 40, "temperature": 1.0, "seed": 1}
        text = answered(address, "/v1/completions", body)["choices"][0]["text"]
    raw = expected(completer, max_new_tokens=40, temperature=1.0, seed=1, stop=("\n", "\r"))
    assert text == postprocess(PREFIX, raw, SUFFIX, PostProcessing(mode="line"))


def test_a_completion_ends_where_post_processing_cuts_it(postprocessing: str, url: str) -> None:
    """The rest is not generated. The settings of equal requests are equal, so that they are computed once."""
    for seed in range(20):
        body = INFILL | {"temperature": 1.0, "seed": seed, "n_predict": 120}
        long, short = (answered(each, "/infill", body)["tokens_predicted"] for each in (url, postprocessing))
        assert short <= long
        if short < long / 2:
            break
    else:
        raise AssertionError("no completion ended early")
    settings = PostProcessing(mode="line")
    one, other = (CompletionParams(sampling=GREEDY, stop_when=Cursor(PREFIX, SUFFIX, settings)) for _ in range(2))
    assert one == other and hash(one) == hash(other)


def test_tabby_fields_are_honored(url: str, completer: Completer) -> None:
    segments = TABBY["segments"]
    near = {
        "declarations": [{"filepath": "a.py", "body": "A"}],
        "relevant_snippets_from_changed_files": [{"filepath": "b.py", "body": "B", "score": 2.0}],
        "relevant_snippets_from_recently_opened_files": [
            {"filepath": "c.py", "body": "C", "score": 2.0},
            {"filepath": "d.py", "body": "D", "score": 1.0},
        ],
        "clipboard": "E",
        "filepath": "lib/f.py",
        "git_url": "https://git.example/doors.git",
    }
    files = tuple(ContextFile(f"{name.lower()}.py" if name != "E" else "", name) for name in "EDCBA")
    context = RepositoryContext(files=files, path="lib/f.py", repository="doors")
    for change, params in (
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1.5, "seed": 5}, {"temperature": 1.5, "seed": 5}),
        ({"temperature": 0, "mode": "standard", "language": "python", "user": "me"}, {"temperature": 0}),
        ({"temperature": 0, "segments": {"prefix": PREFIX}}, {"temperature": 0, "suffix": None}),
        ({"temperature": 0, "segments": segments | near}, {"temperature": 0, "context": context}),
    ):
        answer = answered(url, "/v1/completions", TABBY | change)
        assert answer["choices"] == [{"index": 0, "text": expected(completer, max_new_tokens=None, **params)}]
        assert answer["mode"] == "standard"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/infill", {"input_prefix": "x"}, "input_suffix"),
        ("/infill", INFILL | {"n_keep": 3}, "n_keep"),
        ("/infill", INFILL | {"lora": [{"id": 0, "scale": 0.5}]}, "lora"),
        ("/infill", INFILL | {"samplers": ["top_k", "best"]}, "samplers"),
        ("/infill", INFILL | {"samplers": "kp"}, "samplers"),
        ("/infill", INFILL | {"n_predict": -2}, "n_predict"),
        ("/infill", INFILL | {"n_cmpl": 0}, "n_cmpl"),
        ("/infill", INFILL | {"seed": -2}, "seed"),
        ("/infill", INFILL | {"penalty_last_n": 64}, "penalty_last_n"),
        ("/infill", INFILL | {"input_extra": [{"filename": "a.py"}]}, "input_extra"),
        ("/infill", INFILL | {"input_prefix": 3}, "input_prefix"),
        ("/completion", {"prompt": [1, "x"]}, "prompt"),
        ("/completion", {"prompt": [10**6]}, "prompt"),
        ("/completion", {"prompt": "x", "mirostat": 2}, "mirostat"),
        ("/completion", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/tokenize", {"content": "x", "parse_special": True}, "parse_special"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/v1/fim/completions", FIM | {"min_tokens": 2}, "min_tokens"),
        ("/v1/fim/completions", FIM | {"n": 2}, "n"),
        ("/v1/fim/completions", FIM | {"max_tokens": 200}, "max_tokens"),
        ("/v1/fim/completions", FIM | {"random_seed": -1}, "random_seed"),
        ("/v1/fim/completions", {"prompt": "x"}, "model"),
        ("/v1/completions", TABBY | {"mode": "next_edit_suggestion"}, "mode"),
        ("/v1/completions", TABBY | {"debug_options": {"return_prompt": True}}, "debug_options"),
        ("/v1/completions", TABBY | {"max_tokens": 5}, "max_tokens"),
        ("/v1/completions", {"segments": {"prefix": "x", "edit_history": {}}}, "segments"),
        ("/beta/completions", {"prompt": "x", "beams": 2}, "beams"),
    ],
    ids=lambda value: json.dumps(value)[-60:],
)
def test_other_fields_are_refused_by_name(url: str, path: str, body: dict[str, Any], param: str) -> None:
    response = post(url, path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and error["message"].startswith(param)


@pytest.mark.parametrize(
    ("path", "body", "status", "start"),
    [
        ("/api/generate", GENERATE | {"options": {"mirostat": 2}}, 400, "options.mirostat: "),
        ("/api/generate", GENERATE | {"options": {"num_ctx": 4096}}, 400, "options.num_ctx: "),
        ("/api/generate", GENERATE | {"options": {"top_p": 0}}, 400, "options: "),
        ("/api/generate", GENERATE | {"format": "json"}, 400, "format: "),
        ("/api/generate", GENERATE | {"system": "Be brief."}, 400, "system: "),
        ("/api/generate", GENERATE | {"template": "{{ .Prompt }}"}, 400, "template: "),
        ("/api/generate", GENERATE | {"think": True}, 400, "think: "),
        ("/api/generate", GENERATE | {"logprobs": True}, 400, "logprobs: "),
        ("/api/generate", GENERATE | {"images": ["aGk="]}, 400, "images: "),
        ("/api/generate", {"prompt": "x"}, 400, "model: "),
        ("/api/generate", {"model": "other", "prompt": "x"}, 404, "model 'other' does not exist"),
        ("/api/show", {}, 400, "model: "),
        ("/api/show", {"name": "other"}, 404, "model 'other' does not exist"),
    ],
    ids=lambda value: json.dumps(value)[-60:],
)
def test_ollama_errors_are_texts(url: str, path: str, body: dict[str, Any], status: int, start: str) -> None:
    response = post(url, path, body)
    assert response.status_code == status
    assert response.json()["error"].startswith(start)


def sent(url: str, path: str, name: str) -> httpx.Response:
    """The answer to a recorded request, which is sent byte by byte."""
    content = (REQUESTS / f"{name}.json").read_bytes()
    response = httpx.post(url + path, content=content, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == 200, response.text
    return response


def test_recorded_requests_of_llama_vim_are_answered(url: str) -> None:
    answer = sent(url, "/infill", "llama_vim")
    assert answer.text.startswith('{"content":"'), "llama.vim drops answers without it"
    asked = json.loads((REQUESTS / "llama_vim.json").read_text(encoding="utf-8"))["response_fields"]
    assert list(answer.json()) == asked
    assert answer.json()["timings/prompt_n"] > 0 and answer.json()["truncated"] is False
    assert sent(url, "/infill", "llama_vim_warm_up").json() == {}


def test_recorded_request_of_llama_vscode_has_several_answers(url: str) -> None:
    answers = sent(url, "/infill", "llama_vscode").json()
    assert [answer["index"] for answer in answers] == [0, 1, 2]
    assert all(answer["timings"]["predicted_ms"] >= 0 for answer in answers)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("continue_llama_cpp", "/completion"),
        ("tabby_backend", "/completion"),
        ("continue_mistral", "/v1/fim/completions"),
        ("minuet_codestral", "/v1/fim/completions"),
        ("continue_deepseek", "/beta/completions"),
        ("minuet_openai_fim", "/v1/completions"),
    ],
)
def test_recorded_streams_have_the_text_where_clients_read_it(url: str, name: str, path: str) -> None:
    lines = [line.removeprefix("data: ") for line in sent(url, path, name).text.splitlines() if line]
    records = [json.loads(line) for line in lines if line != "[DONE]"]
    if path == "/completion":
        assert [record["stop"] for record in records] == [False] * (len(records) - 1) + [True]
        assert all(isinstance(record["content"], str) for record in records)
    else:
        assert lines[-1] == "[DONE]"
        choices = [record["choices"][0] for record in records]
        assert choices[-1]["finish_reason"] in ("stop", "length")
        for choice in choices:
            assert choice["text"] == choice.get("delta", {"content": choice["text"]})["content"]


def test_recorded_requests_of_ollama_and_tabby_clients_are_answered(url: str) -> None:
    lines = [json.loads(line) for line in sent(url, "/api/generate", "continue_ollama").text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    answer = sent(url, "/v1/completions", "tabby_agent").json()
    assert set(answer) == {"id", "choices", "mode"} and list(answer["choices"][0]) == ["index", "text"]


def test_templates_in_recorded_requests_are_recognized_on_request_only(
    url: str, recognizing: str, completer: Completer
) -> None:
    body = json.loads((REQUESTS / "zed.json").read_text(encoding="utf-8"))
    prefix, suffix = (
        body["prompt"].removeprefix("<|fim_prefix|>").removesuffix("<|fim_middle|>").split("<|fim_suffix|>")
    )
    with_hole = len(completer.prompt_ids(InfillRequest(prefix, suffix), 64))
    as_text = len(completer.prompt_ids(InfillRequest(body["prompt"]), 64))
    assert with_hole < as_text
    for address, n_tokens in ((recognizing, with_hole), (url, as_text)):
        answer = sent(address, "/v1/completions", "zed").json()
        assert answer["usage"]["prompt_tokens"] == n_tokens
    counts = [
        sent(address, "/api/generate", "zed_ollama").json()["prompt_eval_count"] for address in (recognizing, url)
    ]
    assert counts[0] == with_hole < counts[1]


@pytest.mark.parametrize(
    ("prompt", "prefix", "suffix"),
    [
        ("<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>", "P", "S"),
        ("<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>M", "PM", "S"),
        ("<|file_sep|>a.py\nA\n<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>", "<|file_sep|>a.py\nA\nP", "S"),
        ("<fim_prefix>P<fim_suffix>S<fim_middle>", "P", "S"),
        ("<fim_prefix><fim_suffix>S<fim_middle>P", "P", "S"),
        ("<｜fim▁begin｜>P<｜fim▁hole｜>S<｜fim▁end｜>", "P", "S"),
        ("<PRE> P <SUF>S <MID>", "P", "S"),
        ("[SUFFIX]S[PREFIX]P", "P", "S"),
        ("P<|mask:0|>S<|mask:1|><|mask:0|>", "P", "S"),
        ("<fim_prefix>\n<fim_suffix><fim_middle>", "\n", ""),
    ],
)
def test_templates_of_other_models_are_found(prompt: str, prefix: str, suffix: str) -> None:
    assert find_hole(prompt) == InfillRequest(prefix, suffix)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "def f():",
        "<fim_prefix>P<fim_suffix>S",
        "<fim_suffix>S<fim_prefix>P<fim_middle>",
        "<fim_prefix>P<fim_suffix>S<fim_middle>'<fim_middle>'",
        "TEMPLATE = '<fim_prefix>{}<fim_suffix>{}<fim_middle>' + '<fim_prefix>'",
        "P<|mask:0|>S<|mask:1|>T<|mask:2|><|mask:0|>",
        "P<|mask:0|>S",
    ],
)
def test_other_prompts_are_no_templates(prompt: str) -> None:
    assert find_hole(prompt) is None


def test_mistral_client(url: str, completer: Completer) -> None:
    with mistralai.client.Mistral(api_key="none", server_url=url) as client:
        answer = client.fim.complete(model="run", prompt=PREFIX, suffix=SUFFIX, max_tokens=24, temperature=0)
        assert answer.choices[0].message is not None
        text = answer.choices[0].message.content
        assert text == expected(completer, temperature=0)
        assert answer.usage.completion_tokens and answer.usage.completion_tokens <= 24
        stream = client.fim.stream(model="run", prompt=PREFIX, suffix=SUFFIX, max_tokens=24, temperature=0)
        chunks = [event.data for event in stream]
        assert "".join(str(chunk.choices[0].delta.content) for chunk in chunks) == text
        assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
        assert chunks[-1].usage == answer.usage
        with pytest.raises(mistralai.client.errors.SDKError, match="min_tokens"):
            client.fim.complete(model="run", prompt=PREFIX, min_tokens=3)


def test_ollama_client(url: str, completer: Completer) -> None:
    with ollama.Client(host=url) as client:
        check_ollama(client, expected(completer, temperature=0))


def check_ollama(client: ollama.Client, text: str) -> None:
    options = {"temperature": 0, "num_predict": 24}
    answer = client.generate(model="run", prompt=PREFIX, suffix=SUFFIX, options=options)
    assert answer.response == text
    assert answer.done_reason in ("stop", "length")
    assert answer.total_duration is not None and answer.eval_duration is not None
    assert 0 < answer.eval_duration <= answer.total_duration
    pieces = list(client.generate(model="run", prompt=PREFIX, suffix=SUFFIX, options=options, stream=True))
    assert "".join(piece.response or "" for piece in pieces) == answer.response
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (pieces[-1].prompt_eval_count, pieces[-1].eval_count) == (answer.prompt_eval_count, answer.eval_count)
    assert [model.model for model in client.list().models] == ["run"]
    shown = client.show("run")
    assert shown.capabilities == ["completion", "insert"]
    assert shown.template is not None and ".Suffix" in shown.template, "Continue sends a suffix only then"
    assert client.generate(model="run").done_reason == "load"
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat"):
        client.generate(model="run", prompt="x", options={"mirostat": 1})
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        client.generate(model="other", prompt="x")


def test_openai_client_gets_deepseek_answers(url: str, completer: Completer) -> None:
    with openai.OpenAI(base_url=url + "/beta", api_key="none", max_retries=0) as client:
        body: dict[str, Any] = FIM | {"temperature": 0}
        text = client.completions.create(**body).choices[0].text
        assert text == expected(completer, temperature=0)
        assert "".join(piece.choices[0].text for piece in client.completions.create(**body, stream=True)) == text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_compact_json_and_a_stream(url: str) -> None:
    def curl(path: str, body: dict[str, Any]) -> str:
        command = ["curl", "--silent", "--no-buffer", "--request", "POST", "--url", url + path, "--data", "@-"]
        command += ["--header", "Content-Type: application/json", "--max-time", "60"]
        done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, timeout=80, check=True)
        return done.stdout

    whole = curl("/infill", INFILL | {"temperature": 0})
    assert '"content":"' in whole
    lines = curl("/infill", INFILL | {"temperature": 0, "stream": True}).split("\n\n")
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert all(line.startswith('data: {"index":0,"content":"') for line in lines if line)
    assert "".join(piece["content"] for piece in pieces) == json.loads(whole)["content"]


def test_streams_of_llama_cpp_equal_the_whole(url: str) -> None:
    for change in (
        {"temperature": 0},
        {"temperature": 1.2, "seed": 4, "stop": ["\n\n"]},
        {"temperature": 1.2, "seed": 4, "n_indent": 4},
        {"temperature": 1.2, "n_cmpl": 3, "n_indent": 1},
    ):
        body = INFILL | change | {"n_predict": 60, "input_suffix": ""}
        found = answered(url, "/infill", body)
        whole = found if isinstance(found, list) else [found]
        records = events(url, "/infill", body | {"stream": True})
        for index, answer in enumerate(whole):
            own = [record for record in records if record["index"] == index]
            assert "".join(record["content"] for record in own) == answer["content"]
            assert [record["stop"] for record in own] == [False] * (len(own) - 1) + [True]
            for name in ("stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated", "has_new_line"):
                assert own[-1][name] == answer[name], name


def test_stop_types_of_llama_cpp(url: str) -> None:
    body = INFILL | {"temperature": 0}
    limited = answered(url, "/infill", body | {"n_predict": 2})
    assert (limited["stop_type"], limited["tokens_predicted"]) == ("limit", 2)
    text = answered(url, "/infill", body)["content"]
    stopped = answered(url, "/infill", body | {"stop": ["never", text[3:6]]})
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", text[3:6])
    hole = {"input_prefix": "", "input_suffix": "", "n_predict": 120, "temperature": 1}
    ended = [answered(url, "/infill", hole | {"seed": seed}) for seed in range(8)]
    assert ("eos", "") in [(each["stop_type"], each["stopping_word"]) for each in ended]


def test_random_seeds_differ(url: str) -> None:
    body = INFILL | {"temperature": 2, "seed": -1, "top_p": 1.0}
    assert len({answered(url, "/infill", body)["content"] for _ in range(4)}) > 1


def test_completion_takes_text_or_ids(url: str, completer: Completer) -> None:
    ids = completer.prompt_ids(InfillRequest(PREFIX), 24)
    text = expected(completer, suffix=None, temperature=0)
    for path in ("/completion", "/completions"):
        for prompt in (PREFIX, ids):
            body = {"prompt": prompt, "n_predict": 24, "temperature": 0}
            answer = answered(url, path, body)
            assert (answer["content"], answer["tokens_evaluated"]) == (text, len(ids))
            assert "".join(record["content"] for record in events(url, path, body | {"stream": True})) == text


def test_long_prompts_are_cut_and_reported(url: str) -> None:
    answer = answered(url, "/infill", INFILL | {"input_prefix": "x = 1\n" * 500})
    assert answer["truncated"] is True and answer["tokens_evaluated"] <= 256
    assert answered(url, "/infill", INFILL)["truncated"] is False


def test_n_predict_0_fills_the_cache(url: str) -> None:
    body = INFILL | {
        "input_extra": [{"text": "def count_windows(items):\n    return sum(items)\n", "filename": "a.py"}]
    }
    only_extra = {"input_prefix": "", "input_suffix": "", "n_predict": 0, "samplers": [], "t_max_prompt_ms": 1}
    warm = answered(url, "/infill", body | only_extra)
    assert (warm["content"], warm["tokens_predicted"]) == ("", 0)
    answer = answered(url, "/infill", body | {"prompt": "item."})
    assert answer["timings"]["cache_n"] == answer["tokens_cached"] >= warm["tokens_evaluated"] - 3
    assert answer["timings"]["prompt_n"] + answer["tokens_cached"] == answer["tokens_evaluated"]
    alone = answered(url, "/infill", body | {"prompt": "item.", "cache_prompt": False})
    assert alone["tokens_cached"] == 0 and alone["content"] == answer["content"]


def test_response_fields_are_flattened_and_unknown_ones_left_out(url: str) -> None:
    answer = answered(url, "/infill", INFILL | {"response_fields": ["timings/predicted_n", "stop", "timings/none", ""]})
    assert list(answer) == ["timings/predicted_n", "stop"]


def test_prediction_time_ends_after_a_line(url: str) -> None:
    body = {"prompt": '"""How to open a door."""\n', "n_predict": 120, "temperature": 0}
    whole = answered(url, "/completion", body)["content"]
    assert whole.count("\n") >= 2, "the test needs several lines"
    timed = answered(url, "/completion", body | {"t_max_predict_ms": 1})
    assert whole.startswith(timed["content"]) and timed["content"].endswith("\n")
    assert timed["stop_type"] == "limit" and timed["tokens_predicted"] < 120


def test_prompt_time_ends_with_an_empty_answer(counting: str) -> None:
    body = {"input_prefix": "slow", "input_suffix": "", "n_predict": 3}
    assert answered(counting, "/infill", body)["content"] == "xxx"
    late = answered(counting, "/infill", body | {"t_max_prompt_ms": 1})
    assert (late["content"], late["stop_type"], late["tokens_predicted"]) == ("", "limit", 0)


def test_newer_request_in_a_slot_ends_the_older_one(counting: str) -> None:
    def n_steps() -> int:
        return int(answered(counting, "/v1/completions", {"prompt": "count"})["choices"][0]["text"])

    body = {"input_prefix": "slow", "input_suffix": "", "id_slot": 3, "n_predict": 4000}
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(post, counting, "/infill", body)
        while not n_steps():
            assert not older.done()
        for other in ({"id_slot": 4}, {"id_slot": -1}, {"n_predict": 0}):
            answered(counting, "/infill", body | {"input_prefix": "count"} | other)
            assert not older.done()
        answered(counting, "/infill", body | {"input_prefix": "count"})
        refused = older.result(timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "superseded")
    n_before = n_steps()
    assert n_steps() == n_before, "nothing is generated for the older request"


@pytest.mark.parametrize(
    ("pieces", "n_indent", "text"),
    [
        (["a\n", "    b\n", "c\n"], 0, "a\n    b\nc\n"),
        (["a\n", "    b\n", "c\n"], 4, "a\n    b\n"),
        (["a\n    b\n  c\n"], 3, "a\n    b\n"),
        (["a\n", " ", " ", " ", " ", "b"], 4, "a\n    b"),
        (["a\n", " ", " ", " ", "b"], 4, "a\n"),
        (["a\n\n    b\nc"], 4, "a\n\n    b\n"),
        (["a\r\n\r\n\tb\r\nc"], 1, "a\r\n\r\n\tb\r\n"),
        (["a\n  "], 4, "a\n  "),
        (["b", "\n", "é"], 1, "b\n"),
    ],
)
def test_text_ends_before_a_line_that_is_indented_less(pieces: list[str], n_indent: int, text: str) -> None:
    limits = LineLimits(n_indent, 0.0)
    assert "".join(limits.add(piece, 100.0) for piece in pieces) + limits.rest() == text


def test_text_ends_after_a_line_when_the_time_is_over() -> None:
    limits = LineLimits(0, 1.0)
    assert [limits.add(text, seconds) for text, seconds in (("a\n", 0.5), ("b", 2.0), ("c\nd", 2.5))] == [
        "a\n",
        "b",
        "c\n",
    ]
    assert limits.is_ended and limits.rest() == ""


def test_tokens_are_those_of_the_tokenizer(url: str, completer: Completer) -> None:
    text = "def é(x):\n"
    ids = completer.tokenizer.encode(text)
    assert answered(url, "/tokenize", {"content": text}) == {"tokens": ids}
    assert answered(url, "/tokenize", {"content": text, "add_special": True}) == {
        "tokens": [*completer.tokenizer.bos_ids, *ids]
    }
    pieces = answered(url, "/tokenize", {"content": text, "with_pieces": True})["tokens"]
    data = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert data.decode() == text
    assert answered(url, "/detokenize", {"tokens": ids}) == {"content": text}


def test_editors_find_the_model_and_its_health(url: str) -> None:
    def get(path: str) -> Any:
        response = httpx.get(url + path, timeout=60)
        assert response.status_code == 200
        return response.json()

    assert get("/health") == {"status": "ok"}
    assert get("/props")["default_generation_settings"] == {"n_ctx": 256}
    assert get("/v1/health")["model"] == "run" == answered(url, "/v1/health", {})["model"]
    assert get("/v1beta/models")["completion"] == ["run"]
    assert get("/v1beta/server_setting") == {"disable_client_side_telemetry": True}
    assert get("/api/tags")["models"][0]["name"] == "run"
    assert set(get("/api/version")) == {"version"}
    event = {"type": "view", "completion_id": "cmpl-1", "choice_index": 0}
    assert post(url, "/v1/events", event).status_code == 200
