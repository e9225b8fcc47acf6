"""Limits for copies: in the completer, in the server and in commands. The index has what the model writes."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from codekiln.corpus.licenses import is_permissive
from codekiln.errors import ConfigError
from codekiln.generate.complete import Completer, Completion, CompletionParams, InfillRequest
from codekiln.generate.copying import CopyLimiter, CopyLimits
from codekiln.generate.infilling import HoledDocument, InfillSettings, infill
from codekiln.generate.postprocess import PostProcessing
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.index.search import Index
from tests.command import codekiln
from tests.small import running_server
from tests.test_provenance import N_TOKENS, PARAMS, PROMPT, SAMPLING, File, events, index_files, post

LIMIT = 20
OPENAI = {"prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 1.0, "seed": 3}


def plain_length(files: Sequence[File], ids: Sequence[int], limits: CopyLimits) -> int:
    """How many ids may be written, by looking for every run of tokens in every document."""

    def licenses(part: Sequence[int]) -> set[str]:
        n = len(part)
        rows = ((file.license, list(file.ids)) for file in files)
        return {name for name, row in rows if any(row[i : i + n] == list(part) for i in range(len(row) - n + 1))}

    for stop in range(1, len(ids) + 1):
        for start in range(stop):
            found = licenses(ids[start:stop])
            limit = limits.permissive if "MIT" in found else limits.other
            if found and limit is not None and stop - start > limit:
                return stop - 1
    return len(ids)


@pytest.mark.parametrize("permissive, other", [(20, 20), (24, 16), (16, 24), (None, 18), (18, None)])
def test_a_guard_ends_where_a_plain_search_does(
    small_run: Path, tmp_path: Path, permissive: int | None, other: int | None
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    rng, limits = random.Random(7), CopyLimits(permissive=permissive, other=other)
    shared = [rng.choices(range(10, 14), k=40) for _ in range(3)]
    files = [
        File("p.py", "MIT", [*shared[0], 20, *shared[1][:19]]),
        File("r.py", "GPL-3.0-only", [*shared[1], 21, *shared[2]]),
        File("s.py", "unknown", shared[2][5:]),
    ]
    index_files(run, files)
    limiter = CopyLimiter(Index(run / "index"), limits, is_permissive)
    lengths = set()
    for _ in range(25):
        ids: list[int] = []
        while len(ids) < 70:
            row, first = rng.choice(shared), rng.randrange(30)
            ids += [*row[first : first + rng.randrange(1, 28)], *rng.choices(range(10, 22), k=rng.randrange(2))]
        guard = limiter.guard()
        length = next((n for n, token in enumerate(ids) if not guard.allows(token)), len(ids))
        assert length == plain_length(files, ids, limits)
        lengths.add(length)
    assert len(lengths) > 8


def limited(small_run: Path, run: Path, limits: CopyLimits) -> Completer:
    completer = Completer.load(small_run)
    completer.copy_limiter = CopyLimiter(Index(run / "index"), limits, is_permissive)
    return completer


@pytest.fixture(scope="module")
def whole(small_run: Path) -> Completion:
    """What the model writes without a limit."""
    return Completer.load(small_run).complete([InfillRequest(PROMPT)], PARAMS)[0]


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory, whole: Completion) -> Path:
    """A copy of the small run whose index has tokens 5 to 50 of what the model writes."""
    copy = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("limits") / "run"))
    index_files(copy, [File("other.py", "MIT", [3, 4, 5]), File("origin.py", "GPL-3.0-only", [9, *whole.tokens[5:50]])])
    return copy


def test_a_completion_ends_before_the_token_that_exceeds_the_limit(
    small_run: Path, run: Path, whole: Completion
) -> None:
    both = CopyLimits(permissive=LIMIT, other=LIMIT)
    completer = limited(small_run, run, both)
    found = completer.complete([InfillRequest(PROMPT)], PARAMS)[0]
    assert found.tokens == whole.tokens[: 5 + LIMIT]
    assert (found.finish_reason, found.completion_tokens) == ("content_filter", 5 + LIMIT)
    assert found.text == completer.tokenizer.decode(found.tokens)
    pieces = list(completer.stream([InfillRequest(PROMPT)], PARAMS))
    assert "".join(piece.text for piece in pieces) == found.text
    assert pieces[-1].completion == found
    assert completer.engine.stats.generated_tokens < 2 * N_TOKENS, "the engine does not write on"
    # The limit is that of the license, and the prompt is no part of a copy.
    for limits in (CopyLimits(permissive=LIMIT, other=None), CopyLimits(permissive=None, other=45)):
        assert limited(small_run, run, limits).complete([InfillRequest(PROMPT)], PARAMS)[0] == whole
    limits = CopyLimits(permissive=None, other=44)
    assert len(limited(small_run, run, limits).complete([InfillRequest(PROMPT)], PARAMS)[0].tokens) == 49


def test_other_completions_are_the_same_with_a_limit(small_run: Path, run: Path, whole: Completion) -> None:
    """Also those in the same batch, and text that a stop string would have held back is given out."""
    completer = limited(small_run, run, CopyLimits(permissive=LIMIT, other=LIMIT))
    plain = Completer.load(small_run)
    prompts = [InfillRequest(prompt) for prompt in (PROMPT, "x = ", "import ")]
    cut, *others = completer.complete(prompts, PARAMS)
    assert others == plain.complete(prompts[1:], PARAMS)
    assert cut.is_withheld
    stop = (whole.text[len(cut.text) - 1 :][:2],)  # its first character is the last one that is written
    held = CompletionParams(max_new_tokens=N_TOKENS, sampling=SAMPLING, stop=stop)
    if stop[0] not in whole.text[: len(cut.text)]:
        assert completer.complete([InfillRequest(PROMPT)], held)[0].text == cut.text


def test_infilling_drops_candidates_that_copy_and_draws_them_again(small_run: Path, tmp_path: Path) -> None:
    request = InfillRequest(PROMPT, "\n    return 1\n")
    document = HoledDocument((PROMPT, "\n    return 1\n"))
    plain = Completer.load(small_run)
    sampling = SamplingParams(temperature=1.0, seed=5)
    params = CompletionParams(max_new_tokens=40, sampling=sampling, n=2)
    first, second = plain.complete([request], params)
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    index_files(run, [File("a.py", "MIT", first.tokens)])
    completer = limited(small_run, run, CopyLimits(permissive=16, other=16))
    steps = PostProcessing.raw("hole")
    (filled,) = infill(completer, [document], InfillSettings(params=params, postprocessing=steps))
    again = CompletionParams(max_new_tokens=40, sampling=SamplingParams(temperature=1.0, seed=6), n=1)
    texts = {each.text for each in filled.holes[0].candidates}
    assert texts == {second.text, plain.complete([request], again)[0].text}
    # Greedy candidates would be the same again: the hole stays empty, with a note.
    greedy = CompletionParams(max_new_tokens=40, sampling=GREEDY)
    index_files(run, [File("a.py", "MIT", plain.complete([request], greedy)[0].tokens)])
    completer = limited(small_run, run, CopyLimits(permissive=16, other=16))
    (filled,) = infill(completer, [document], InfillSettings(params=greedy, postprocessing=steps))
    assert filled.text == "".join(document.parts)
    assert filled.notes == (
        "hole 1 is left empty, because what the model wrote was too long a copy of training documents",
    )


def test_server_cuts_streams_and_draws_whole_answers_again(small_run: Path, run: Path, whole: Completion) -> None:
    cut = Completer.load(small_run).tokenizer.decode(whole.tokens[: 5 + LIMIT])
    other = CompletionParams(max_new_tokens=N_TOKENS, sampling=SamplingParams(temperature=1.0, top_p=0.95, seed=4))
    second = Completer.load(small_run).complete([InfillRequest(PROMPT)], other)[0]
    reason = f"it copied more than {LIMIT} tokens of training documents"
    with running_server(run, "--weights", "float32", "--max-copied-tokens", str(LIMIT)) as server:
        url = server.url
        found, _ = events(url, "/v1/completions", **OPENAI, stream=True, provenance=True)
        choices = [each["choices"][0] for each in found]
        assert "".join(choice["text"] for choice in choices) == cut
        assert (choices[-1]["finish_reason"], choices[-1]["withheld"]) == ("content_filter", reason)
        (part,) = choices[-1]["provenance"]
        assert (part["n_tokens"], part["sources"][0]["path"]) == (LIMIT, "origin.py")
        # Whole: drawn again with the next seed.
        answer = post(url, "/v1/completions", **OPENAI)
        choice = answer.json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (second.text, second.finish_reason)
        assert "withheld" not in choice
        assert answer.headers["codekiln-provenance"] == "tokens=0"
        # llama.cpp's routes are not drawn again: their text is limited in time.
        record = post(url, "/completion", prompt=PROMPT, n_predict=N_TOKENS, temperature=1.0, seed=3).json()
        assert (record["content"], record["stop_type"], record["withheld"]) == (cut, "limit", reason)
        assert "codekiln_withheld_completions_total 3.0" in httpx.get(url + "/metrics").text


def test_greedy_answers_are_cut_and_the_best_of_several_does_not_copy(small_run: Path, tmp_path: Path) -> None:
    plain = Completer.load(small_run)
    greedy = plain.complete([InfillRequest(PROMPT)], CompletionParams(max_new_tokens=N_TOKENS, sampling=GREEDY))[0]
    sampling = SamplingParams(temperature=1.0, top_p=0.95, seed=3, logprobs=0)
    drawn = plain.complete([InfillRequest(PROMPT)], CompletionParams(max_new_tokens=N_TOKENS, sampling=sampling, n=4))
    best = max(drawn, key=lambda each: each.mean_logprob)
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    index_files(run, [File("a.py", "MIT", greedy.tokens), File("b.py", "MIT", best.tokens)])
    with running_server(run, "--weights", "float32", "--max-copied-tokens", "permissive=30") as server:
        choice = post(server.url, "/v1/completions", **OPENAI | {"temperature": 0}).json()["choices"][0]
        assert choice["text"] == plain.tokenizer.decode(greedy.tokens[:30])
        assert choice["withheld"] == "it copied more tokens of training documents than are allowed (permissive=30)"
        choice = post(server.url, "/v1/completions", **OPENAI, best_of=4).json()["choices"][0]
        assert choice["finish_reason"] != "content_filter"
        assert choice["text"] != best.text
        for path, body in (
            ("/api/generate", {"model": "run", "prompt": PROMPT, "stream": False, "options": {"temperature": 0}}),
            ("/v1/fim/completions", {"model": "run", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}),
        ):
            assert "content_filter" in post(server.url, path, **body).text


def test_commands_cut_copies_and_name_the_reason(run: Path, whole: Completion, small_run: Path) -> None:
    arguments = ("complete", run, PROMPT, "--max-new-tokens", str(N_TOKENS), "--temperature", "1", "--seed", "3")
    limit = ("--max-copied-tokens", str(LIMIT))
    cut = Completer.load(small_run).tokenizer.decode(whole.tokens[: 5 + LIMIT])
    done = codekiln(*arguments, *limit)
    assert done.stdout[:-1] == cut
    assert (
        f"the completion ended early, because it copied more than {LIMIT} tokens of training documents" in done.stderr
    )
    assert "are verbatim" not in done.stderr
    record = json.loads(codekiln(*arguments, *limit, "--json", "--provenance").stdout)["completions"][0]
    assert (record["text"], record["finish_reason"]) == (cut, "content_filter")
    assert record["provenance"][0]["n_tokens"] == LIMIT
    several = json.loads(codekiln(*arguments, *limit, "--json", "-n", "3").stdout)["completions"]
    assert len(several) == 2
    assert all(each["finish_reason"] != "content_filter" for each in several)


def test_limits_are_refused_with_what_is_needed(small_run: Path) -> None:
    arguments = ("complete", small_run, PROMPT, "--max-copied-tokens")
    for value in ("gpl=40", "many", "-3", "permissive=", "5=5"):
        done = codekiln(*arguments, value)
        assert done.returncode == 2, value
        assert "give N, permissive=N or other=N" in " ".join(done.stderr.replace("│", " ").split())
    done = codekiln(*arguments, "15")
    assert done.returncode == 1
    assert "at least 16" in done.stderr
    with pytest.raises(ConfigError, match="at least 16"):
        CopyLimits(permissive=None, other=3)


def test_serve_refuses_an_index_that_it_cannot_use(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    path = run / "index" / "text-00000.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    done = codekiln("serve", run, "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "text-00000.bin is corrupt" in done.stderr
    assert "--no-index" in done.stderr
    path.write_bytes(data)
    manifest = run / "tokens" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    done = codekiln("serve", run, "--port", "0")
    assert done.returncode == 1
    assert "another tokenizer or run" in done.stderr
    assert "--no-index" in done.stderr
    done = codekiln("serve", run, "--port", "0", "--no-index", "--max-copied-tokens", "50")
    assert done.returncode == 1
    assert "--max-copied-tokens needs the index" in done.stderr
    with running_server(run, "--no-index") as server:
        body = OPENAI | {"provenance": True}
        answer = post(server.url, "/v1/completions", **body)
        assert "codekiln-provenance" not in answer.headers
        choice = answer.json()["choices"][0]
        assert choice["provenance"] is None
        assert choice["provenance_note"] == "this server has no index of the training documents"
        found, _ = events(server.url, "/completion", prompt=PROMPT, n_predict=3, stream=True, provenance=True)
        assert found[-1]["provenance"] is None
    shutil.rmtree(run / "index")
    with running_server(run) as server:
        assert "codekiln-provenance" not in post(server.url, "/v1/completions", **OPENAI).headers
