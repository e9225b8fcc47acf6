"""Files of benchmarks: the lock, checksums, and files that are damaged or of another kind."""

import gzip
import json
import re
from pathlib import Path

import pytest

from codekiln.errors import ConfigError, InvalidFileError
from codekiln.evaluate import benchmark_files
from codekiln.evaluate.benchmark_files import LockedFile, locked_files, read_benchmark, read_rows
from codekiln.evaluate.problems.load import BenchmarkSettings, benchmark_names, load_benchmark
from codekiln.files import sha256_of
from tests.peers import published

PUBLISHED = {name: entry for name, entry in locked_files().items() if entry.sha256 and not name.startswith("cloze")}
HUMANEVAL_ROW = {"task_id": "HumanEval/0", "prompt": "p", "canonical_solution": "c", "entry_point": "f", "test": "t"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_file_has_the_locked_checksum(name: str) -> None:
    entry = PUBLISHED[name]
    path = published(entry.file)
    assert sha256_of(path) == entry.sha256
    assert read_benchmark(name, path).rows == read_benchmark(name, path.parent).rows


def test_entries_of_the_lock_are_complete() -> None:
    for entry in locked_files().values():
        assert entry.address.startswith("https://") and entry.license and entry.user_supplied
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_missing_file_names_its_address(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HumanEval\.jsonl\.gz from https://github.com/openai/human-eval.*MIT"):
        load_benchmark("humaneval", tmp_path, BenchmarkSettings())


def test_wrong_checksum_names_both(tmp_path: Path) -> None:
    path = tmp_path / "mtpb.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_benchmark("mtpb", path, BenchmarkSettings())
    assert sha256_of(path) in str(caught.value) and "3ab79ddb160f4" in str(caught.value)


@pytest.mark.parametrize("name", ["humanevil", "", "HumanEval"])
def test_unknown_benchmark_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mbpp-plus, mbpp-sanitized, mtpb, mtpb-single-turn"):
        load_benchmark(name, tmp_path, BenchmarkSettings())
    with pytest.raises(ConfigError, match="choose one of cloze-go"):
        read_benchmark(name, tmp_path)


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries without checksums, so that other files than the published ones can be read."""
    entries = {
        name: LockedFile(
            name=name,
            file=entry.file,
            address=entry.address,
            license=entry.license,
            sha256=None,
            n_problems=None,
            user_supplied="",
        )
        for name, entry in locked_files().items()
    }
    monkeypatch.setattr(benchmark_files, "locked_files", lambda: entries)
    monkeypatch.setattr("codekiln.evaluate.problems.load.locked_file", entries.__getitem__)


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("humaneval", [HUMANEVAL_ROW | {"prompt": 7}], r"line 1: prompt must be a string \(got 7\)"),
        ("humaneval", [HUMANEVAL_ROW, {"task_id": "HumanEval/1"}], "line 2: the field test is missing"),
        ("humaneval", [HUMANEVAL_ROW, HUMANEVAL_ROW], "two problems have the id HumanEval/0"),
        ("mbpp", [{"task_id": "x"}], "line 1: task_id must be an integer"),
        ("mbpp", [{"task_id": True}], r"task_id must be an integer \(got True\)"),
        ("mbpp", [{"task_id": 11, "text": "t", "test_setup_code": "", "test_list": []}], "test_list is empty"),
        ("mtpb", [{"id": "one"}], "id must be a number in a string"),
        ("mtpb", [{"id": "1", "inputs": [{}, {}], "outputs": [1]}], "2 inputs and 1 outputs"),
        ("mtpb", [{"id": "1", "inputs": [{}], "outputs": [1], "prompts": ["{a}"]}], "cannot be filled.*'a'"),
        ("mtpb", [{"id": "1", "inputs": [[]], "outputs": [1], "prompts": ["a"]}], "cannot be filled"),
        ("mtpb", [{"id": "1", "inputs": [{}], "outputs": [1], "prompts": [1]}], "prompts must be a list of strings"),
        ("docstrings", [{"original_string": "def f(): 1", "docstring": "no", "docstring_tokens": []}], "not a part of"),
    ],
)
def test_bad_row_is_named(name: str, rows: list[object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(InvalidFileError, match=message):
        load_benchmark(name, path, BenchmarkSettings())


@pytest.mark.usefixtures("any_checksum")
def test_bad_clozes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "clozeTest.json"
    row = {"idx": "maxmin-1", "nl_tokens": [], "pl_tokens": ["a", "b"]}
    path.write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(InvalidFileError, match="item 1: pl_tokens has 0 times <mask>, once is needed"):
        load_benchmark("cloze-go", path, BenchmarkSettings())
    path.write_text(json.dumps([row | {"pl_tokens": ["<mask>"]}]), encoding="utf-8")
    for text in ("maxmin-1<CODESPLIT>mean", "maxmin-1", "a<CODESPLIT>max\na<CODESPLIT>min"):
        (tmp_path / "answers.txt").write_text(text, encoding="utf-8")
        with pytest.raises(InvalidFileError, match=r"answers.txt, line [12]: needed is a new idx"):
            load_benchmark("cloze-go", path, BenchmarkSettings())
    (tmp_path / "answers.txt").write_text("maxmin-1<CODESPLIT>min\n", encoding="utf-8")
    (problem,) = load_benchmark("cloze-go", path, BenchmarkSettings()).problems
    assert problem.reference == "min" and problem.text_scores("max") == {"correct": 0.0}


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3: not readable JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: not readable JSON"),
        ("a.jsonl.gz", b"no gzip", "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], "not a complete gzip file"),
        ("a.json", b'{"a": 1}', "must hold a list of JSON objects"),
        ("a.json", b'[{"a": 1}, 2]', "item 2: not a JSON object"),
        ("a.csv", b"a,b", r"must be a .jsonl, .jsonl.gz or .json file"),
    ],
)
def test_damaged_file_is_refused_with_its_line(file: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(InvalidFileError, match=message):
        read_rows(path)


def test_rows_are_the_same_in_all_formats(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"a": "line\u2028separator"}, {"b": [1, None]}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    for file in ("a.jsonl", "a.jsonl.gz", "a.json"):
        assert [row.values for row in read_rows(tmp_path / file)] == rows


def test_every_name_has_an_entry_in_the_lock() -> None:
    for name in benchmark_names():
        assert name in locked_files() or name in {"mtpb-single-turn", "cruxeval-output", "cruxeval-input"}
