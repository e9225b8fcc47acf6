"""The index of a folder of code without a run: search, provenance and recall with it, changes, and bad input."""

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from codekiln.corpus.documents import read_documents
from codekiln.corpus.engine import Engine
from codekiln.errors import CodekilnError
from codekiln.files import read_json
from codekiln.index.search import open_run_index
from codekiln.indexing import index_folder
from codekiln.tokenizer.bpe import Tokenizer
from tests.command import assert_refused, codekiln
from tests.small import write_tree

NAME = "measure_the_height_of_the_old_chimney"
KEY_OF_AWS = "AKIAQ3EGTUV7K2LMWXYZ"


def write_code(folder: Path) -> Path:
    """A tree with copies, a name that occurs three times, and a key."""
    code = write_tree(folder / "own")
    shutil.copytree(code / "repository0", code / "copy")
    (code / "repository1" / "chimney.py").write_text(
        f"def {NAME}(bricks):\n    return len(bricks) * 7\n\n\nheight = {NAME}([1])\nother = {NAME}([])\n"
        f'key = "{KEY_OF_AWS}"\n',
        encoding="utf-8",
    )
    return code


@pytest.fixture(scope="module")
def indexed(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed")
    code = write_code(folder)
    done = codekiln(
        "corpus", "index", code, "--model", small_run / "model", "--out", folder / "out", "--license", "MIT"
    )
    assert "documents are indexed" in done.stdout, done.stderr
    return folder / "out"


def test_a_folder_is_searched_without_a_run(indexed: Path) -> None:
    found = json.loads(codekiln("corpus", "search", indexed, NAME, "--json").stdout)
    assert found["count"] == 3
    assert {(place["path"], place["license"]) for place in found["places"]} == {("chimney.py", "MIT")}
    paths = [document.path for document in read_documents(indexed / "corpus", "train")]
    assert "chimney.py" in paths and len(paths) == 26  # copies too
    assert json.loads(codekiln("corpus", "search", indexed, KEY_OF_AWS, "--json").stdout)["count"] == 0


def test_completions_are_traced_to_an_indexed_folder(indexed: Path, small_run: Path) -> None:
    """Also those of a model directory, which has no index of its own."""
    prompt = f"def {NAME}(bricks):\n    return len(bricks) * 7\n\n\nheight = {NAME}("
    command = ("complete", small_run / "model", prompt, "--temperature", "0", "--json", "--indexed", indexed)
    traced = json.loads(codekiln(*command, "--provenance", "--recall").stdout)["completions"][0]
    sources = [source for stretch in traced["provenance"] for source in stretch["sources"]]
    assert {source["path"] for source in sources} == {"chimney.py"}
    assert "len(bricks) * 7" in traced["text"]  # recalled from another place
    alone = json.loads(codekiln(*command[:-2]).stdout)["completions"][0]
    assert "len(bricks) * 7" not in alone["text"]
    assert_refused(codekiln(*command), "--provenance", status=2)


def test_an_index_follows_the_code(small_run: Path, tmp_path: Path) -> None:
    code, out, tokenizer = write_code(tmp_path), tmp_path / "out", small_run / "tokenizer.json"
    first = index_folder(code, tokenizer, out, license="MIT")
    again = index_folder(code, tokenizer, out, license="MIT", engine=Engine(memory_bytes=300_000_000))
    assert {**first, "files": None, "shards": None} == {**again, "files": None, "shards": None}
    (code / "repository1" / "chimney.py").write_text("value = 1\n", encoding="utf-8")
    (code / "repository2" / "new.py").write_text("def a_new_function_of_today():\n    pass\n", encoding="utf-8")
    changed = index_folder(code, tokenizer, out, license="MIT")
    assert changed["documents"] == first["documents"] + 1
    index = open_run_index(out, tokenizer)
    ids = Tokenizer.load(tokenizer).encode("def a_new_function_of_today():\n    pass\n")
    assert index.count(ids) == 1
    assert index.count(Tokenizer.load(tokenizer).encode(f"def {NAME}(")) == 0


def test_an_index_that_was_interrupted_continues(small_run: Path, tmp_path: Path) -> None:
    """While files are read, and while they are tokenized."""
    library, out = sysconfig.get_path("stdlib"), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "codekiln",
        "corpus",
        "index",
        library,
        "--model",
        str(small_run),
        "--out",
        str(out),
    ]
    for title in ("Corpus: read and filter", "Tokenize"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            lines = [""]
            while title not in lines[-1]:
                assert process.poll() is None, lines
                lines.append(process.stderr.readline())
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()  # not `communicate`, which would lose what was read ahead
            assert process.wait(60) == 130, rest
        assert "same command" in rest and "Traceback" not in rest and "FATAL" not in rest
    assert (out / "corpus" / "manifest.json").is_file() and not (out / "index" / "manifest.json").exists()
    done = codekiln(*command[3:])
    assert "documents are indexed" in done.stdout, done.stderr
    found = json.loads(codekiln("corpus", "search", out, "class JSONDecoder(", "--json").stdout)
    assert [place["path"] for place in found["places"]] == ["decoder.py"]


def test_bad_input_is_refused(indexed: Path, small_run: Path, tmp_path: Path) -> None:
    code = write_code(tmp_path)
    command = ("corpus", "index", code, "--model", small_run)
    assert_refused(codekiln(*command, "--out", code / "index"), "index")
    assert not (code / "index").exists()
    (tmp_path / "empty").mkdir()
    assert_refused(
        codekiln("corpus", "index", tmp_path / "empty", *command[3:], "--out", tmp_path / "a"), "no source file"
    )
    assert_refused(codekiln(*command[:3], "--model", tmp_path / "empty", "--out", tmp_path / "b"), "tokenizer.json")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    assert_refused(codekiln(*command, "--out", tmp_path / "full"), "mine.txt")
    shutil.copytree(indexed, tmp_path / "other")
    record = read_json(small_run / "tokenizer.json")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(record, indent=3), encoding="utf-8")
    other = ("corpus", "index", code, "--model", tmp_path / "model", "--out", tmp_path / "other")
    assert_refused(codekiln(*other), "another model")
    (tmp_path / "other" / "index" / "manifest.json").unlink()
    for name in (tmp_path / "other", tmp_path / "empty"):
        assert_refused(codekiln("complete", small_run, "x", "--recall", "--indexed", name), "index")
    with pytest.raises(CodekilnError):
        index_folder(tmp_path / "none", small_run / "tokenizer.json", tmp_path / "c")
