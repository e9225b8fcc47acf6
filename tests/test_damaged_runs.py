"""Runs whose files were damaged, edited or whose code has changed: an error names the file, and nothing is overwritten."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from codekiln.corpus.engine import CorpusOptions
from codekiln.errors import CodekilnError
from codekiln.pipeline import build
from codekiln.report.card import write_card, write_report
from tests.command import codekiln
from tests.small import EAGER, small_recipe, write_tree

RECORDS = ("recipe.json", *(f"stages/{name}.json" for name in ("corpus", "tokenizer", "tokens", "train", "evaluation")))


def copy_of(small_run: Path, folder: Path) -> Path:
    shutil.copytree(small_run, folder / "run")
    return folder / "run"


def rebuild(small_run: Path, run: Path) -> None:
    build(small_recipe(small_run.parent / "code"), run, EAGER)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: "\x00" * len(text),
        lambda text: "[" * 100_000,
        lambda text: json.dumps({"format": 1}),
        lambda text: json.dumps({"format": "one"}),
        lambda text: re.sub(r"[0-8](?=\D)", lambda digit: str(int(digit.group()) + 1), text, count=2),
    ],
    ids=["empty", "half", "list", "null", "zeros", "deep", "no fields", "other format", "other numbers"],
)
def test_damaged_record_is_named(name: str, damage: Callable[[str], str], small_run: Path, tmp_path: Path) -> None:
    run = copy_of(small_run, tmp_path)
    path = run / name
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(CodekilnError, match=r"recipe" if name == "recipe.json" else name.replace(".", r"\.")):
        rebuild(small_run, run)


@pytest.mark.parametrize(
    "output", ["tokenizer.json", "corpus/manifest.json", "tokens/manifest.json", "model/config.json"]
)
def test_edited_output_is_named_and_can_be_made_again(output: str, small_run: Path, tmp_path: Path) -> None:
    run = copy_of(small_run, tmp_path)
    original = (run / output).read_bytes()
    (run / output).write_bytes(original.replace(b":", b": ", 1))
    with pytest.raises(CodekilnError, match=output) as refusal:
        rebuild(small_run, run)
    record = next(word for word in str(refusal.value).split() if "/stages/" in word)
    Path(record).unlink()
    rebuild(small_run, run)
    assert (run / output).read_bytes() == original


@pytest.mark.parametrize("damage", [b"\x00\x01\n", b'{"a"\n', b"[1]\n", b'{"step": "one"}\n'])
def test_report_of_damaged_metrics_is_an_error_that_names_them(damage: bytes, small_run: Path, tmp_path: Path) -> None:
    run = copy_of(small_run, tmp_path)
    (run / "metrics.jsonl").write_bytes(damage)
    with pytest.raises(CodekilnError, match=r"metrics\.jsonl"):
        write_report(run)


@pytest.mark.parametrize("name", ["train", "evaluation", "functions"])
def test_card_and_report_of_a_record_of_the_wrong_kind_name_it(name: str, small_run: Path, tmp_path: Path) -> None:
    run = copy_of(small_run, tmp_path)
    path = run / "stages" / f"{name}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["result"] = [1, 2]
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CodekilnError, match=rf"stages/{name}\.json"):
        write_card(run)
        write_report(run)


def test_report_of_an_edited_manifest_names_it(small_run: Path, tmp_path: Path) -> None:
    run = copy_of(small_run, tmp_path)
    (run / "corpus" / "manifest.json").write_text('{"format": 2, "splits": {}}', encoding="utf-8")
    for write in (write_card, write_report):
        with pytest.raises(CodekilnError, match=r"corpus/manifest\.json"):
            write(run)


def test_changed_code_is_refused_unless_the_corpus_is_kept(small_run: Path, tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    recipe = small_recipe(code, total_tokens=2048)
    run = tmp_path / "run"
    build(recipe, run, EAGER, stop_after="corpus")
    manifest = (run / "corpus" / "manifest.json").read_bytes()
    (code / "repository0" / "new.py").write_text("value = 1\n" * 20, encoding="utf-8")
    with pytest.raises(CodekilnError, match=r"has changed.*20 files then, 21 now.*--keep-corpus"):
        build(recipe, run, EAGER, stop_after="tokenizer")
    build(recipe, run, EAGER, stop_after="tokenizer", corpus=CorpusOptions(keep=True))
    assert (run / "corpus" / "manifest.json").read_bytes() == manifest


@pytest.mark.process
def test_prompt_file_with_a_byte_order_mark_is_read_without_it(small_run: Path, tmp_path: Path) -> None:
    marked, plain = tmp_path / "marked.py", tmp_path / "plain.py"
    plain.write_bytes(b"def f(x):\n")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    outputs = [codekiln("complete", small_run, "--file", path, "--temperature", "0").stdout for path in (marked, plain)]
    assert outputs[0] == outputs[1]


@pytest.mark.process
def test_corpus_of_long_lines_in_chinese_is_built_and_measured(tmp_path: Path) -> None:
    """Each character takes up to three tokens, so that a line of 100 can exceed the context: it is skipped and counted."""
    characters = "数据处理函数返回结果列表参数名称打开关闭窗口"
    code = tmp_path / "code"
    for n in range(12):
        lines = [
            f"值{n}{k} = '"
            + "".join(chr(ord(c) + 37 * ((n * 7 + k * 5 + i) % 97)) for i, c in enumerate(characters * 4))
            + "'\n"
            for k in range(12)
        ]
        path = code / f"repository{n % 4}" / f"file{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    run = tmp_path / "run"
    build(small_recipe(code, total_tokens=4096), run, EAGER)
    result = json.loads((run / "stages" / "evaluation.json").read_text(encoding="utf-8"))["result"]
    assert result["single-line"]["skipped"] > 0
    write_card(run)
    write_report(run)
