"""Where completions come from, in the server and its protocols, and the limits for copies.

The index of these tests has what the model writes, so the engine and the searches are the real ones. Stretches are compared
with a plain search for runs of tokens.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mistralai.client
import openai
import pyarrow as pa
import pytest

from codekiln.files import read_json
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.provenance import Tracer, open_tracer
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.index.build import build_index
from codekiln.index.config import IndexConfig
from codekiln.index.names import SCHEMA
from codekiln.serve.provenance import header_value
from codekiln.tokenizer.bpe import Tokenizer
from tests.small import running_server
from tests.test_index import tokens_of

PROMPT = "def value_of("
PREFIX, SUFFIX = "def open_door(name, count=1):\n", "\n    return steps\n"
N_TOKENS = 60
# A text without repetitions, which have matches that these tests do not plan.
SAMPLING = SamplingParams(temperature=1.0, top_p=0.95, seed=3)
PARAMS = CompletionParams(max_new_tokens=N_TOKENS, sampling=SAMPLING)


@dataclass(frozen=True)
class File:
    """A document of the index, as ids."""

    path: str
    license: str
    ids: Sequence[int]


def index_files(run: Path, files: Sequence[File]) -> None:
    """Replaces the index of a run by one of these documents."""
    manifest = read_json(run / "index" / "manifest.json")
    shutil.rmtree(run / "index")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    names = pa.RecordBatch.from_pylist(
        [{"repository": "origin", "revision": "", "path": each.path, "license": each.license} for each in files], SCHEMA
    )
    tokens = tokens_of([list(each.ids) for each in files], tokenizer.vocab_size)
    build_index(run / "index", tokens, [names], IndexConfig(memory_bytes=16_000_000), manifest["inputs"])


@pytest.fixture(scope="module")
def completer(small_run: Path) -> Completer:
    return Completer.load(small_run)


@pytest.fixture(scope="module")
def written(completer: Completer) -> tuple[int, ...]:
    """The ids that the model writes after the prompt."""
    tokens = completer.complete([InfillRequest(PROMPT)], PARAMS)[0].tokens
    assert len(tokens) == N_TOKENS
    return tokens


@pytest.fixture(scope="module")
def run(
    small_run: Path, tmp_path_factory: pytest.TempPathFactory, completer: Completer, written: tuple[int, ...]
) -> Path:
    """A copy of the small run, whose index has parts of what its model writes."""
    copy = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("provenance") / "run"))
    prompt = completer.tokenizer.encode(PROMPT)
    files = [
        File("first.py", "MIT", [5, 6, 7, *prompt, *written[:30], 9]),
        File("second.py", "GPL-3.0-only", [8, *written[35:]]),
        File("third.py", "MIT", [4, 4, *written[35:], 4]),
    ]
    index_files(copy, files)
    return copy


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with running_server(run, "--weights", "float32") as server:
        yield server.url


@pytest.fixture(scope="module")
def tracer(run: Path) -> Tracer:
    return open_tracer(run, run / "tokenizer.json")


def post(url: str, path: str, **body: Any) -> httpx.Response:
    response = httpx.post(url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response


def events(url: str, path: str, **body: Any) -> tuple[list[Any], httpx.Headers]:
    with httpx.stream("POST", url + path, json=body, timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], response.headers


OPENAI: dict[str, Any] = {"prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 1.0, "seed": 3}


def test_a_completion_has_the_stretches_that_the_index_was_made_with(
    url: str, completer: Completer, written: tuple[int, ...]
) -> None:
    choice = post(url, "/v1/completions", **OPENAI, provenance=True).json()["choices"][0]
    first, second = choice["provenance"]
    decode = completer.tokenizer.decode
    text = choice["text"]
    assert text == decode(written)
    # The prompt is before the first stretch in its document, so it is part of the match, but it is not copied.
    n_prompt = len(completer.tokenizer.encode(PROMPT))
    assert (first["n_tokens"], first["n_prompt_tokens"], first["count"]) == (30, n_prompt, 1)
    assert (second["n_tokens"], second["n_prompt_tokens"], second["count"]) == (25, 0, 2)
    assert text[first["start"] : first["stop"]] == first["text"] == decode(written[:30])
    assert text[second["start"] : second["stop"]] == second["text"] == decode(written[35:])
    assert first["sources"] == [{"repository": "origin", "revision": "", "path": "first.py", "license": "MIT"}]
    assert [source["path"] for source in second["sources"]] == ["second.py", "third.py"]
    assert second["licenses"] == {"GPL-3.0-only": 1, "MIT": 1}


def test_every_whole_answer_has_the_header_and_only_asked_ones_the_field(url: str) -> None:
    plain, asked = post(url, "/v1/completions", **OPENAI), post(url, "/v1/completions", **OPENAI, provenance=True)
    for answer in (plain, asked):
        assert answer.headers["codekiln-provenance"] == 'tokens=30, count=1, license="MIT"'
    assert "provenance" not in plain.json()["choices"][0]
    nothing = post(url, "/v1/completions", prompt="x", max_tokens=3, temperature=0, provenance=True)
    assert nothing.headers["codekiln-provenance"] == "tokens=0"
    assert nothing.json()["choices"][0]["provenance"] == []
    assert "codekiln-provenance" not in httpx.get(url + "/v1/models").headers


def test_a_stream_has_the_field_in_its_last_event_and_no_header(url: str) -> None:
    whole = post(url, "/v1/completions", **OPENAI, provenance=True).json()["choices"][0]
    found, headers = events(url, "/v1/completions", **OPENAI, provenance=True, stream=True)
    assert "codekiln-provenance" not in headers
    choices = [event["choices"][0] for event in found]
    assert [name for choice in choices[:-1] for name in choice if name == "provenance"] == []
    assert choices[-1]["provenance"] == whole["provenance"]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    plain, _ = events(url, "/v1/completions", **OPENAI, stream=True)
    assert all("provenance" not in event["choices"][0] for event in plain)


def test_all_protocols_report_the_same(url: str) -> None:
    expected = post(url, "/v1/completions", **OPENAI, provenance=True).json()["choices"][0]["provenance"]
    options = {"num_predict": N_TOKENS, "temperature": 1.0, "seed": 3}
    llama = {"prompt": PROMPT, "n_predict": N_TOKENS, "temperature": 1.0, "seed": 3, "provenance": True}
    ollama = {"model": "run", "prompt": PROMPT, "options": options, "provenance": True}
    assert len(expected) == 2
    whole = post(url, "/completion", **llama)
    assert whole.json()["provenance"] == expected
    assert whole.headers["codekiln-provenance"].startswith("tokens=30")
    assert post(url, "/completion", **llama, response_fields=["content"]).json().keys() == {"content", "provenance"}
    assert post(url, "/api/generate", **ollama, stream=False).json()["provenance"] == expected
    for path, body in (("/completion", llama), ("/api/generate", ollama)):
        found, _ = events(url, path, **body, stream=True)
        assert found[-1]["provenance"] == expected
        assert not any("provenance" in event for event in found[:-1])
    assert post(url, "/beta/completions", **OPENAI, provenance=True).json()["choices"][0]["provenance"] == expected


def test_infilling_routes_report_what_is_before_the_hole(
    run: Path, url: str, completer: Completer, tracer: Tracer
) -> None:
    """The texts that a hole continues are those of its prefix, whatever the format of the prompt is."""
    params = CompletionParams(max_new_tokens=40, sampling=GREEDY)
    request = InfillRequest(PREFIX, SUFFIX)
    expected = completer.complete([request], params)[0]
    found = tracer.find(expected.text, expected.tokens, tracer.context_ids(PREFIX))
    records = [each.to_record(expected.text) for each in found]
    mistral = {
        "model": "run",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 40,
        "temperature": 0,
        "provenance": True,
    }
    answer = post(url, "/v1/fim/completions", **mistral)
    assert answer.json()["choices"][0]["provenance"] == records
    assert answer.headers["codekiln-provenance"] == header_value(found)
    streamed, _ = events(url, "/v1/fim/completions", **mistral, stream=True)
    assert streamed[-1]["choices"][0]["provenance"] == records
    body = {"input_prefix": PREFIX, "input_suffix": SUFFIX, "n_predict": 40, "temperature": 0, "provenance": True}
    assert post(url, "/infill", **body).json()["provenance"] == records
    tabby = {"segments": {"prefix": PREFIX, "suffix": SUFFIX}, "temperature": 0, "provenance": True}
    assert isinstance(post(url, "/v1/completions", **tabby).json()["choices"][0]["provenance"], list)


def test_echoed_text_shifts_the_places(url: str) -> None:
    choice = post(url, "/v1/completions", **OPENAI, provenance=True, echo=True).json()["choices"][0]
    for part in choice["provenance"]:
        assert choice["text"][part["start"] : part["stop"]] == part["text"]


def test_several_samples_have_their_own_stretches(url: str, completer: Completer, tracer: Tracer) -> None:
    body = OPENAI | {"temperature": 0.8, "n": 3, "provenance": True, "seed": 4}
    choices = post(url, "/v1/completions", **body).json()["choices"]
    params = CompletionParams(
        max_new_tokens=N_TOKENS, sampling=SamplingParams(temperature=0.8, top_p=0.95, seed=4), n=3
    )
    for choice, sample in zip(choices, completer.complete([InfillRequest(PROMPT)], params), strict=True):
        found = tracer.find(sample.text, sample.tokens, tracer.context_ids(PROMPT))
        assert choice["text"] == sample.text
        assert choice["provenance"] == [each.to_record(sample.text) for each in found]


def test_header_is_about_the_returned_samples_only(run: Path, url: str, tracer: Tracer, completer: Completer) -> None:
    """The best of several samples has no stretch, and another one has."""
    sampling = SamplingParams(temperature=1.0, top_p=0.95, seed=3, logprobs=0)
    params = CompletionParams(max_new_tokens=N_TOKENS, sampling=sampling, n=6)
    drawn = completer.complete([InfillRequest(PROMPT)], params)
    best = max(drawn, key=lambda each: each.mean_logprob)
    found = [tracer.find(each.text, each.tokens, tracer.context_ids(PROMPT)) for each in drawn]
    assert header_value([each for stretches in found for each in stretches]) != header_value(found[drawn.index(best)])
    answer = post(url, "/v1/completions", **OPENAI, best_of=6)
    assert answer.json()["choices"][0]["text"] == best.text
    assert answer.headers["codekiln-provenance"] == header_value(found[drawn.index(best)])


def test_real_clients_read_answers_with_the_field(url: str) -> None:
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="run", prompt=PROMPT, max_tokens=N_TOKENS, temperature=1, seed=3, extra_body={"provenance": True}
        )
        assert len(answer.choices[0].model_extra["provenance"]) == 2  # type: ignore[index]
    with mistralai.client.Mistral(api_key="none", server_url=url) as mistral:
        response = mistral.fim.complete(model="run", prompt=PROMPT, max_tokens=10, temperature=0)
        assert response.choices


def test_stop_strings_and_characters_of_several_tokens_keep_places_exact(tracer: Tracer, run: Path) -> None:
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    text = "é = '→'  # naïve\nresult = value_of(é)\nprint('done', é)\n"
    ids = tokenizer.encode(text)
    copy = run.parent / "characters"
    shutil.copytree(run, copy, dirs_exist_ok=True)
    index_files(copy, [File("a.py", "MIT", [5, *ids, 5])])
    found = open_tracer(copy, copy / "tokenizer.json")
    (stretch,) = found.find(text, ids)
    assert (stretch.start, stretch.stop) == (0, len(text))
    cut = text[:30]
    (stretch,) = found.find(cut, ids)
    assert (stretch.start, stretch.stop) == (0, len(cut))
    (stretch,) = found.find("\n\n" + text, ids)  # not what was generated: its own tokens are used
    assert stretch.stop == len(text) + 2
    assert stretch.start <= 3
    assert found.find("", ids) == []


def test_header_is_short_and_ascii(tracer: Tracer, written: tuple[int, ...], run: Path) -> None:
    copy = run.parent / "license"
    shutil.copytree(run, copy, dirs_exist_ok=True)
    index_files(copy, [File("a.py", 'Lizenz "Ü"\r\nX: y' + "z" * 500, written)])
    text = Tokenizer.load(copy / "tokenizer.json").decode(written)
    found = open_tracer(copy, copy / "tokenizer.json")
    assert header_value(found.find("", ())) == "tokens=0"
    value = header_value(found.find(text, written))
    assert value.startswith(f'tokens={len(written)}, count=1, license="Lizenz ?????X: yzzz')
    assert value.isascii() and value.isprintable() and len(value) <= 200
