"""What held-out documents, benchmarks and written texts share with the training documents, against brute force."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codekiln.corpus.documents import Document, read_documents
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.held_out.holes import SINGLE_LINE, sample_problems
from codekiln.evaluate.leaks import find_benchmark_leaks, find_split_leaks
from codekiln.evaluate.memorization import evaluate_memorization
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.index.search import open_run_index
from codekiln.runs import read_stage_record
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.prepare import open_token_shards
from tests.command import codekiln
from tests.test_provenance import File, index_files


def plain_shared(rows: Sequence[Sequence[int]], ids: Sequence[int], n: int = 50) -> int:
    """Tokens of `ids` in runs of `n` tokens that a row has too."""
    held = {tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)}
    covered = np.zeros(len(ids), bool)
    for i in range(len(ids) - n + 1):
        if tuple(ids[i : i + n]) in held:
            covered[i : i + n] = True
    return int(covered.sum())


def plain_longest(rows: Sequence[Sequence[int]], ids: Sequence[int]) -> int:
    """The longest run of tokens that a row has too."""
    best = 0
    while best < len(ids) and plain_shared(rows, ids, best + 1):
        best += 1
    return best


def split_ids(run: Path, split: str) -> list[list[int]]:
    shards = open_token_shards(run / "tokens", split)
    return [shards.slice(k, 0, int(length)).tolist() for k, length in enumerate(shards.lengths())]


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, whose index also has most of a held-out document."""
    copy = Path(shutil.copytree(small_run, tmp_path / "run"))
    rows = [*split_ids(small_run, "train"), split_ids(small_run, "validation")[0][7:]]
    index_files(copy, [File(f"{k}.py", "MIT", row) for k, row in enumerate(rows)])
    return copy


def test_leaks_of_the_held_out_split_are_those_of_a_plain_search(small_run: Path, run: Path) -> None:
    training = [*split_ids(small_run, "train"), split_ids(small_run, "validation")[0][7:]]
    held_out = split_ids(small_run, "validation")
    documents = list(read_documents(small_run / "corpus", "validation"))
    found = find_split_leaks(open_run_index(run, run / "tokenizer.json"), run)
    by_repository: dict[str, list[tuple[Document, list[int]]]] = {}
    for document, ids in zip(documents, held_out, strict=True):
        by_repository.setdefault(document.repository, []).append((document, ids))
    assert {leak.repository for leak in found} == set(by_repository)
    for leak in found:
        rows = [ids for _, ids in by_repository[leak.repository]]
        assert leak.n_documents == len(rows)
        assert leak.shared.n_tokens == sum(map(len, rows))
        assert leak.shared.n_shared == sum(plain_shared(training, ids) for ids in rows)
        assert leak.shared.longest == max(plain_longest(training, ids) for ids in rows)
    assert found[0].shared.longest == len(training[-1]) > 80
    assert found[0].document == documents[0].path
    assert found[0].shared.source is not None
    assert found[0].shared.source.path == f"{len(training) - 1}.py"


def test_leaks_of_benchmarks_are_whole_texts_and_long_matches(small_run: Path, tmp_path: Path) -> None:
    document = next(iter(read_documents(small_run / "corpus", "train")))
    tokenizer = Tokenizer.load(small_run / "tokenizer.json")
    other = "one two three four five six seven eight nine ten " * 3
    lines = document.text.splitlines(keepends=True)
    problems: list[dict[str, Any]] = [
        {"task_id": "a/0", "prompt": document.text, "solution": other},
        {"task_id": "a/1", "prompt": other + "".join(lines[-8:]) + other, "hints": ["short"]},
        {"task_id": "a/2", "prompt": other},
    ]
    path = tmp_path / "benchmark.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems), encoding="utf-8")
    found = find_benchmark_leaks(open_run_index(small_run, small_run / "tokenizer.json"), tokenizer, [path])
    training = split_ids(small_run, "train")
    assert [leak.name for leak in found] == ["0.prompt", "0.solution", "1.prompt", "2.prompt"]
    for leak, text in zip(found, (document.text, other, problems[1]["prompt"], other), strict=True):
        ids = tokenizer.encode(str(text))
        assert leak.shared.n_shared == plain_shared(training, ids)
        assert leak.shared.longest == plain_longest(training, ids)
        assert leak.n_whole == sum(each.text.count(str(text)) for each in read_documents(small_run / "corpus", "train"))
    assert [leak.is_leaked for leak in found] == [True, False, True, False]


def test_leaks_are_printed_as_text_and_as_json(small_run: Path, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.jsonl"
    text = next(iter(read_documents(small_run / "corpus", "train"))).text
    path.write_text(json.dumps({"prompt": text}) + "\n", encoding="utf-8")
    record = json.loads(codekiln("corpus", "leaks", run, "--benchmark", path, "--json").stdout)
    first = record["held_out"][0]
    assert first["shared"]["n_shared"] > 80
    assert set(first["shared"]["source"]) == {"repository", "revision", "path", "license"}
    assert record["benchmarks"][0]["n_whole"] == 1
    shown = codekiln("corpus", "leaks", run, "--benchmark", path).stdout
    n_tokens = sum(each["shared"]["n_tokens"] for each in record["held_out"])
    assert f"of {n_tokens:,} held-out tokens are in matches of at least 50 tokens of the training split" in shown
    assert "1 of 1 texts share at least 50 tokens with the training documents, or are whole in them (1)" in shown
    assert "benchmark" not in codekiln("corpus", "leaks", run).stdout
    path.write_text('{"prompt": "short"}\n', encoding="utf-8")
    done = codekiln("corpus", "leaks", run, "--benchmark", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no text of at least 20 words" in done.stderr
    assert "is not a file" in codekiln("corpus", "leaks", run, "--benchmark", tmp_path / "none").stderr


def test_memorized_tokens_of_a_run_are_those_of_a_plain_search(small_run: Path) -> None:
    completer, config = (
        Completer.load(small_run),
        InfillingConfig(n_problems=8, context_characters=300, max_new_tokens=24),
    )
    documents = list(read_documents(small_run / "corpus", "validation"))
    prompts = [each.prompt for each in sample_problems(documents, config)[SINGLE_LINE]]
    params = CompletionParams(sampling=GREEDY, max_new_tokens=100)
    texts = [each.tokens for each in completer.complete([InfillRequest(prompt) for prompt in prompts], params)]
    rows = [*split_ids(small_run, "train"), texts[0][5:90]]
    for rows_of_index in (split_ids(small_run, "train"), rows):
        run = small_run.parent / "memorization"
        shutil.copytree(small_run, run, dirs_exist_ok=True)
        index_files(run, [File(f"{k}.py", "MIT", row) for k, row in enumerate(rows_of_index)])
        index = open_run_index(run, run / "tokenizer.json")
        found = evaluate_memorization(completer, index, documents, config)
        n_memorized = sum(plain_shared(rows_of_index, tokens) for tokens in texts)
        assert found["tokens"] == sum(map(len, texts))
        assert found["prompts"] == len(prompts)
        assert found["memorized"]["value"] == pytest.approx(n_memorized / found["tokens"])
        assert found["memorized"]["low"] <= found["memorized"]["value"] <= found["memorized"]["high"]
        assert found["memorized"]["high"] > 0
        shutil.rmtree(run)
    assert n_memorized >= 85
    assert evaluate_memorization(completer, index, [], config) == {"prompts": 0, "reason": "no held-out data"}


def test_card_and_report_show_the_recorded_memorization(small_run: Path) -> None:
    record = read_stage_record(small_run, "evaluation")["result"]["memorization"]
    assert (record["temperature"], record["min_match_tokens"], record["max_new_tokens"]) == (0, 50, 100)
    shown = f"{record['memorized']['value']:.1%} ["
    line = next(line for line in (small_run / "CARD.md").read_text().splitlines() if "| Memorization |" in line)
    assert shown in line
    assert f"of {record['tokens']:,} written tokens" in line
    assert "Memorization" in (small_run / "report.html").read_text()
