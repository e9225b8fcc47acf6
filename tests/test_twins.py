"""The small twins: what they have in common with the large recipes, the data that they read, and a whole run of both."""

import dataclasses
import io
import itertools
import json
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codekiln.corpus.documents import Document, read_documents
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.steps.metadata import parse_tags
from codekiln.errors import ConfigError
from codekiln.metrics_log import read_metrics
from codekiln.pipeline import build, build_stages
from codekiln.recipe import InheritedTokenizer, Recipe, StagedRecipe
from codekiln.recipes import get_recipe
from codekiln.recipes.papers import SYSTEMS, System, twin_fields
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.codegen import load_pretrained, with_white_space
from tests.markdown import read_blocks
from tests.small import EAGER, ROOT, program_environment, small_recipe, write_tree

script: Any = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "twin_data.py")))  # it is in no package
GUIDE = ROOT / "docs" / "guide" / "reproduce.md"
NOTE = "not run: takes minutes; tests/test_twins.py runs the commands"
STAGES = ("1-nl", "2-multi", "3-mono")
# What a twin may change: sources, sizes and lengths.
CHANGED = (
    "name", "corpus.sources[", "corpus.validation_fraction", "tokenizer.", "model.n_", "model.d_", "model.vocab_size",
    "model.context_length", "model.rotary_dim", "train.total_tokens", "train.global_batch_size", "train.optimizer.lr",
    "train.optimizer.schedule.warmup_steps", "train.optimizer.schedule.decay_steps", "train.eval_every",
    "train.save_every", "train.keep_every", "infilling.n_problems",
)  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.title)
def test_twin_has_all_of_the_large_recipe_but_sources_sizes_and_lengths(system: System) -> None:
    changed = {row.field.rpartition(": ")[2] for row in twin_fields(system)}
    assert {field for field in changed if not field.startswith(CHANGED)} == set()
    assert {"model.d_model", "train.total_tokens"} <= changed


def test_twins_scale_the_schedules_of_the_papers() -> None:
    small, large = get_recipe("codegen-tiny"), get_recipe("codegen-16B")
    assert isinstance(small, StagedRecipe) and isinstance(large, StagedRecipe)
    for twin, stage in zip(small.recipes, large.recipes, strict=True):
        steps = [
            each.train.total_tokens // (each.train.global_batch_size * each.model.context_length)
            for each in (twin, stage)
        ]
        assert steps[0] * 500 == steps[1]
        schedules = [dataclasses.asdict(each.train.optimizer.schedule) for each in (twin, stage)]  # type: ignore[call-overload]
        assert schedules[0]["decay_steps"] * 500 == schedules[1]["decay_steps"]
        assert schedules[0]["min_lr_ratio"] == schedules[1]["min_lr_ratio"]
    small_rates = [twin.train.optimizer.peak_lr for twin in small.recipes]
    assert small_rates[1] / small_rates[0] == pytest.approx(1.8 / 3.0) and small_rates[1] == small_rates[2]


# The tokenizer of a stage


def test_runs_of_white_space_are_those_of_codegen() -> None:
    """Against CodeGen-Multi's tokenizer, which is built from its released files."""
    made, released = with_white_space(load_pretrained("codegen-nl")), load_pretrained("codegen")
    assert made.vocab_size == released.vocab_size == 50_257 + 38
    for text in ("def f(x):\n        return x\n\tif x:\n\t\t\t  pass\n", "a" + " " * 40 + "b", "<|endoftext|>  "):
        assert made.encode(text) == released.encode(text)


def test_stages_inherit_the_ids_of_the_first(tmp_path: Path) -> None:
    first = dataclasses.replace(
        small_recipe(write_tree(tmp_path / "code"), total_tokens=2048), name="first", infilling=None, index=None
    )
    first = dataclasses.replace(first, model=dataclasses.replace(first.model, vocab_size=384 + 38))
    recipe = StagedRecipe(
        name="staged",
        recipes=(
            first,
            dataclasses.replace(first, name="second", tokenizer=InheritedTokenizer(has_white_space=True)),
            dataclasses.replace(first, name="third", tokenizer=InheritedTokenizer()),
        ),
    )
    runs = build_stages(recipe, tmp_path / "run", EAGER)
    found = [Tokenizer.load(run / "tokenizer.json") for run in runs]
    assert [each.vocab_size for each in found] == [384, 384 + 38, 384 + 38]
    assert found[0].encode("x = close(y)\n") == found[1].encode("x = close(y)\n")
    assert found[1].encode(" " * 8 + "x") == found[2].encode(" " * 8 + "x") == [384 + 31 - 8, *found[0].encode("x")]
    assert found[0].special_tokens == found[2].special_tokens


def test_inherited_tokenizer_needs_a_model(tmp_path: Path) -> None:
    recipe = dataclasses.replace(small_recipe(write_tree(tmp_path / "code")), tokenizer=InheritedTokenizer())
    with pytest.raises(ConfigError, match="the first stage, small, has no model"):
        StagedRecipe(name="staged", recipes=(recipe,))
    with pytest.raises(ConfigError, match="init_from names no model"):
        build(recipe, tmp_path / "run", EAGER)


# The data

PYTHON = '''def half(value):
    """Return half of the value.

    The value is a number, and <b> is not a tag.

    >>> half(4)
    2.0

    It is defined for all numbers.

    See also double.
    """
    return value / 2
'''


def text(package: str, path: str, language: str, content: str, license: str = "MIT") -> Any:
    return script.Text(package, "1.0", license, path, language, content)


def corpus_of(recipe: Recipe, folder: Path) -> dict[str, Document]:
    build_corpus(dataclasses.replace(recipe.corpus, validation_fraction=0.0), folder)
    return {document.path: document for document in read_documents(folder, "train")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small data set with a file of each kind."""
    folder = tmp_path / "data"
    folder.mkdir()
    script.write_pile(folder / "pile", [text("one", "README.md", "Markdown", "A text of the first package.\n" * 4)])
    export = [
        text("two", "a/main.go", "Go", "package main\n\nfunc main() {\n\tprintln(1)\n}\n"),
        text("three", "b.py", "Python", "def third():\n    return 3\n", "Apache-2.0"),
        text("four", "c.c", "C", "int main(void) { return 4; }\n", "GPL-3.0-only"),
    ]
    script.write_export(folder / "bigquery", export)
    script.write_repositories(folder / "bigpython", [text("five", "five/d.py", "Python", PYTHON)])
    script.write_repositories(folder / "github", [text("six", "e.py", "Python", "def sixth():\n    return 6\n")])
    script.write_repositories(
        folder / "gitlab", [text("seven", "f.js", "JavaScript", "export function seventh() { return 7; }\n")]
    )
    assert (
        script.write_threads(folder / "stackexchange" / "docstrings.example", [text("five", "d.py", "Python", PYTHON)])
        == 1
    )
    return folder


def test_twins_read_the_forms_of_the_papers_data_sets(data: Path, tmp_path: Path) -> None:
    recipe = get_recipe("codegen-tiny", data=data)
    assert isinstance(recipe, StagedRecipe)
    nl, multi, mono = (corpus_of(stage, tmp_path / stage.name) for stage in recipe.recipes)
    assert [document.repository for document in nl.values()] == ["one"]
    assert {path: document.text.splitlines()[0] for path, document in multi.items()} == {
        "a/main.go": "Go",
        "b.py": "Python",
    }
    assert {path: document.text for path, document in mono.items()} == {"five/d.py": PYTHON}
    recipe = get_recipe("incoder-tiny", data=data)
    assert isinstance(recipe, Recipe)
    documents = corpus_of(recipe, tmp_path / "incoder")
    threads = [document for document in documents.values() if document.source == "stackexchange"]
    assert {"e.py", "f.js", "b.py"} == documents.keys() - {document.path for document in threads}
    assert parse_tags(documents["f.js"].text)[1]["ext"] == ".js"
    (thread,) = threads
    assert "half(4)" in thread.text and "<b> is not a tag" in thread.text and "Return half of the value." in thread.text
    assert "<| c |>\nSee also double.\n<|/ c |>" in thread.text


def test_selection_is_limited_and_does_not_depend_on_the_order() -> None:
    texts = [text(f"package{n % 5}", f"{n}.py", "Python", f"value = {n}\n" * 1000) for n in range(200)]
    texts += [dataclasses.replace(texts[0], path="copy.py")]
    chosen = script.select(texts, 300_000)
    assert chosen == script.select(reversed(texts), 300_000)
    size = sum(len(each.text) for each in chosen)
    assert 300_000 <= size < 320_000 and len({each.text for each in chosen}) == len(chosen)
    unlimited = script.select(texts, 10**9)
    for name in {each.package for each in texts}:
        assert 180_000 < sum(len(each.text) for each in unlimited if each.package == name) <= 200_000


def test_archives_are_read_without_unpacking(tmp_path: Path) -> None:
    """Links, vendored code, licenses, large and damaged files are left out."""
    code = "int main(void) { return 0; }\n" * 10
    entries = {
        "package/src/a.c": code.encode(), "package/vendor/b.c": code.encode(), "package/LICENSE.md": code.encode(),
        "package/c.c": b"\xff" * 500, "package/d.c": b"x" * 70_000, "../outside.c": code.encode(),
    }  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/link.c")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = list(script.archive_texts("name", "1", "MIT", out.getvalue()))
    assert [each.path for each in found] == ["package/src/a.c", "../outside.c"]
    script.write_repositories(tmp_path / "repositories", found)
    assert [path.name for path in tmp_path.rglob("*.c")] == ["a.c"]


# A whole run


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the commands of the guide have run."""
    folder = tmp_path_factory.mktemp("twins")
    programs = {"codekiln": [sys.executable, "-m", "codekiln"], "python": [sys.executable]}
    blocks = [block for block in read_blocks(GUIDE) if block.note == NOTE]
    assert len(blocks) == 3, "the data, the training, the measurements"
    for block in blocks:
        for command in block.commands:
            program, *words = command.split("#")[0].split()
            words = [str(ROOT / word) if word.startswith("benchmarks/") else word for word in words]
            done = subprocess.run(
                [*programs[program], *words], cwd=folder, env=program_environment(), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
            if words[0].endswith("twin_data.py"):
                export = next(line for line in done.stdout.splitlines() if line.startswith("bigquery:"))
                if missing := [name for name in script.CODE if f" {name} " not in export]:
                    pytest.skip(
                        f"no {', '.join(missing)} here: the data of the twins needs apt-get and npm, with a network"
                    )
    yield folder


def bits_per_byte(twins: Path, model: str, kind: str) -> float:
    results = json.loads((twins / "results" / "twins" / f"{model}-on-{kind}" / "results.json").read_text("utf-8"))
    value: float = results["benchmarks"]["bits-per-byte"]["metrics"]["bits_per_byte"]["interval"]["value"]
    return value


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)  # with the commands of the guide
def test_each_stage_of_codegen_improves_its_own_kind_of_text(twins: Path) -> None:
    start = read_metrics(twins / "runs" / "codegen-tiny" / "1-nl" / "metrics.jsonl")
    first = next(row["validation_bits_per_byte"] for row in start if row.get("validation_bits_per_byte"))
    assert first is not None and bits_per_byte(twins, "1-nl", "1-nl") < first
    for before, after in itertools.pairwise(STAGES):
        assert bits_per_byte(twins, after, after) < bits_per_byte(twins, before, after)
    # Python is one of the six languages, and natural language is in neither code stage.
    assert bits_per_byte(twins, "2-multi", "3-mono") < bits_per_byte(twins, "1-nl", "3-mono")
    assert bits_per_byte(twins, "3-mono", "1-nl") > bits_per_byte(twins, "1-nl", "1-nl")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)  # with the commands of the guide
def test_twin_of_incoder_learns_and_infills(twins: Path) -> None:
    run = twins / "runs" / "incoder-tiny"
    rows = read_metrics(run / "metrics.jsonl")
    values = [value for row in rows if (value := row.get("validation_bits_per_byte")) is not None]
    assert values[-1] < values[0]
    documents = list(read_documents(run / "corpus", "train"))
    assert {document.source for document in documents} == {"tree", "github", "stackexchange"}
    results = json.loads((run / "evaluation" / "incoder" / "results.json").read_text(encoding="utf-8"))["benchmarks"]
    assert len(results) == 6 and all(each["n_problems"] > 0 for each in results.values())
