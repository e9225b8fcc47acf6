"""The recipes of the papers read every kind of data that their papers name: small data sets in the published shapes."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import Document, read_documents, read_manifest
from codekiln.corpus.pipeline import build_corpus, read_fingerprints
from codekiln.corpus.sources.forge import Forge
from codekiln.corpus.steps.metadata import parse_tags
from codekiln.errors import ConfigError, MissingFileError
from codekiln.files import JsonObject
from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes import get_recipe
from tests.command import assert_refused, codekiln
from tests.forge_server import Hosted, forge_server
from tests.test_stackexchange import answer, comment, question, write_site

pytestmark = pytest.mark.process
FUNCTION = "def function_{0}(value):\n    total_{0} = value + {0}\n    return total_{0} * value\n"


def write_lines(path: Path, rows: list[JsonObject]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(pa.compress(data, codec="zstd", asbytes=True) if path.suffix == ".zst" else data)


def write_export(folder: Path) -> None:
    """Six files of two repositories, one of them under GPL, and a copy."""
    names = ["a/one.py", "a/two.js", "a/three.java", "b/four.py", "a/notes.md", "a/copy.py"]
    contents = [
        FUNCTION.format(n) if name.endswith(".py") else f"content {n} of a file\n" for n, name in enumerate(names)
    ]
    contents[5] = contents[0]
    rows = [(name.split("/", 1), f"{min(n, 5) % 5:040x}" if n == 5 else f"{n:040x}") for n, name in enumerate(names)]
    write_lines(
        folder / "files" / "0.json",
        [{"repo_name": f"owner/{where}", "path": path, "id": key, "mode": 33188} for (where, path), key in rows],
    )
    write_lines(
        folder / "contents" / "0.json",
        [{"id": f"{n:040x}", "content": text, "binary": False} for n, text in enumerate(contents[:5])],
    )
    write_lines(
        folder / "licenses" / "0.json",
        [{"repo_name": "owner/a", "license": "mit"}, {"repo_name": "owner/b", "license": "gpl-3.0"}],
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data sets of both papers."""
    folder = tmp_path / "data"
    pile = [
        {"text": f"A text of the part {name}, number {n}.\n", "meta": {"pile_set_name": name}}
        for n in range(20)
        for name in ("Pile-CC", "Github")
    ]
    write_lines(folder / "pile" / "00.jsonl.zst", pile)
    write_export(folder / "bigquery")
    write_site(
        folder / "stackexchange" / "stackoverflow.com",
        question(1, Title="How?", Body="<p>Like <code>x</code></p>", Tags="&lt;python&gt;", Score=7)
        + answer(2, 1, Score=3),
        comment(1, 1),
    )
    for name in ("github", "gitlab", "bigpython"):
        (folder / name).mkdir()
    return folder


def corpus_of(recipe: Recipe, folder: Path, server: str) -> list[Document]:
    """The documents of a recipe whose forges are at a server."""
    sources = tuple(
        dataclasses.replace(source, url=server) if isinstance(source, Forge) else source
        for source in recipe.corpus.sources
    )
    config: CorpusConfig = dataclasses.replace(recipe.corpus, sources=sources, validation_fraction=0.0)
    build_corpus(config, folder)
    # What a run compares when it continues: repositories are fetched while the corpus is built.
    assert read_fingerprints(folder) == [source.fingerprint() for source in sources]
    return list(read_documents(folder, "train"))


HOSTED = [
    Hosted(1, "ann/first", {"a.py": FUNCTION.format(101), "b.js": "var b = 1;\n"}, stars=3),
    Hosted(2, "bob/second", {"c.py": FUNCTION.format(102)}, stars=90),
    Hosted(3, "cat/third", {"d.py": FUNCTION.format(103)}, license="gpl-3.0"),
]


def test_codegen_reads_the_pile_the_export_and_python_of_github(data: Path, tmp_path: Path) -> None:
    recipe = get_recipe("codegen-350M", data=data)
    assert isinstance(recipe, StagedRecipe)
    with forge_server(HOSTED) as server:
        found = {stage.name: corpus_of(stage, tmp_path / stage.name, server.url) for stage in recipe.recipes}
    assert len(found["nl"]) == 40
    assert {document.repository for document in found["nl"]} == {"Pile-CC", "Github"}
    texts = {document.path: document.text for document in found["multi"]}
    assert set(texts) == {
        "copy.py",
        "two.js",
        "three.java",
    }  # one copy of a content; GPL and other languages are left out
    assert texts["copy.py"] == "Python\n" + FUNCTION.format(0) and texts["three.java"].startswith("Java\n")
    assert {document.path: document.text for document in found["mono"]} == {
        "a.py": FUNCTION.format(101), "c.py": FUNCTION.format(102),
    }  # fmt: skip


def test_incoder_reads_forges_the_export_and_threads(data: Path, tmp_path: Path) -> None:
    recipe = get_recipe("incoder-1B", data=data)
    assert isinstance(recipe, Recipe)
    with forge_server(HOSTED) as server:
        documents = corpus_of(recipe, tmp_path / "corpus", server.url)
    by_source = {document.source: [d for d in documents if d.source == document.source] for document in documents}
    # All are read. What GitLab has here is also on GitHub, and dropped as a duplicate.
    read = {row["source"]: row["files_read"] for row in read_manifest(tmp_path / "corpus")["sources"]}
    assert read == {"github": 3 + 2, "gitlab": 3, "stackexchange": 1}
    assert set(by_source) == {"github", "stackexchange"}
    (thread,) = by_source["stackexchange"]
    assert thread.text.startswith("<| q") and "<| a" in thread.text and "<| c |>" in thread.text
    assert thread.license == "CC-BY-SA-4.0"
    tagged = {}
    for document in documents:
        if document.source != "stackexchange":
            body, attributes = parse_tags(document.text)
            tagged[document.path] = attributes
            assert body.startswith(("def ", "var ", "content ")), document
    stars = {path: attributes.get("dstars") for path, attributes in tagged.items()}
    assert {"a.py", "b.js", "c.py"} <= set(tagged) and "d.py" not in tagged
    assert stars["a.py"] == "0" and stars["c.py"] == "1"  # the 50th percentile of 3 and 90 is 3
    assert tagged["c.py"] == {"ext": ".py", "filename": "c.py", "source": "github", "dstars": "1"}


def test_missing_data_is_named(data: Path, tmp_path: Path) -> None:
    (data / "gitlab").rmdir()
    with pytest.raises(MissingFileError, match="no folder gitlab"):
        get_recipe("incoder-1B", data=data)
    with pytest.raises(ConfigError, match="reads no data sets"):
        get_recipe("demo", data=data)
    train = ("train", "codegen-350M", "--out", tmp_path / "run")
    assert_refused(codekiln(*train, "--data", tmp_path), "pile")
    assert_refused(codekiln(*train, "--data", data, "--code", data), "--data", status=2)
