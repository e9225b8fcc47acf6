"""The command as a user types it: output, exit status, and clear messages for bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY, SamplingParams
from tests.command import assert_refused, codekiln, codekiln_process
from tests.small import run_program, write_tree

pytestmark = pytest.mark.process


def test_infill_reads_arguments_a_file_and_standard_input(small_run: Path, tmp_path: Path) -> None:
    prefix, suffix = "def open_door(name, count=3):\n", "\n    return steps\n"
    completion = Completer.load(small_run).complete(
        [InfillRequest(prefix, suffix)], CompletionParams(max_new_tokens=20, sampling=GREEDY)
    )[0]
    expected = prefix + completion.text + suffix
    options = ("--temperature", 0, "--max-new-tokens", 20, "--raw")
    assert codekiln("infill", small_run, prefix, suffix, *options).stdout == expected
    file = tmp_path / "hole.py"
    file.write_text(f"{prefix}<HOLE>{suffix}", encoding="utf-8")
    assert codekiln("infill", small_run, "--file", file, *options).stdout == expected
    done = codekiln("infill", small_run, "--marker", "@@", *options, stdin=f"{prefix}@@{suffix}".encode())
    assert done.stdout == expected
    as_json = json.loads(codekiln("infill", small_run, "--file", file, "--json", *options).stdout)
    assert as_json["text"] == expected and as_json["file"] == str(file) and as_json["notes"] == []
    (candidate,) = as_json["holes"][0]["candidates"]
    assert candidate["text"] == candidate["raw_text"] == completion.text
    assert candidate["finish_reason"] == completion.finish_reason and candidate["total_logprob"] < 0


def test_infill_of_several_files_prints_one_record_for_each(small_run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.py" for name in "abc"]
    for number, file in enumerate(files):
        file.write_text(f"x = {number}\ny = <HOLE>\nz = <HOLE>\n", encoding="utf-8")
    other = tmp_path / "other.py"
    other.write_text("x = 1\n", encoding="utf-8")
    named = [word for file in files for word in ("--file", file)]
    options = ("-n", 3, "--rank", "suffix", "--temperature", 1, "--max-new-tokens", 6, "--retries", 1)
    done = codekiln("infill", small_run, *named, *options, "--mode", "line", "--context", other, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["file"] for record in records] == list(map(str, files)) and "Infill" in done.stderr
    for number, record in enumerate(records):
        first, second = (hole["candidates"] for hole in record["holes"])
        best = [each[0]["text"] if each else "" for each in (first, second)]
        assert record["text"] == f"x = {number}\ny = {best[0]}\nz = {best[1]}\n"
        assert all("\n" not in each["raw_text"] and each["suffix_logprob"] < 0 for each in (*first, *second))
    done = codekiln("infill", small_run, *named, "--temperature", 0, "--max-new-tokens", 6)
    assert [line for line in done.stdout.splitlines() if line[:4] == "==> "] == [f"==> {file} <==" for file in files]


def test_missing_and_unreadable_files_are_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    good, latin = tmp_path / "good.py", tmp_path / "latin.py"
    good.write_text("x <HOLE>", encoding="utf-8")
    latin.write_bytes(b"# caf\xe9 <HOLE>\n")
    for bad, reason in ((latin, "UTF-8"), (tmp_path / "none.py", "No such file")):
        for command in ("complete", "infill"):
            done = codekiln(command, tmp_path / "no model", "--file", good, "--file", bad)
            assert_refused(done, bad.name, reason)
            assert "no model" not in done.stderr
        done = codekiln("infill", tmp_path / "no model", "--file", good, "--context", bad)
        assert_refused(done, bad.name, reason)
    good.write_text("x", encoding="utf-8")
    assert_refused(codekiln("infill", tmp_path / "no model", "--file", good), "good.py has no hole")


def test_ctrl_c_leaves_the_results_that_were_printed(small_run: Path, tmp_path: Path) -> None:
    named = []
    for number in range(700):  # more than are generated at the same time
        file = tmp_path / f"{number:03}.py"
        file.write_text("def f(", encoding="utf-8")
        named += ["--file", str(file)]
    command = [
        sys.executable,
        "-m",
        "codekiln",
        "complete",
        str(small_run),
        *named,
        "--json",
        "--max-new-tokens",
        "100",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # Not with `communicate`, which loses what `readline` has read ahead.
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    records = [json.loads(line) for line in (first + rest).splitlines()]
    assert [Path(record["file"]).name for record in records] == [f"{n:03}.py" for n in range(len(records))]
    assert 0 < len(records) < 700


def test_output_in_a_pipe_has_no_part_of_the_progress_bar(small_run: Path, tmp_path: Path) -> None:
    """Standard error is a terminal, on which the bar is drawn, and standard output is a pipe."""
    named = []
    for name in "ab":
        (tmp_path / name).write_text("def f(", encoding="utf-8")
        named += ["--file", str(tmp_path / name)]
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "codekiln", "complete", str(small_run), *named, "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=end, text=True, env=os.environ | {"TERM": "xterm"}
    )
    os.close(end)
    output, _ = process.communicate(timeout=100)
    assert [json.loads(line)["file"] for line in output.splitlines()] == named[1::2]
    drawn = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "Complete" in drawn and '"file"' not in drawn


def test_complete_prints_the_completion(small_run: Path) -> None:
    sampling = SamplingParams(temperature=0.7, top_p=0.9, seed=5)
    expected = Completer.load(small_run).complete(
        [InfillRequest("def f(")], CompletionParams(max_new_tokens=16, sampling=sampling)
    )[0]
    options = ("--temperature", 0.7, "--top-p", 0.9, "--seed", 5, "--max-new-tokens", 16)
    assert codekiln("complete", small_run, "def f(", *options).stdout == expected.text + "\n"
    assert codekiln("complete", small_run / "model", *options, stdin=b"def f(").stdout == expected.text + "\n"
    as_json = json.loads(codekiln("complete", small_run, "def f(", "--json", *options).stdout)
    (completion,) = as_json["completions"]
    assert as_json["file"] is None and completion["text"] == expected.text
    assert completion["finish_reason"] == expected.finish_reason
    limited = codekiln("complete", small_run, "def f(", *options, "--stop", expected.text[2:4], "--stop", "never")
    assert limited.stdout == expected.text[: expected.text.index(expected.text[2:4])] + "\n"
    greedy = codekiln("complete", small_run, "def f(", *options, "--top-k", 1).stdout
    assert greedy == codekiln("complete", small_run, "def f(", *options, "--min-p", 1).stdout


def test_several_completions_are_printed_with_the_most_likely_first(small_run: Path) -> None:
    options = ("-n", 4, "--temperature", 1, "--max-new-tokens", 6)
    done = codekiln("complete", small_run, "def f(", *options)
    means = [float(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("--- ")]
    assert len(means) == 4 and means == sorted(means, reverse=True)
    found = json.loads(codekiln("complete", small_run, "def f(", *options, "--json").stdout)["completions"]
    expected = Completer.load(small_run).complete(
        [InfillRequest("def f(")], CompletionParams(max_new_tokens=6, n=4, sampling=SamplingParams(temperature=1.0))
    )
    assert sorted(each["text"] for each in found) == sorted(each.text for each in expected)


def test_exit_status_of_the_process() -> None:
    assert_refused(codekiln_process("report", "no such run"), "no such run")
    assert_refused(codekiln_process("infil"), "infill", status=2)
    assert codekiln_process("complete", "--help").returncode == 0


def test_wrong_usage_exits_with_2(small_run: Path) -> None:
    for arguments in (
        ("infil",),
        ("demo", "--fast"),
        ("infill", small_run, "only a prefix"),
        ("serve",),
        ("complete", small_run, "x", "--file", "y"),
        ("tokenizer",),
    ):
        assert_refused(codekiln(*arguments), status=2)
    assert_refused(codekiln("infill", small_run, "a", "b", "--file", "y"), "--file", status=2)
    assert_refused(codekiln("infill", small_run, "--file", "y", "--marker", ""), "--marker", status=2)
    assert_refused(codekiln("tokenizer", "train", "kiln", "--out", "y"), "'run'", status=2)
    assert_refused(codekiln("tokenizer", "train", "kiln", small_run), "--out", status=2)
    assert_refused(codekiln("tokenizer", "export", small_run, "--gpt2", "y", "--out", "y"), "--gpt2", status=2)
    assert_refused(codekiln("demo", "--license", "MIT"), "--license", "--code", status=2)
    assert_refused(codekiln("complete", small_run, "x", "--max-new-tokens", "-3"), "--max-new-tokens", status=2)


def test_help_lists_the_commands_without_pytorch() -> None:
    done = run_program("run_without.py", "torch", "--help")
    for command in ("demo", "train", "finetune", "plan", "complete", "infill", "serve", "report", "compare", "import"):
        assert command in done.stdout


def test_bad_input_is_reported_in_one_paragraph(small_run: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.py"
    latin.write_bytes(b"# caf\xe9 <HOLE>\n")
    run = tmp_path / "run"
    assert_refused(codekiln("infill", small_run, "--file", latin), "latin.py", "UTF-8", "byte 5")
    assert_refused(codekiln("infill", small_run, stdin=b"no hole"), "<HOLE>", "--marker")
    assert_refused(
        codekiln("infill", small_run, "--file", tmp_path / "none.py"), "none.py", "No such file or directory"
    )
    assert_refused(codekiln("complete", tmp_path, "x"), tmp_path, "config.json")
    assert_refused(codekiln("complete", small_run, "x", "--temperature", 9), "temperature", "9.0", "2")
    assert_refused(codekiln("complete", small_run, "x", "--max-new-tokens", 500), "500", "127")
    assert_refused(codekiln("report", tmp_path), tmp_path, "codekiln train")
    assert_refused(codekiln("train", "demon", "--out", run), "'demon'", "codegen-16B", "demo")
    assert_refused(codekiln("train", "demo", "--out", run, "--stop-after", "tests"), "'tests'", "corpus", "functions")
    assert not run.exists()


def test_folder_without_usable_code_is_reported(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(codekiln("demo", "--out", tmp_path / "run", "--code", empty), empty, "Python")
    code = write_tree(tmp_path / "code")
    assert_refused(codekiln("demo", "--out", tmp_path / "other", "--code", code), "20 files", "unknown: 20")
    done = codekiln("demo", "--out", tmp_path / "third", "--code", code, "--license", "MIT")
    assert_refused(done, "vocab_size", "2,048")


def test_ctrl_c_in_the_corpus_stage_exits_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "codekiln", "demo", "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "Corpus: " not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "same command" in errors
    assert "Traceback" not in errors and "FATAL" not in errors
    assert not (run / "corpus" / "manifest.json").exists() and not (run / "stages").exists()


@pytest.mark.timeout(280)
def test_demo_prints_results_and_the_next_commands(tmp_path: Path) -> None:
    code, run = write_tree(tmp_path / "code"), tmp_path / "run"
    settings = (
        "tokenizer.vocab_size=384", "model.vocab_size=384", "model.context_length=128", "model.d_model=32",
        "model.n_layers=1", "model.attention_layers=[0]", "train.initialization=codekiln",
        "train.total_tokens=4096", "infilling.max_new_tokens=12",
        "train.eval_sequences=8", "infilling.n_problems=4",
        "infilling.context_characters=200", "corpus.validation_fraction=0.2",
    )  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    done = codekiln("demo", "--out", run, "--code", code, "--license", "MIT", "--no-compile", *options)
    assert done.returncode == 0, done.stderr
    assert f"codekiln serve {run}" in done.stdout and f"codekiln infill {run}" in done.stdout
    assert "single-line" in done.stdout and "exact match" in done.stdout
    assert (run / "CARD.md").is_file() and (run / "report.html").is_file()
    for title in ("Corpus: ", "Tokenizer", "Train", "single-line infilling"):
        assert title in done.stderr
    other = codekiln("demo", "--out", run, "--code", code, "--license", "MIT", *options, "--set", "train.seed=1")
    assert_refused(other, run, "train.seed: found 0", 1)


def test_train_stops_after_a_stage(tmp_path: Path) -> None:
    code, run = write_tree(tmp_path / "code"), tmp_path / "run"
    done = codekiln("train", "demo", "--out", run, "--code", code, "--license", "MIT", "--stop-after", "corpus")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (run / "stages").iterdir()] == ["corpus.json"]
    assert not (run / "CARD.md").exists()


def test_tokenizers_are_inspected_and_compared(small_run: Path, tmp_path: Path) -> None:
    source = tmp_path / "odd.py"
    source.write_bytes(b"def f(x):\n\tif x:\n        return '\xc3\xa9\xf0\x9f\x98\x80' + x\n\x1b[31m\xff\n")
    shown = codekiln("tokenizer", "compare", small_run, "codegen", source)
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout, "the content of a file must not control the terminal"
    assert "def│ f│(│x│):│⏎" in shown.stdout and "‹ff›" in shown.stdout
    assert "%" in shown.stdout and "boundaries" in shown.stdout
    found = json.loads(codekiln("tokenizer", "inspect", "codegen", source, "--json").stdout)["codegen"]
    assert (found["bytes"], found["lines"]) == (len(source.read_bytes()), 4)
    assert found["tokens_per_byte"] == pytest.approx(found["tokens"] / found["bytes"])
    assert_refused(codekiln("tokenizer", "inspect", "codegen"), "'file'", status=2)
    assert_refused(codekiln("tokenizer", "inspect", "nothere", source), "nothere")
    assert_refused(codekiln("tokenizer", "inspect", "codegen", tmp_path / "none"), "none", "No such file")
    offline = codekiln_process(
        "tokenizer", "inspect", "codegen", source, "--gpt2", "no-one/nothing", HF_HUB_OFFLINE="1"
    )
    assert_refused(offline, "no-one/nothing")


def test_tokenizer_is_trained_on_the_corpus_of_a_run(small_run: Path, tmp_path: Path) -> None:
    done = codekiln("tokenizer", "train", "incoder", small_run, "--vocab-size", 600, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert record["added_tokens"][-1] == record["added_tokens"][0] | {"id": 599, "content": "<|endofmask|>"}
    assert_refused(codekiln("tokenizer", "train", "incoder", small_run, "--out", tmp_path), "vocab_size", "50,518")
    assert_refused(codekiln("tokenizer", "train", "other", small_run, "--out", tmp_path), "'other'", "kiln, incoder")


def test_codegens_tokenizer_is_exported_for_transformers(tmp_path: Path) -> None:
    assert codekiln("tokenizer", "export", "codegen", "--out", tmp_path).returncode == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("    return x") == [50284, 7783, 2124]
    assert theirs.decode([50284, 7783, 2124]) == "    return x"


def test_recipes_are_listed_and_shown_with_sources() -> None:
    done = codekiln("recipes")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("demo", "codegen-350M", "incoder-6B"))
    found = json.loads(codekiln("recipes", "show", "codegen-350M", "--json").stdout)
    by_field = {entry["field"]: entry for entry in found}
    assert by_field["nl: train.optimizer.lr"]["value"] == 3.0e-4
    assert "jaxformer" in by_field["nl: train.optimizer.lr"]["source"]
    assert_refused(codekiln("recipes", "show", "demon"), "'demon'", "demo")
