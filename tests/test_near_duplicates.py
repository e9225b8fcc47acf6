"""Near-duplicates, shared runs of words and copyright notices, compared with sets and loops in plain Python."""

import itertools
import random
import re
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.overlap import RUN_WORDS, RunIndex
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.shingles import N_BANDS, SHINGLE_WORDS, band_hashes, jaccard, shingle_set, text_runs
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.copyright import CopyrightNotices, remove_notices
from codekiln.corpus.steps.exact import ExactDuplicates
from codekiln.corpus.steps.near import CLUSTERS, NEAR_DUPLICATE, NearDuplicates
from codekiln.errors import ConfigError
from codekiln.files import JsonObject

WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")


def words_of(text: str) -> list[bytes]:
    return WORD.findall(text.encode())


def runs_of(text: str, n_words: int) -> list[tuple[bytes, ...]]:
    words = words_of(text)
    return [tuple(words[at : at + n_words]) for at in range(len(words) - n_words + 1)]


def similarity(one: str, other: str) -> float:
    first, second = set(runs_of(one, 5)), set(runs_of(other, 5))
    return len(first & second) / len(first | second) if first | second else 0.0


def build(tree: dict[str, str], folder: Path, **changes: object) -> JsonObject:
    """The manifest of a corpus of files, each `repository/path`. Steps are exact duplicates and near-duplicates."""
    for name, text in tree.items():
        path = folder / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    settings: dict[str, object] = {"steps": (ExactDuplicates(), NearDuplicates()), "validation_fraction": 0.0} | changes
    sources = (LocalRepositories(folder=folder / "code", license="MIT"),)
    return build_corpus(CorpusConfig(sources=sources, **settings), folder / "corpus")  # type: ignore[arg-type]


def kept_names(folder: Path, split: str = "train") -> set[str]:
    return {f"{document.repository}/{document.path}" for document in read_documents(folder / "corpus", split)}


def real_texts(n: int) -> list[str]:
    """Files of the standard library, of up to 20,000 characters."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(library.rglob("*.py")))
    return list(itertools.islice((text for text in texts if 200 < len(text) < 20_000), n))


def edited(text: str, fraction: float, rng: random.Random) -> str:
    """The text with a fraction of its lines replaced."""
    return "".join(
        f"line_{rng.randrange(10**9)} = {rng.randrange(10**9)} + other_{rng.randrange(10**6)}\n"
        if rng.random() < fraction
        else line
        for line in text.splitlines(keepends=True)
    )


@settings(deadline=None)  # functions are compiled in the first call
@given(st.text(alphabet="ab_1 .\n\té日", max_size=60), st.sampled_from([1, 2, 5, 50]))
def test_runs_are_those_of_a_regular_expression(text: str, n_words: int) -> None:
    """Equal runs have equal hashes, and different runs have different ones."""
    hashes, runs = text_runs(text, n_words).tolist(), runs_of(text, n_words)
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


@settings(deadline=None)
@given(st.text(alphabet="abc ", max_size=40), st.text(alphabet="abc ", max_size=40))
def test_jaccard_equals_that_of_sets(one: str, other: str) -> None:
    assert jaccard(shingle_set(one), shingle_set(other)) == pytest.approx(similarity(one, other))


def test_bands_are_shared_as_often_as_the_similarity_says() -> None:
    """Two MinHash values are equal with the probability of the Jaccard similarity (Broder 1997)."""
    rng = random.Random(0)
    texts = real_texts(150)
    shares, expected = [], []
    for text in texts:
        other = edited(text, rng.choice((0.02, 0.05, 0.1)), rng)
        bands, other_bands = (band_hashes(text_runs(each, SHINGLE_WORDS)) for each in (text, other))
        shares.append(np.count_nonzero(bands == other_bands) / N_BANDS)
        expected.append(similarity(text, other) ** 6)
    assert np.mean(shares) == pytest.approx(np.mean(expected), abs=0.03)


@pytest.mark.process
def test_recall_and_precision_against_all_pairs(tmp_path: Path) -> None:
    """Real files and edited copies of them. Brute force compares all pairs by their sets of shingles."""
    rng = random.Random(1)
    texts = real_texts(250)
    texts += [edited(text, rng.choice((0.01, 0.03, 0.06, 0.1, 0.2)), rng) for text in texts[:150]]
    tree = {f"repository{n % 7}/file{n}.py": text for n, text in enumerate(texts)}
    manifest = build(tree, tmp_path, steps=(NearDuplicates(),))
    names = list(tree)
    sets = [set(runs_of(text, 5)) for text in texts]
    pairs = []
    for (n, one), (m, other) in itertools.combinations(enumerate(sets), 2):
        common = len(one & other)
        if common and common >= 0.7 * (len(one) + len(other) - common):
            pairs.append((names[n], names[m]))
    assert len(pairs) > 100
    rows = pq.read_table(tmp_path / "corpus" / CLUSTERS).to_pylist()
    kept_of = {row["name"].replace("@-/", "/"): row["kept"] for row in rows}
    together = sum(kept_of.get(one) is not None and kept_of.get(one) == kept_of.get(other) for one, other in pairs)
    assert together >= 0.99 * len(pairs)
    partners = {name for pair in pairs for name in pair}
    dropped = set(names) - kept_names(tmp_path)
    assert dropped <= partners, "a document was dropped that is like no other"
    assert manifest["dropped"][NEAR_DUPLICATE]["documents"] == len(rows) - len({row["kept"] for row in rows})
    for row in rows:
        found = similarity(tree[row["name"].replace("@-/", "/")], tree[row["kept"].replace("@-/", "/")])
        assert row["similarity"] == pytest.approx(found)
        assert (row["similarity"] == 1.0) or row["name"] != row["kept"]


def test_the_largest_of_a_cluster_is_kept(tmp_path: Path) -> None:
    text = real_texts(1)[0]
    longer = text + "last_line = 1\n"
    build(
        {"a/copy.py": text, "b/longer.py": longer, "c/copy.py": text + "# x\n", "d/other.py": "value = 1\n"}, tmp_path
    )
    assert kept_names(tmp_path) == {"b/longer.py", "d/other.py"}
    rows = pq.read_table(tmp_path / "corpus" / CLUSTERS).to_pylist()
    assert {row["kept"] for row in rows} == {"b@-/longer.py"} and len(rows) == 3


def test_documents_of_few_words_are_no_duplicates(tmp_path: Path) -> None:
    build({f"a/file{n}.py": f"x{n} = {n}\n" for n in range(20)}, tmp_path)
    assert len(kept_names(tmp_path)) == 20


def test_documents_linked_through_others_are_one_cluster(tmp_path: Path) -> None:
    """The first is like the second and the second like the third, but the first is not like the third."""
    lines = [f"name_{n} = call_{n}(argument_{n}, other_{n})\n" for n in range(130)]
    one, two, three = ("".join(lines[start : start + 100]) for start in (0, 14, 28))
    assert similarity(one, two) > 0.7 and similarity(two, three) > 0.7 and similarity(one, three) < 0.7
    build({"a/one.py": one, "b/two.py": two, "c/three.py": three}, tmp_path)
    assert len(kept_names(tmp_path)) == 1
    rows = pq.read_table(tmp_path / "corpus" / CLUSTERS).to_pylist()
    assert min(row["similarity"] for row in rows) < 0.7


def held_out_tree(n_functions: int = 60) -> dict[str, str]:
    """Ten repositories of different functions; the last one has a rewritten copy of a file of each other repository."""

    def function(key: str) -> str:
        return "".join(f"def {key}_{n}(first_{key}, second_{n}):\n    return first_{key} + {n}\n\n" for n in range(4))

    tree = {f"repository{k}/file.py": "".join(function(f"r{k}_f{n}") for n in range(n_functions)) for k in range(10)}
    for k in range(9):
        part = "".join(function(f"r{k}_f{n}") for n in range(n_functions // 4))
        own = "".join(function(f"own{k}_f{n}") for n in range(n_functions))
        tree[f"project/copy{k}.py"] = part + own
    return tree


def test_copies_of_held_out_code_are_dropped_from_training(tmp_path: Path) -> None:
    """A quarter of each held-out file is in a file that is no near-duplicate of it."""
    tree = held_out_tree()
    manifest = build(tree, tmp_path, validation_fraction=0.1)
    assert manifest["validation"]["by"] == "repository"
    train, held_out = kept_names(tmp_path), kept_names(tmp_path, "validation")
    runs = {name: set(runs_of(text, RUN_WORDS)) for name, text in tree.items()}
    shared = {
        other: len(runs[other] & set().union(*(runs[each] for each in held_out))) / len(runs[other])
        for other in tree.keys() - held_out
    }
    expected = {other for other, share in shared.items() if share >= 0.1}
    assert expected and train == tree.keys() - held_out - expected
    overlap = manifest["validation"]["overlap"]
    assert overlap["fraction_before"] > 0.1 and overlap["fraction"] == 0.0
    assert manifest["dropped"]["overlaps the held-out split"]["documents"] == len(expected)


def test_share_of_covered_words_equals_a_slow_count(tmp_path: Path) -> None:
    """Of two held-out repositories, a part is also in a training file that is too large to be dropped."""
    tree = {name: text for name, text in held_out_tree().items() if not name.startswith("project")}
    first = "".join(text.splitlines(keepends=True)[4] for text in tree.values())
    copied = {name: "".join(text.splitlines(keepends=True)[30:60]) for name, text in tree.items()}
    for n, name in enumerate(list(tree)):
        others = [copied[other] for m, other in enumerate(list(tree)) if m != n]
        tree[name] += "".join(others[:2]) + first
    manifest = build(tree, tmp_path, validation_fraction=0.2)
    texts = {split: [d.text for d in read_documents(tmp_path / "corpus", split)] for split in ("train", "validation")}
    trained = {run for text in texts["train"] for run in runs_of(text, RUN_WORDS)}
    covered = total = 0
    for text in texts["validation"]:
        inside = set[int]()
        for at, run in enumerate(runs_of(text, RUN_WORDS)):
            if run in trained:
                inside.update(range(at, at + RUN_WORDS))
        covered += len(inside)
        total += len(words_of(text))
    assert manifest["validation"]["overlap"]["fraction"] == pytest.approx(covered / total)
    assert covered


def test_runs_are_found_in_an_index() -> None:
    texts = real_texts(20)
    index = RunIndex.build(texts[:10], 8)
    known = {run for text in texts[:10] for run in runs_of(text, 8)}
    for text in texts:
        assert [place >= 0 for place in index.find(text)] == [run in known for run in runs_of(text, 8)]
    assert RunIndex.build([], 8).find(texts[0]).max() == -1


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("Python", "# Copyright 2020 A\n# All rights reserved.\n\nimport os\n", "import os\n"),
        ("Python", "#!/bin/python\n# coding: utf-8\n# (c) Copyright A\nx\n", "#!/bin/python\n# coding: utf-8\nx\n"),
        ("C", "/*\n * Copyright A\n * Licensed under the MIT license\n */\n\nint x;\n", "int x;\n"),
        ("Go", "// SPDX-License-Identifier: MIT\n\n// Package x does y.\npackage x\n", "// Package x does y.\npackage x\n"),
        ("HTML", "<!-- Copyright A -->\n<p>x</p>\n", "<p>x</p>\n"),
        ("PHP", "<?php\r\n// Copyright A\r\n$x = 1;\r\n", "<?php\r\n$x = 1;\r\n"),
        ("Python", "# Copyright A\rx = 1\ry = 2\r", "x = 1\ry = 2\r"),
        ("Python", "# Reads a file.\n# Copyright is explained below.\nx = 1\n", "x = 1\n"),
        ("Python", "# Reads a file.\n\n# Copyright A\nx = 1\n", None),
        ("Python", '"""Copyright A"""\nx = 1\n', None),
        ("Python", "x = 1\n# Copyright A\n", None),
        ("Python", "# " + "copyright " * 3000 + "\nx = 1\n", None),
        ("C", "// Copyright holder\n" * 2000 + "int x;\n", None),
        ("C", '#include <a.h>\n#define NOTICE "Copyright 2020 X"\nint x;\n', None),
        ("JavaScript", ";(function ($) { /* Copyright 2012 X */ })(jQuery);\n", None),
        ("Lua", "--[[ Copyright A\ncode\n]]\nx = 1\n", None),
        ("Forth", "# Copyright A\n", None),
        ("Python", "", None),
        ("Python", "# Copyright A", ""),
    ],
)  # fmt: skip
def test_copyright_notices_are_removed_and_other_text_stays(language: str, text: str, expected: str | None) -> None:
    assert remove_notices(text, language) == (text if expected is None else expected, int(expected is not None))


@pytest.mark.parametrize("language", ["Python", "C", "HTML", "PHP"])
@pytest.mark.parametrize("part", [" ", "\n", "/*", "# a\n", "<!--", "#!"])
def test_notices_of_hostile_text_terminate(part: str, language: str) -> None:
    text = part * 100_000
    assert remove_notices(text, language) == (text, 0)


def test_a_file_of_a_notice_only_is_dropped(tmp_path: Path) -> None:
    tree = {"a/license.py": "# Copyright A\n", "a/code.py": "value = 1\n"}
    manifest = build(tree, tmp_path, steps=(CopyrightNotices(),))
    assert manifest["dropped"]["only a copyright notice"]["documents"] == 1


def test_a_header_that_all_files_have_is_no_copy(tmp_path: Path) -> None:
    """Fifty files with a license in a docstring, which is half of each file: none is dropped, and the overlap is reported."""
    header = '"""' + " ".join(f"word{n}" for n in range(120)) + '"""\n'
    body = "".join(f"def name_{{0}}_{n}(argument_{{0}}):\n    return value_{{0}}_{n}\n" for n in range(20))
    tree = {f"repository{k % 10}/file{k}.py": header + body.replace("{0}", str(k)) for k in range(50)}
    manifest = build(tree, tmp_path, validation_fraction=0.1)
    assert manifest["kept"]["documents"] == 50
    overlap = manifest["validation"]["overlap"]
    assert overlap["fraction"] == overlap["fraction_before"] > 0.3


def test_a_corpus_of_copies_is_refused(tmp_path: Path) -> None:
    body = "".join(f"def name_{n}(argument_{n}):\n    return value_{n}\n" for n in range(200))
    with pytest.raises(ConfigError, match=r"all other files hold copies of held-out files.*3"):
        build(
            {f"repository{k}/file.py": f"x{k} = {k}\n" * 40 + body for k in range(4)},
            tmp_path,
            steps=(),
            validation_fraction=0.25,
        )


def test_papers_recipes_measure_the_overlap_and_drop_nothing(tmp_path: Path) -> None:
    manifest = build(held_out_tree(), tmp_path, validation_fraction=0.1, max_overlap=None)
    assert manifest["kept"]["documents"] == 19
    assert manifest["validation"]["overlap"]["fraction"] > 0.1


def test_threshold_decides(tmp_path: Path) -> None:
    text = real_texts(1)[0]
    other = edited(text, 0.1, random.Random(0))
    assert 0.5 < similarity(text, other) < 0.95
    for threshold, n_kept in ((0.5, 1), (0.95, 2)):
        folder = tmp_path / str(threshold)
        build({"a/a.py": text, "b/b.py": other}, folder, steps=(NearDuplicates(threshold=threshold),))
        assert len(kept_names(folder)) == n_kept


def test_files_with_equal_notices_are_not_near_duplicates(tmp_path: Path) -> None:
    notice = "".join(f"# Copyright holder number {n} of this very long notice\n" for n in range(60))
    tree = {f"a/file{n}.py": f"{notice}\nvalue_{n} = function_{n}(argument_{n}, option_{n}, {n})\n" for n in range(5)}
    steps = (CopyrightNotices(), ExactDuplicates(), NearDuplicates())
    manifest = build(tree, tmp_path, steps=steps)
    assert manifest["kept"]["documents"] == 5 and manifest["notices_removed"] == 5
    assert all("Copyright" not in document.text for document in read_documents(tmp_path / "corpus", "train"))
