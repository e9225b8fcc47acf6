"""The command evaluate, from problems to results: on held-out code, on published files, on stored samples, and on a server."""

import contextlib
import gzip
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from codekiln.errors import ConfigError
from codekiln.evaluate import judging
from codekiln.evaluate.held_out.load import held_out_names
from codekiln.evaluate.judging import Judge
from codekiln.evaluate.programs import TestedProgram, Verdict
from codekiln.evaluate.samples import SampleKey
from codekiln.evaluate.sandbox.sandbox import PENDING_PER_SLOT, Sandbox
from codekiln.files import read_json, sha256_of
from codekiln.folders import folder_lock
from tests.command import assert_refused, codekiln
from tests.peers import published
from tests.small import running_server, save_random_model

CODE = '''"""Numbers."""

from collections.abc import Sequence


def largest(numbers: Sequence[int], default: int = 0) -> int:
    """The largest of some numbers.

    >>> largest([3, 9, 4])
    9
    >>> largest([])
    0
    """
    result = default
    for number in numbers:
        result = max(result, number)
    return result


def clip(number: int, lowest: int, highest: int) -> int:
    """The number, or the nearest of the limits.

    >>> clip(12, 0, 10)
    10
    """
    clipped = min(highest, number)
    return max(lowest, clipped)


def describe(number: int) -> str:
    """A sentence about a number.

    >>> describe(3)
    'the number 3'
    """
    sentence = "the number " + str(number)
    return sentence
'''


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two repositories of code."""
    folder = tmp_path_factory.mktemp("code")
    for name in ("first", "second"):
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(CODE.replace("number", f"number_{name}"), encoding="utf-8")
    (folder / "first" / "latin.py").write_bytes(b"name = '\xe9'\n")
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))["benchmarks"]
    return found


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_held_out_documents_of_another_run_are_measured(small_run: Path, tmp_path: Path) -> None:
    """A model folder has no corpus. With the run of its model named, the results are those of the run."""
    model = shutil.copytree(small_run / "model", tmp_path / "model")
    values: list[Any] = []
    for measured, options in ((small_run, ()), (model, ("--code", small_run))):
        out = tmp_path / f"results-{len(values)}"
        done = codekiln("evaluate", measured, "--on", "bits-per-byte", "--out", out, *options)
        assert done.returncode == 0, done.stderr
        values.append(results_of(out)["bits-per-byte"]["metrics"]["bits_per_byte"]["interval"])
    assert values[0] == values[1]


def test_recall_is_measured_against_the_model_alone(small_run: Path, tmp_path: Path) -> None:
    (code := tmp_path / "code").mkdir()
    (code / "repeated.py").write_text("def alpha_beta(gamma):\n    return gamma + 17\n\n\n" * 20, encoding="utf-8")
    run = shutil.copytree(small_run, tmp_path / "run")
    options = ("--on", "bits-per-byte", "--code", code)
    for recall in ((), ("--recall",)):
        done = codekiln("evaluate", run, *options, *recall)
        assert done.returncode == 0, done.stderr
    alone, mixed = (
        results_of(run / "evaluation" / name)["bits-per-byte"]["metrics"]["bits_per_byte"]["interval"]["value"]
        for name in ("greedy", "greedy-recall")
    )
    assert mixed < alone - 0.5
    record = read_json(run / "evaluation" / "greedy-recall" / "results.json")["model"]["recall"]
    assert record["index_sha256"] == sha256_of(run / "index" / "manifest.json")
    assert record["gate_sha256"] == sha256_of(run / "recall" / "gate.safetensors")
    done = codekiln("evaluate", run, *options, "--recall", "--against", run / "evaluation" / "greedy", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["differences"]
    done = codekiln("evaluate", run, *options, "--recall", "--out", run / "evaluation" / "greedy")
    assert_refused(done, "recall")  # of another model


def test_every_benchmark_that_needs_no_download_is_measured(small_run: Path, code: Path, tmp_path: Path) -> None:
    names = held_out_names()
    out = tmp_path / "out"
    done = codekiln("evaluate", small_run, "--on", ",".join(names), "--code", code, "--limit", 6, "--out", out)
    assert done.returncode == 0, done.stderr
    found = results_of(out)
    assert list(found) == names
    expected = {
        "held-out-single-line": {"exact_match"},
        "held-out-multi-line": {"exact_match"},
        "held-out-span": {"exact_match"},
        "held-out-docstrings": {"bleu"},
        "held-out-return-types": {"precision", "recall", "f1"},
        "held-out-variable-names": {"exact_match"},
        "held-out-cloze": {"correct"},
        "held-out-cloze-calls": {"correct"},
        "held-out-doctests": {"exact_match", "pass@1"},
        "bits-per-byte": {"bits_per_byte"},
    }
    assert {name: set(each["metrics"]) for name, each in found.items()} == expected
    for name, each in found.items():
        for metric in each["metrics"].values():
            interval = metric["interval"]
            assert interval["low"] <= interval["value"] <= interval["high"], name
        assert each["settings"]["preset"] == "greedy" and each["n_problems"] > 0
        assert name in done.stdout
        assert each["clean"]["problems"] <= each["n_problems"]  # the corpus of the run has other code
    assert {name: each["source"]["skipped"] for name, each in found.items()} == {
        name: {"not UTF-8": 1} for name in names
    }
    assert "1 files were not read (not UTF-8)" in done.stdout
    bits = found["bits-per-byte"]["metrics"]["bits_per_byte"]
    assert bits["scored_bytes"] == bits["bytes"] == 2 * len(CODE) + CODE.count("number") * len("_first_second")
    samples = lines_of(out / "samples.jsonl")
    assert len(samples) == sum(each["n_problems"] for each in found.values())
    verdicts = lines_of(out / "verdicts.jsonl")
    assert {each["benchmark"] for each in verdicts} == {"held-out-doctests"}
    page = (out / "page.html").read_text(encoding="utf-8")
    assert samples[0]["task_id"] in page and "def largest" in page and "<script" not in page
    again = codekiln(
        "evaluate", small_run, "--on", "bits-per-byte", "--code", code, "--limit", 6, "--out", out, "--json"
    )
    assert json.loads(again.stdout)["benchmarks"] == found
    assert json.loads(again.stdout)["sandbox"]["levels"] != []
    # The page keeps the problems that the last command did not measure.
    assert (out / "page.html").read_text(encoding="utf-8") == page


def test_a_killed_evaluation_continues_with_the_same_samples(small_run: Path, code: Path, tmp_path: Path) -> None:
    arguments = (
        "evaluate", small_run, "--on", "held-out-doctests,held-out-variable-names", "--code", code,
        "-n", 4, "--temperature", 0.7, "--temperature", 0.9, "--limit", 5,
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert codekiln(*arguments, "--out", whole).returncode == 0
    command = [sys.executable, "-m", "codekiln", *map(str, arguments), "--out", str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = killed / "samples.jsonl"
    while process.poll() is None and not (samples.exists() and samples.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.wait()
    with samples.open("a", encoding="utf-8") as file:
        file.write('{"benchmark": "held-out-doc')  # as if it was killed in the middle of a line
    n_before = len(samples.read_text(encoding="utf-8").splitlines()) - 1
    done = codekiln(*arguments, "--out", killed)
    assert done.returncode == 0, done.stderr
    kept = samples.read_text(encoding="utf-8").splitlines()[:n_before]
    assert n_before > 0 and all(json.loads(line) for line in kept)

    key = ("benchmark", "task_id", "temperature", "number")
    for records in ("samples.jsonl", "verdicts.jsonl"):
        expected, found = (
            {tuple(each[name] for name in key): each for each in lines_of(folder / records)}
            for folder in (whole, killed)
        )
        assert expected.keys() == found.keys() and len(expected) > 10
        if records == "samples.jsonl":
            # Logits of another batch differ in the last bit, which rarely changes a sample.
            n_equal = sum(found[each]["texts"] == expected[each]["texts"] for each in expected)
            assert n_equal >= 0.9 * len(expected)
    with folder_lock(killed):
        assert_refused(codekiln(*arguments, "--out", killed), str(killed), "in use by another process")
    refused = codekiln(*arguments, "--out", killed, "--seed", 3)
    assert_refused(
        refused, "holds another evaluation", "benchmarks.held-out-doctests.settings.seed: found 0, wanted 3", "--out"
    )
    assert_refused(
        codekiln("evaluate", save_random_model(tmp_path / "other", _tokenizer(small_run)), *arguments[2:], "--out", killed),
        "holds another evaluation", "model",
    )  # fmt: skip


def _tokenizer(run: Path) -> Any:
    from codekiln.tokenizer.bpe import Tokenizer

    return Tokenizer.load(run / "tokenizer.json")


def test_stored_samples_are_scored_and_wrong_files_are_named(tmp_path: Path) -> None:
    path = published("HumanEval.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:6]
    samples = tmp_path / "samples.jsonl"

    def score(lines: list[str], name: str) -> "subprocess.CompletedProcess[str]":
        samples.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return codekiln(
            "evaluate", "--samples", samples, "--on", "humaneval", "--data", path.parent, "--limit", 6,
            "--out", tmp_path / name,
        )  # fmt: skip

    right = [json.dumps({"task_id": row["task_id"], "completion": row["canonical_solution"]}) for row in rows]
    empty = [json.dumps({"task_id": row["task_id"], "completion": ""}) for row in rows]
    for lines, expected in ((right + right, 1.0), (right + empty, 0.5), (empty, 0.0)):
        done = score(lines, f"out{expected}")
        assert done.returncode == 0, done.stderr
        found = results_of(tmp_path / f"out{expected}")["humaneval"]
        assert found["metrics"]["pass@1"]["interval"]["value"] == expected
        assert found["counts"]["samples"] == len(lines)
    compared = codekiln(
        "evaluate", "--samples", samples, "--on", "humaneval", "--data", path.parent, "--limit", 6,
        "--out", tmp_path / "out0.0", "--against", tmp_path / "out1.0", "--json",
    )  # fmt: skip
    difference = json.loads(compared.stdout)["differences"]["humaneval"]["pass@1"]
    assert difference["interval"]["value"] == -1 and difference["n_problems"] == 6
    done = score([*right, json.dumps({"task_id": "HumanEval/100", "completion": ""})], "beyond")  # of the limit
    assert results_of(tmp_path / "beyond")["humaneval"]["metrics"]["pass@1"]["interval"]["value"] == 1.0
    done = score(right[:4], "missing")
    assert "2 problems have no sample" in done.stdout
    assert results_of(tmp_path / "missing")["humaneval"]["metrics"]["pass@1"]["n_problems"] == 4
    for lines, parts in (
        (
            [*right, '{"task_id": "HumanEval/999", "completion": ""}'],
            ("line 7", "no problem 'HumanEval/999'", "HumanEval/0"),
        ),
        ([*right, '{"completion": ""}'], ("line 7", "task_id is missing")),
        ([*right, '{"task_id": "HumanEval/0"}'], ("line 7", "completion is missing")),
        ([*right, '{"task_id": '], ("line 7", "not readable JSON")),
        ([*right, "[1]"], ("line 7", "not a JSON object")),
        ([], ("no samples",)),
    ):
        assert_refused(score(lines, "bad"), str(samples), *parts)
    marked = b"\xef\xbb\xbf" + "".join(f"{line}\n" for line in right).encode()
    samples.write_bytes(marked)  # a byte order mark is no part of the first line
    arguments = ("evaluate", "--samples", samples, "--on", "humaneval", "--data", path.parent, "--limit", 6)
    assert codekiln(*arguments, "--out", tmp_path / "marked").returncode == 0
    assert results_of(tmp_path / "marked")["humaneval"]["metrics"]["pass@1"]["interval"]["value"] == 1.0
    for option in (
        ("--preset", "greedy"), ("--seed", 0), ("--weights", "float32"), ("--backend", "pytorch"), ("-n", 2),
        ("--temperature", 0.5), ("--method", "infilling"), ("--endpoint", "http://127.0.0.1:9/v1"),
    ):  # fmt: skip
        done = codekiln(*arguments, "--out", tmp_path / "bad", *option)
        assert done.returncode == 2 and f"{option[0]} has no effect with --samples" in " ".join(done.stderr.split())
    samples.write_bytes(marked.decode().encode("utf-16"))
    assert_refused(codekiln(*arguments, "--out", tmp_path / "bad"), "line 1", "not UTF-8")
    samples.write_bytes(b'{"task_id": "HumanEval/0", "completion": "\xff"}\n')
    done = codekiln(
        "evaluate", "--samples", samples, "--on", "humaneval", "--data", path.parent, "--out", tmp_path / "bad"
    )
    assert_refused(done, "line 1", "not UTF-8")
    assert not (tmp_path / "bad").exists()


def test_wrong_arguments_are_refused_before_anything_is_written(small_run: Path, code: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, parts in (
        (
            (small_run, "--on", "humanevil", "--out", out),
            ("there is no benchmark 'humanevil'", "humaneval, ", "held-out-span"),
        ),
        ((small_run, "--on", "humaneval", "--out", out), ("--data",)),
        ((small_run, "--on", "humaneval", "--data", code, "--out", out), ("HumanEval.jsonl.gz", "https://")),
        ((small_run, "--on", "bits-per-byte", "--preset", "best", "--out", out), ("no preset 'best'", "incoder")),
        ((small_run, "--on", "bits-per-byte", "-n", 3, "--out", out), ("temperature 0",)),
        ((small_run, "--on", ",", "--out", out), ("names no benchmark",)),
        ((small_run, "--on", "bits-per-byte", "--temperature", "nan", "--out", out), ("between 0 and 2", "nan")),
        ((small_run, "--on", "bits-per-byte", "--temperature", "2.5", "--out", out), ("between 0 and 2", "2.5")),
        ((small_run, "--on", "held-out-span", "--method", "reranking", "--out", out), ("all candidates are equal",)),
        ((small_run, "--on", "bits-per-byte", "--against", tmp_path, "--out", out), ("results.json",)),
        ((tmp_path, "--on", "bits-per-byte", "--out", out), ("model",)),
        (
            ("m", "--endpoint", "http://127.0.0.1:9/v1", "--on", "held-out-span", "--weights", "int8", "--out", out),
            ("--weights has no effect with", "--endpoint"),
        ),
        (("--sandbox", "none"), ()),
    ):
        done = codekiln("evaluate", *arguments)
        assert done.returncode in (1, 2) and all(part in done.stderr for part in parts), done.stderr
        assert "Traceback" not in done.stderr
    assert codekiln("evaluate").returncode == 2
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep me", encoding="utf-8")
    assert_refused(
        codekiln("evaluate", small_run, "--on", "bits-per-byte", "--code", code, "--out", out),
        "mine.txt",
        "new or empty folder",
    )
    assert [each.name for each in out.iterdir()] == ["mine.txt"]


@pytest.mark.process
def test_a_served_model_gives_the_answers_of_the_model_itself(small_run: Path, code: Path, tmp_path: Path) -> None:
    arguments = ("--on", "held-out-single-line,held-out-doctests", "--code", code, "--limit", 5)
    assert codekiln("evaluate", small_run, *arguments, "--out", tmp_path / "local").returncode == 0
    with running_server(small_run, "--weights", "float32") as server:
        remote = ("evaluate", "run", *arguments, "--endpoint", server.url + "/v1")
        done = codekiln(*remote, "--out", tmp_path / "served", "--against", tmp_path / "local")
        wrong = codekiln("evaluate", "gpt", *arguments, "--endpoint", server.url + "/v1", "--out", tmp_path / "wrong")
        names = codekiln(
            "evaluate",
            "run",
            "--on",
            "held-out-cloze",
            "--code",
            code,
            "--endpoint",
            server.url + "/v1",
            "--out",
            tmp_path / "no",
        )
    assert done.returncode == 0, done.stderr
    answers = [
        {(each["benchmark"], each["task_id"]): each["answers"] for each in lines_of(tmp_path / name / "samples.jsonl")}
        for name in ("local", "served")
    ]
    assert answers[0] == answers[1] and len(answers[0]) > 5
    assert "difference" in done.stdout and "0.000–0.000" in done.stdout
    assert_refused(wrong, "refused a problem (404)", "gpt")
    assert_refused(names, "held-out-cloze", "probabilities of given texts")
    assert_refused(codekiln(*remote, "--out", tmp_path / "gone"), "cannot reach", "is the server running?")


@pytest.mark.process
def test_ctrl_c_leaves_what_was_sampled_and_no_process(small_run: Path, code: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "codekiln", "evaluate", str(small_run), "--on", "held-out-doctests", "--code", str(code),
        "-n", "200", "--temperature", "0.9", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        verdicts = tmp_path / "out" / "verdicts.jsonl"
        while process.poll() is None and not (verdicts.exists() and verdicts.stat().st_size):
            time.sleep(0.02)
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert lines_of(tmp_path / "out" / "samples.jsonl") and lines_of(verdicts)
    assert not (tmp_path / "out" / "results.json").exists()
    assert children and not [child for child in children if Path(f"/proc/{child}").exists()]


@pytest.mark.process
def test_an_exception_ends_the_judge_at_its_next_verdict() -> None:
    quick = TestedProgram(source="", tests="", cpu_seconds=1)
    slow = TestedProgram(source="", tests="while True: pass", cpu_seconds=3)
    judged: list[SampleKey] = []
    has_judged = threading.Event()

    def keep(key: SampleKey, verdict: Verdict, level: str) -> None:
        judged.append(key)
        has_judged.set()

    with contextlib.suppress(ZeroDivisionError), Judge(lambda: Sandbox(slots=1), keep) as judge:
        judge.judge(("b", "quick", 0.0, 0), quick)
        for number in range(6):
            judge.judge(("b", "slow", 0.0, number), slow)
        assert has_judged.wait(60)
        raise ZeroDivisionError
    assert len(judged) <= 2  # Without an exception, all seven are judged.


@pytest.mark.process
def test_at_most_some_programs_wait_for_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "MAX_WAITING", 3)
    judged: list[SampleKey] = []
    n_taken, most = 0, 0
    with Judge(lambda: Sandbox(slots=1), lambda key, verdict, level: judged.append(key)) as judge:
        for number in range(40):
            judge.judge(("b", "quick", 0.0, number), TestedProgram(source="", tests="", cpu_seconds=1))
            n_taken += 1
            most = max(most, n_taken - len(judged))
    assert sorted(judged) == [("b", "quick", 0.0, number) for number in range(40)]
    assert most <= 3 + PENDING_PER_SLOT + 2  # those that wait, those in the sandbox, and one on each side


@pytest.mark.process
def test_a_sandbox_that_fails_does_not_leave_the_judge_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "MAX_WAITING", 2)

    def fail() -> Sandbox:
        raise ConfigError("no sandbox")

    with pytest.raises(ConfigError, match="no sandbox"), Judge(fail, lambda key, verdict, level: None) as judge:
        for number in range(20):
            judge.judge(("b", "quick", 0.0, number), TestedProgram(source="", tests="", cpu_seconds=1))


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def test_a_released_model_is_measured_by_the_protocol_of_its_paper(tmp_path: Path) -> None:
    """A small model with the architecture and the tokenizer of CodeGen, and two samples instead of 200 and 40."""
    data = published("mtpb.jsonl").parent
    model = save_codegen(tmp_path / "codegen")
    done = codekiln(
        "evaluate", model, "--on", "humaneval,mtpb", "--preset", "codegen", "--data", data, "--limit", 1, "-n", 2,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = results_of(tmp_path / "out")
    assert found["humaneval"]["settings"]["temperatures"] == [0.2, 0.6, 0.8]
    assert found["humaneval"]["settings"]["cut_rule"] == "codegen" and found["humaneval"]["counts"]["samples"] == 6
    assert set(found["humaneval"]["metrics"]) == {"pass@1"} and "temperature" in found["humaneval"]["metrics"]["pass@1"]
    assert found["mtpb"]["metrics"]["pass_rate"]["n_problems"] == 1
    assert "its checker lets at most 1.0000 pass" in done.stdout
    turns = [each for each in lines_of(tmp_path / "out" / "samples.jsonl") if each["benchmark"] == "mtpb"]
    assert len(turns) == 2 and all(len(each["answers"]) == len(each["texts"]) > 2 for each in turns)


def save_codegen(folder: Path) -> Path:
    """A model directory with CodeGen's architecture and tokenizer, and random weights."""
    import torch

    from codekiln.model.configs import CodeGenConfig
    from codekiln.model.huggingface import save_model
    from codekiln.model.transformer import Transformer
    from codekiln.tokenizer.bpe import hugging_face_configs
    from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges

    torch.manual_seed(0)
    tokenizer = codegen_tokenizer(load_gpt2_merges())
    tokenizer.save(folder / "tokenizer.json")
    config = CodeGenConfig(
        n_layers=1,
        d_model=32,
        n_heads=4,
        n_kv_heads=4,
        d_head=8,
        d_ff=64,
        vocab_size=51_200,
        context_length=2048,
        rotary_dim=8,
    )
    save_model(
        folder / "model", Transformer(config), folder / "tokenizer.json", hugging_face_configs(tokenizer, 2048), {}
    )
    return folder / "model"


@pytest.mark.process
def test_a_benchmark_without_problems_is_left_out_of_a_list(small_run: Path, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "plain.py").write_text("def add(a, b):\n    total = a + b\n    return total\n" * 3, encoding="utf-8")
    options = ("--code", code, "--out", tmp_path / "out", "--limit", 2, "--json")
    done = codekiln("evaluate", small_run, "--on", "held-out-single-line,held-out-return-types", *options)
    assert done.returncode == 0, done.stderr
    assert "Left out: held-out-return-types: no file of" in done.stderr
    found = json.loads(done.stdout)
    assert set(found["benchmarks"]) == {"held-out-single-line"} and set(found["left_out"]) == {"held-out-return-types"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "typed.py").write_text("def add(a: int) -> int:\n    return a + 1\n" * 3, encoding="utf-8")
    options = ("--code", other, *options[2:])
    typed = ("--on", "held-out-return-types", *options[:-1])
    assert codekiln("evaluate", small_run, *typed).returncode == 0
    options = ("--code", code, *options[2:])
    mixed = codekiln("evaluate", small_run, "--on", "held-out-single-line,held-out-return-types", *options)
    assert_refused(mixed, "has results of held-out-return-types", "--out")
    for names in ("held-out-return-types", "held-out-return-types,held-out-docstrings"):
        refused = codekiln("evaluate", small_run, "--on", names, *options)
        assert_refused(refused, "has such a problem", "give another folder with --code")
