"""The command as a user types it: exit status, plain sentences, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codekiln.generate.complete import Completer, InfillRequest
from codekiln.generate.sampling import GREEDY, SamplingParams
from tests.small import write_tree


def codekiln(*arguments: object, stdin: bytes | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "codekiln", *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        check=False,
        timeout=240,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def refused(done: "subprocess.CompletedProcess[str]", told: str, status: int = 1) -> None:
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_infill_reads_arguments_a_file_and_standard_input_alike(small_run: Path, tmp_path: Path) -> None:
    before, after = "def open_door(name, count=3):\n", "\n    return steps\n"
    answer = Completer.load(small_run).infill([before, after], max_new_tokens=20, sampling=GREEDY)[0]
    expected = before + answer.text + after
    options = ("--temperature", 0, "--max-new-tokens", 20)
    assert codekiln("infill", small_run, before, after, *options).stdout == expected
    marked = tmp_path / "hole.py"
    marked.write_text(f"{before}<HOLE>{after}", encoding="utf-8")
    assert codekiln("infill", small_run, "--file", marked, *options).stdout == expected
    done = codekiln("infill", small_run, "--marker", "@@", *options, stdin=f"{before}@@{after}".encode())
    assert done.stdout == expected
    as_json = json.loads(codekiln("infill", small_run, "--file", marked, "--json", *options).stdout)
    assert as_json["text"] == expected
    assert as_json["holes"] == [{"text": answer.text, "is_finished": answer.is_finished}]


def test_complete_prints_what_the_engine_says(small_run: Path) -> None:
    sampling = SamplingParams(0.7, 0.9, 5)
    expected = Completer.load(small_run).complete([InfillRequest("def f(")], max_new_tokens=16, sampling=sampling)[0]
    options = ("--temperature", 0.7, "--top-p", 0.9, "--seed", 5, "--max-new-tokens", 16)
    assert codekiln("complete", small_run, "def f(", *options).stdout == expected.text + "\n"
    assert codekiln("complete", small_run / "model", *options, stdin=b"def f(").stdout == expected.text + "\n"
    assert json.loads(codekiln("complete", small_run, "def f(", "--json", *options).stdout)["text"] == expected.text


def test_wrong_usage_ends_with_2(small_run: Path) -> None:
    wrong = ("infil",), ("demo", "--fast"), ("infill", small_run, "only before"), ("serve",)
    for arguments in (*wrong, ("complete", small_run, "x", "--file", "y")):
        refused(codekiln(*arguments), "", status=2)
    refused(codekiln("infill", small_run, "a", "b", "--file", "y"), "not both", status=2)
    refused(codekiln("infill", small_run, "--file", "y", "--marker", ""), "--marker is empty", status=2)
    refused(codekiln("tokenizer", small_run, "--vocab-size", "300", "--out", "y"), "name a run with --train", status=2)
    refused(codekiln("tokenizer", small_run, "--gpt2", "y", "--out", "y"), "--gpt2 is for codegen", status=2)
    refused(codekiln("demo", "--license", "MIT"), "give both", status=2)
    refused(codekiln("complete", small_run, "x", "--max-new-tokens", "-3"), "greater than or equal", status=2)


def test_help_answers_without_loading_torch() -> None:
    program = (
        "import sys; sys.argv = ['codekiln', '--help']\nfrom codekiln.cli import main\n"
        "try:\n main()\nexcept SystemExit:\n sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for verb in ("demo", "build", "complete", "infill", "serve", "card"):
        assert verb in done.stdout


def test_bad_input_is_one_plain_sentence(small_run: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.py"
    latin.write_bytes(b"# caf\xe9 <HOLE>\n")
    refused(codekiln("infill", small_run, "--file", latin), "latin.py is not UTF-8 (byte 5): convert it first")
    refused(codekiln("infill", small_run, stdin=b"no hole"), "the text has no hole: put <HOLE> where one is")
    refused(codekiln("infill", small_run, "--file", tmp_path / "none.py"), "none.py: No such file or directory")
    refused(codekiln("complete", tmp_path, "x"), "holds no model (config.json is missing)")
    refused(codekiln("complete", small_run, "x", "--temperature", 9), "temperature is 9.0: it must be from 0 to 2")
    refused(codekiln("complete", small_run, "x", "--max-new-tokens", 500), "500 new tokens: ask for fewer than half")
    refused(codekiln("card", tmp_path), "has no finished stage tokens: run `codekiln build` on it to the end")
    refused(codekiln("build", "demon", "--out", tmp_path / "run"), "no recipe is called 'demon': known are codegen-16B")


def test_a_folder_that_cannot_make_a_model_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    run = tmp_path / "run"
    refused(
        codekiln("demo", "--out", run, "--code", empty), "empty holds no source file: name a folder with files of these"
    )
    code = write_tree(tmp_path / "code")
    done = codekiln("demo", "--out", tmp_path / "other", "--code", code)
    refused(done, "no file is under a permissive licence (of 20 files; licence unknown: 20)")
    done = codekiln("demo", "--out", tmp_path / "third", "--code", code, "--license", "MIT")
    refused(done, "use a larger corpus or a smaller vocab_size")


def test_ctrl_c_in_the_corpus_stage_ends_with_130_and_a_sentence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "codekiln", "demo", "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "Corpus: read and filter" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; nothing is lost, and the same command goes on from here" in errors
    assert "Traceback" not in errors and "FATAL" not in errors
    assert not (run / "corpus" / "manifest.json").exists() and not (run / "stages").exists()


@pytest.mark.timeout(280)
def test_the_demo_on_a_folder_ends_with_what_to_try_next(tmp_path: Path) -> None:
    code, run = write_tree(tmp_path / "code"), tmp_path / "run"
    settings = (
        "tokenizer.vocab_size=384", "model.vocab_size=384", "model.context_length=128", "model.d_model=32",
        "model.n_layers=1", "train.total_tokens=4096", "infilling.max_new_tokens=12",
        "train.eval_sequences=8", "infilling.n_problems=4",
        "infilling.context_characters=200", "corpus.validation_fraction=0.2",
    )  # fmt: skip
    options = [word for setting in settings for word in ("--set", setting)]
    done = codekiln("demo", "--out", run, "--code", code, "--license", "MIT", "--no-compile", *options)
    assert done.returncode == 0, done.stderr
    assert f"codekiln serve {run}" in done.stdout and f"codekiln infill {run}" in done.stdout
    assert "Infilling, single-line: exact match" in done.stdout
    assert (run / "CARD.md").is_file() and (run / "report.html").is_file()
    for line in ("Corpus: read and filter", "Tokens", "Train", "Measure: single-line infilling"):
        assert line in done.stderr
    other = codekiln("demo", "--out", run, "--code", code, "--license", "MIT", *options, "--set", "train.seed=1")
    refused(other, "was made by another recipe (train.seed: found 0, wanted 1)")


def test_a_tokenizer_is_looked_at_and_compared(small_run: Path, tmp_path: Path) -> None:
    source = tmp_path / "odd.py"
    source.write_bytes(b"def f(x):\n\tif x:\n        return '\xc3\xa9\xf0\x9f\x98\x80' + x\n\x1b[31m\xff\n")
    shown = codekiln("tokenizer", small_run, "--inspect", source, "--against", "codegen")
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout, "what the file holds must not steer the terminal"
    assert "def│ f│(│x│):│⏎" in shown.stdout and "‹ff›" in shown.stdout
    assert "of the cuts of" in shown.stdout
    told = json.loads(codekiln("tokenizer", "codegen", "--inspect", source, "--json").stdout)["codegen"]
    assert (told["bytes"], told["lines"]) == (len(source.read_bytes()), 4)
    assert told["tokens_per_byte"] == pytest.approx(told["tokens"] / told["bytes"])
    for arguments, status, message in (
        (("tokenizer", "codegen"), 2, "--inspect FILE"),
        (("tokenizer", "nothere", "--inspect", source), 1, "nothere is missing: name a run or a model folder"),
        (("tokenizer", "codegen", "--inspect", tmp_path / "none"), 1, "No such file"),
        (("tokenizer", "codegen", "--gpt2", "no-one/nothing", "--inspect", source), 1, "the hub gives no merges.txt"),
    ):
        refused(codekiln(*arguments, HF_HUB_OFFLINE="1"), message, status)


def test_a_tokenizer_is_trained_on_a_runs_corpus(small_run: Path, tmp_path: Path) -> None:
    done = codekiln("tokenizer", "incoder", "--train", small_run, "--vocab-size", 600, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert told["added_tokens"][-1] == told["added_tokens"][0] | {"id": 599, "content": "<|endofmask|>"}
    refused(
        codekiln("tokenizer", "incoder", "--train", small_run, "--out", tmp_path), "use a larger corpus or a smaller"
    )
    refused(codekiln("tokenizer", "incoder", "--train", small_run), "--train needs --out", 2)
    refused(codekiln("tokenizer", "other", "--train", small_run, "--out", tmp_path), "known are kiln, incoder")


def test_codegens_tokenizer_is_written_for_transformers(tmp_path: Path) -> None:
    import transformers

    assert codekiln("tokenizer", "codegen", "--out", tmp_path).returncode == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("    return x") == [50284, 7783, 2124]
    assert theirs.decode([50284, 7783, 2124]) == "    return x"
