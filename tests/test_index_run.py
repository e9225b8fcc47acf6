"""The index of a run: its stage, `corpus search` and `--provenance`."""

import json
import shutil
from pathlib import Path

import pytest

from codekiln.corpus.documents import Document, read_documents
from codekiln.errors import ConfigError, CorruptFileError
from codekiln.files import read_json, write_json
from codekiln.index.build import build_index
from codekiln.index.config import IndexConfig
from codekiln.index.search import open_run_index
from codekiln.overrides import apply_overrides
from codekiln.pipeline import build
from codekiln.runs import read_stage_record
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.prepare import open_token_shards
from tests.command import codekiln
from tests.small import EAGER, small_recipe
from tests.test_index import names_of, tokens_of

PROMPT = ("def value_of(", "--max-new-tokens", "40", "--temperature", "0")


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def index_text(run: Path, text: str) -> None:
    """Replaces the index of a run by one that has the text twice, in documents of the run's tokenizer."""
    manifest = read_json(run / "index" / "manifest.json")
    shutil.rmtree(run / "index")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    documents = [tokenizer.encode("x = 1\n"), tokenizer.encode(text), tokenizer.encode(text)]
    tokens = tokens_of(documents, tokenizer.vocab_size)
    build_index(run / "index", tokens, names_of(documents), IndexConfig(memory_bytes=16_000_000), manifest["inputs"])


def test_the_index_of_a_run_has_its_training_documents(small_run: Path) -> None:
    index = open_run_index(small_run, small_run / "tokenizer.json")
    documents = list(read_documents(small_run / "corpus", "train"))
    shards = open_token_shards(small_run / "tokens", "train")
    for k, (document, length) in enumerate(zip(documents, shards.lengths(), strict=True)):
        assert index.document(k).tolist() == shards.slice(k, 0, int(length)).tolist()
        name = index.name(k)
        found = (name.repository, name.revision, name.path, name.license)
        assert found == (document.repository, document.revision, document.path, document.license)
    result = read_stage_record(small_run, "index")["result"]
    assert result == {"documents": len(documents), "tokens": int(shards.lengths().sum()), "shards": 1}


def test_a_removed_index_is_built_again_and_equal(small_run: Path, run: Path) -> None:
    shutil.rmtree(run / "index")
    build(small_recipe(small_run.parent / "code"), run, EAGER)
    files = sorted((run / "index").iterdir())
    assert files
    for path in files:
        assert path.read_bytes() == (small_run / "index" / path.name).read_bytes(), path.name


def test_an_index_with_other_memory_is_refused(small_run: Path, run: Path) -> None:
    recipe = apply_overrides(small_recipe(small_run.parent / "code"), ["index.memory_bytes=20000000"])
    (run / "recipe.json").unlink()
    with pytest.raises(ConfigError, match=r"the stage index .*config\.memory_bytes: found 16000000, wanted 20000000"):
        build(recipe, run, EAGER)


def test_an_index_of_another_run_is_refused(run: Path) -> None:
    """Of other token shards, and of another tokenizer."""
    manifest = read_json(run / "tokens" / "manifest.json")
    write_json(run / "tokens" / "manifest.json", manifest | {"another": "run"})
    with pytest.raises(ConfigError, match=r"another tokenizer or run.*tokens: found"):
        open_run_index(run, run / "tokenizer.json")
    write_json(run / "tokens" / "manifest.json", manifest)
    open_run_index(run, run / "tokenizer.json")
    path = run / "model" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    done = codekiln("complete", run, *PROMPT, "--provenance")
    assert (done.returncode, done.stdout) == (1, "")
    assert "another tokenizer or run (tokenizer: found" in done.stderr


def test_search_prints_places_as_text_and_as_json(small_run: Path, tmp_path: Path) -> None:
    documents: list[Document] = list(read_documents(small_run / "corpus", "train"))
    line = next(line for line in documents[0].text.splitlines() if line.startswith("def "))
    holding = [document for document in documents if line in document.text]
    count = sum(document.text.count(line) for document in documents)
    found = json.loads(codekiln("corpus", "search", small_run, line, "--json", "--limit", "2").stdout)
    assert found["count"] == count
    assert len(found["places"]) == min(2, count)
    first = found["places"][0]
    assert first["excerpt"] == line.strip()
    assert (first["repository"], first["path"]) == (holding[0].repository, holding[0].path)
    assert first["license"] == "MIT"
    assert holding[0].text.splitlines()[first["line"] - 1] == line
    shown = codekiln("corpus", "search", small_run, line)
    assert f"{holding[0].path}:{first['line']}" in shown.stdout
    assert f"{count} place" in shown.stdout
    (tmp_path / "piece.py").write_text(documents[0].text[5:300], encoding="utf-8")
    found = json.loads(codekiln("corpus", "search", small_run, "--file", tmp_path / "piece.py", "--json").stdout)
    assert found["count"] == sum(document.text.count(documents[0].text[5:300]) for document in documents)
    nothing = codekiln("corpus", "search", small_run, "nowhere at all")
    assert (nothing.returncode, nothing.stdout.split("; ")[0]) == (0, "0 places")


def test_search_refuses_bad_input(run: Path) -> None:
    assert "is empty" in codekiln("corpus", "search", run, "").stderr
    path = run / "index" / "suffixes-00000.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    done = codekiln("corpus", "search", run, "def")
    assert (done.returncode, done.stdout) == (1, "")
    assert "suffixes-00000.bin is corrupt" in done.stderr
    with pytest.raises(CorruptFileError, match=r"suffixes-00000\.bin"):
        open_run_index(run, run / "tokenizer.json")
    shutil.rmtree(run / "index")
    assert "has no finished index" in codekiln("corpus", "search", run, "def").stderr


def test_complete_reports_what_is_in_the_training_documents(run: Path) -> None:
    written = codekiln("complete", run, *PROMPT).stdout[:-1]
    index_text(run, f"# before\n{written}")
    done = codekiln("complete", run, *PROMPT, "--provenance")
    assert done.stdout[:-1] == written
    assert "tokens are verbatim in 2 places of the index" in done.stderr
    assert "r1/1.py (MIT), r2/2.py (MIT)" in done.stderr
    record = json.loads(codekiln("complete", run, *PROMPT, "--provenance", "--json").stdout)
    (part,) = record["completions"][0]["provenance"]
    assert part["text"] in written
    assert (part["count"], part["licenses"]) == (2, {"MIT": 2})
    assert [source["path"] for source in part["sources"]] == ["1.py", "2.py"]
    index_text(run, "nothing of it")
    nothing = codekiln("complete", run, *PROMPT, "--provenance").stderr
    assert "no 16 tokens in a row are verbatim in the index" in nothing
    record = json.loads(codekiln("complete", run, *PROMPT, "--provenance", "--json").stdout)
    assert record["completions"][0]["provenance"] == []


def test_infill_reports_what_is_in_the_training_documents(run: Path) -> None:
    arguments = ("infill", run, "def value_of(", "\n", "--raw", "--max-new-tokens", "40", "--temperature", "0")
    record = json.loads(codekiln(*arguments, "--json").stdout)
    written = record["holes"][0]["candidates"][0]["text"]
    if len(Tokenizer.load(run / "tokenizer.json").encode(written)) < 16:
        pytest.fail("the model writes too little: give another prompt")
    index_text(run, f"# before\n{written}")
    record = json.loads(codekiln(*arguments, "--json", "--provenance").stdout)
    (part,) = record["holes"][0]["candidates"][0]["provenance"]
    assert part["text"] in written
    assert part["count"] == 2
    assert "verbatim in 2 places" in codekiln(*arguments, "--provenance").stderr
