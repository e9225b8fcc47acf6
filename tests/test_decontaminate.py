"""Decontamination against files of benchmarks."""

import dataclasses
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.decontaminate import HITS, Decontaminate, decontaminate
from codekiln.errors import CodekilnError
from tests.command import assert_refused, codekiln
from tests.small import ROOT, write_tree

pytestmark = pytest.mark.process

PROBLEMS = [
    {
        "task_id": f"T/{n}",
        "prompt": f"def solve_{n}(numbers, limit):\n"
        f'    """ Return the sum of all numbers below the limit of task {n} that are odd\n'
        f"    and that come after the first even number, or {n} if there is none at all.\n"
        f'    >>> solve_{n}([1, 2, 3], 4)\n    3\n    """\n',
        "canonical_solution": "    return sum(x for x in numbers)\n",
    }
    for n in range(3)
]
DATA = ROOT.parent / "shared" / "data"


def write_benchmark(path: Path) -> Path:
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS), encoding="utf-8")
    return path


def build(code: Path, folder: Path, step: Decontaminate) -> dict[str, str]:
    """Builds a corpus. Returns the reasons of dropped files by name."""
    sources = (LocalRepositories(folder=code, license="MIT"),)
    config = CorpusConfig(sources=sources, steps=(step,), validation_fraction=0.0)
    manifest = build_corpus(config, folder)
    return {name: reason for reason, entry in manifest["dropped"].items() for name in entry["examples"]}


def test_files_with_a_problem_are_dropped_and_listed(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    prompt = PROBLEMS[1]["prompt"]
    indented = "".join("    " + line for line in prompt.splitlines(keepends=True))
    (code / "repository1" / "copied.py").write_text(
        f"import os\n\n\nclass Tasks:\n{indented}        pass\n", encoding="utf-8"
    )
    (code / "repository1" / "idiom.py").write_text(
        "def total(numbers):\n    return sum(x for x in numbers)\n", encoding="utf-8"
    )
    reasons = build(code, tmp_path / "corpus", decontaminate([write_benchmark(tmp_path / "own.jsonl")]))
    assert reasons == {"repository1@-/copied.py": "contaminated by own.jsonl"}
    (hit,) = pq.read_table(tmp_path / "corpus" / HITS).to_pylist()
    assert (hit["name"], hit["benchmark"], hit["text"]) == ("repository1@-/copied.py", "own.jsonl", "1.prompt")
    assert hit["fraction"] == 1.0
    kept = {document.path for document in read_documents(tmp_path / "corpus", "train")}
    assert "idiom.py" in kept and len(kept) == 21


def test_benchmarks_are_read_as_jsonl_gzip_and_lists(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    (code / "repository1" / "copied.py").write_text(PROBLEMS[2]["prompt"] + "    pass\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(PROBLEMS), encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(write_benchmark(tmp_path / "c.jsonl").read_bytes()))
    for n, name in enumerate(("a.json", "b.jsonl.gz", "c.jsonl")):
        reasons = build(code, tmp_path / f"corpus{n}", decontaminate([tmp_path / name]))
        assert reasons == {"repository1@-/copied.py": f"contaminated by {name}"}


def test_lines_are_those_of_json(tmp_path: Path) -> None:
    """Line separators may be in strings, the last line may have no end, and strings may hold lone surrogates."""
    problem = PROBLEMS[0] | {"other": "a\u2028b\u0085c \ud800"}
    path = tmp_path / "one.jsonl"
    path.write_bytes(json.dumps(problem, ensure_ascii=False).encode(errors="surrogatepass"))
    escaped = tmp_path / "escaped.jsonl"
    escaped.write_text(json.dumps(problem), encoding="utf-8")
    with pytest.raises(CodekilnError, match=r"one\.jsonl"):
        decontaminate([path])
    code = write_tree(tmp_path / "code")
    (code / "repository1" / "copied.py").write_text(PROBLEMS[0]["prompt"], encoding="utf-8")
    assert list(build(code, tmp_path / "corpus", decontaminate([escaped]))) == ["repository1@-/copied.py"]
    path.write_text(json.dumps(PROBLEMS[0] | {"other": "a\u2028b\u0085c"}, ensure_ascii=False), encoding="utf-8")
    assert list(build(code, tmp_path / "other", decontaminate([path]))) == ["repository1@-/copied.py"]


def test_fraction_of_runs_decides(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    half = PROBLEMS[0]["prompt"][: len(PROBLEMS[0]["prompt"]) * 7 // 10]
    (code / "repository1" / "half.py").write_text(half, encoding="utf-8")
    step = decontaminate([write_benchmark(tmp_path / "own.jsonl")])
    for fraction, expected in ((0.3, ["repository1@-/half.py"]), (0.95, [])):
        found = build(code, tmp_path / f"corpus{fraction}", dataclasses.replace(step, min_fraction=fraction))
        assert list(found) == expected


def test_unreadable_benchmarks_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"a": ', encoding="utf-8")
    (tmp_path / "short.jsonl").write_text('{"a": "x"}\n', encoding="utf-8")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": "b"}' * 99)[:20])
    (tmp_path / "deep.jsonl").write_text("[" * 100_000, encoding="utf-8")
    damaged = bytearray(gzip.compress(json.dumps(PROBLEMS).encode() * 50))
    damaged[40:60] = bytes(20)
    (tmp_path / "damaged.jsonl.gz").write_bytes(damaged)
    (tmp_path / "number.jsonl").write_text("5", encoding="utf-8")
    for name in (
        "damaged.jsonl.gz",
        "number.jsonl",
        "broken.jsonl",
        "short.jsonl",
        "binary.jsonl",
        "cut.jsonl.gz",
        "deep.jsonl",
        "none.jsonl",
    ):
        with pytest.raises(CodekilnError, match=name.replace(".", r"\.")):
            decontaminate([tmp_path / name])


def test_option_drops_files_and_a_changed_benchmark_is_refused(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    (code / "repository1" / "copied.py").write_text(PROBLEMS[0]["prompt"] + "    pass\n", encoding="utf-8")
    benchmark = write_benchmark(tmp_path / "own.jsonl")
    command = (
        "train", "demo", "--out", tmp_path / "run", "--code", code, "--license", "MIT", "--stop-after", "corpus",
        "--decontaminate", benchmark,
    )  # fmt: skip
    done = codekiln(*command)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "corpus" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["dropped"]["contaminated by own.jsonl"]["documents"] == 1
    with benchmark.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "word " * 30}) + "\n")
    assert_refused(codekiln(*command), tmp_path / "run", "sha256")


@pytest.mark.skipif(not DATA.is_dir(), reason="the published benchmark files are not there")
@pytest.mark.parametrize("name", ["HumanEval.jsonl.gz", "mbpp.jsonl", "mtpb.jsonl", "sanitized-mbpp.json"])
def test_problems_of_published_benchmarks_are_found(tmp_path: Path, name: str) -> None:
    """Each problem with a long text, in a file of its own, is found. Files of the package are not."""
    step = decontaminate([DATA / name])
    data = (DATA / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    problems = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    fields = ("prompt", "text", "code", "canonical_solution")
    texts = [
        "\n".join(str(problem[field]) for field in fields if field in problem and isinstance(problem[field], str))
        for problem in problems
    ]
    long = {f"task{n}.py": text for n, text in enumerate(texts) if len(text.split()) > 60}
    folder = tmp_path / "code" / "tasks"
    folder.mkdir(parents=True)
    for file, content in long.items():
        (folder / file).write_text(content, encoding="utf-8")
    own = tmp_path / "code" / "own"
    own.mkdir()
    for path in sorted((ROOT / "codekiln").rglob("*.py")):
        (own / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    build(tmp_path / "code", tmp_path / "corpus", step)
    kept = {document.path for document in read_documents(tmp_path / "corpus", "train")}
    assert len(kept & long.keys()) <= 0.02 * len(long)
    assert kept >= {path.name for path in own.iterdir() if path.stat().st_size}
