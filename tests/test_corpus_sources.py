"""Sources of a corpus: which files of a folder are read, their licenses, their encodings, and whether they have changed."""

import codecs
import io
import json
import os
import shutil
import subprocess
import tokenize
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.declared import NearestLicense, read_license, recognize_license
from codekiln.corpus.decoding import UndecodableError, decode_source
from codekiln.corpus.documents import read_documents
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.notebooks import notebook_to_text
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources.files import UNREADABLE_FOLDER
from codekiln.corpus.sources.ignored import VENDORED_REASON
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.split import cut_text
from codekiln.errors import ConfigError

GIT = shutil.which("git") or "git"
MIT_TEXT = (
    "MIT License\n\nCopyright (c) 2020 Somebody\n\nPermission is hereby granted, free of charge, to any person obtaining a "
    "copy\nof this software.\n\nThe above copyright notice and this permission notice shall be included in all copies.\n"
)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def listed(folder: Path) -> dict[str, str | None]:
    """The path of each listed file or folder, relative to `folder`, with the reason not to read it."""
    source = LocalRepositories(folder=folder, license="MIT")
    names = {file: f"{file.repository}/{file.path}".removeprefix("./").removesuffix("/.") for file in source.files()}
    return {name: file.problem for file, name in names.items()}


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run([GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_gitignore_means_what_git_says(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*_pb2.py\n/generated/\n!src/kept_pb2.py\nlocal.py  \n# comment\ndocs/**/draft.py\n",
            "a.py": "",
            "a_pb2.py": "",
            "local.py": "",
            "generated/b.py": "",
            "src/generated/c.py": "",
            "src/kept_pb2.py": "",
            "src/other_pb2.py": "",
            "src/inner/.gitignore": "*\n!*_pb2.py\n!.gitignore\n",
            "src/inner/d_pb2.py": "",
            "src/inner/e.py": "",
            "docs/one/two/draft.py": "",
            "docs/one/two/final.py": "",
        },
    )
    git(tmp_path, "init", "--quiet")
    expected = git(tmp_path, "ls-files", "--others", "--exclude-standard").split()
    assert set(listed(tmp_path)) == {name for name in expected if name.endswith(".py")}
    assert {"src/kept_pb2.py", "src/inner/d_pb2.py"} < set(listed(tmp_path))


def test_code_of_others_is_counted_and_not_read(tmp_path: Path) -> None:
    names = ("node_modules/x/i.js", "repo/vendor/v.go", "repo/third_party/t.py", "repo/venv/lib/p.py", "repo/a.py")
    write(tmp_path, dict.fromkeys(names, "x"))
    assert listed(tmp_path) == {
        "node_modules": VENDORED_REASON,
        "repo/a.py": None,
        "repo/third_party": VENDORED_REASON,
        "repo/vendor": VENDORED_REASON,
        "repo/venv": VENDORED_REASON,
    }


@pytest.mark.parametrize("is_repository", [True, False])
def test_folder_with_git_is_one_repository(is_repository: bool, tmp_path: Path) -> None:
    write(tmp_path, {"src/a.py": "", "tests/b.py": "", "c.py": "", "pyproject.toml": '[project]\nlicense = "MIT"\n'})
    if is_repository:
        git(tmp_path, "init", "--quiet")
    files = [(file.repository, file.path, file.license) for file in LocalRepositories(folder=tmp_path).files()]
    if is_repository:
        assert sorted(files) == [(".", "c.py", "MIT"), (".", "src/a.py", "MIT"), (".", "tests/b.py", "MIT")]
    else:
        assert sorted(files) == [(".", "c.py", "MIT"), ("src", "a.py", "MIT"), ("tests", "b.py", "MIT")]


def test_folders_that_cannot_be_listed_are_counted(tmp_path: Path) -> None:
    """A path longer than the system allows cannot be opened, as a folder without permission cannot."""
    write(tmp_path, {"repo/a.py": "alpha = 1\n" * 50, "other/b.py": "beta = 2\n" * 50})
    descriptor = os.open(tmp_path / "repo", os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=descriptor)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    found = listed(tmp_path)
    assert list(found.values()).count(UNREADABLE_FOLDER) == 1
    assert {"repo/a.py", "other/b.py"} < set(found)
    manifest = build_corpus(
        CorpusConfig(sources=(LocalRepositories(folder=tmp_path, license="MIT"),)), tmp_path.parent / "corpus"
    )
    assert manifest["dropped"][UNREADABLE_FOLDER]["documents"] == 1
    assert manifest["kept"]["documents"] == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pyproject.toml": '[project]\nlicense = "MIT OR Apache-2.0"\n'}, "MIT OR Apache-2.0"),
        ({"pyproject.toml": '[project]\nlicense = {text = "BSD-3-Clause"}\n'}, "BSD-3-Clause"),
        ({"pyproject.toml": '[project]\nlicense = {file = "LICENSE"}\n', "LICENSE": MIT_TEXT}, "MIT"),
        ({"pyproject.toml": '[tool.poetry]\nlicense = "Apache-2.0"\n'}, "Apache-2.0"),
        ({"setup.cfg": "[metadata]\nlicense = MIT\n"}, "MIT"),
        ({"setup.cfg": "[metadata]\nclassifiers =\n    License :: OSI Approved :: MIT License\n"}, "MIT"),
        ({"package.json": '{"license": "ISC"}'}, "ISC"),
        ({"package.json": '{"license": {"type": "MIT"}}'}, "MIT"),
        ({"Cargo.toml": '[package]\nlicense = "MIT/Apache-2.0"\n'}, "MIT OR Apache-2.0"),
        ({"LICENSE": MIT_TEXT}, "MIT"),
        ({"COPYING": MIT_TEXT}, "MIT"),
        ({"LICENSE": "GNU GENERAL PUBLIC LICENSE\nVersion 3\n", "COPYING": MIT_TEXT}, UNKNOWN),
        ({"LICENSE": '"Commons Clause" License Condition\n\n' + MIT_TEXT}, UNKNOWN),
        ({"pyproject.toml": "not = [toml"}, UNKNOWN),
        ({"package.json": "[1, 2]"}, UNKNOWN),
        ({"package.json": '{"license": ' + "[" * 100_000}, UNKNOWN),
        ({"setup.cfg": "no section\n"}, UNKNOWN),
        ({"pyproject.toml": 'project = "text"\n', "setup.cfg": "[metadata]\nlicense = MIT\n"}, "MIT"),
        ({}, UNKNOWN),
    ],
)
def test_declared_license_of_a_repository(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    assert (read_license(write(tmp_path, files)) or UNKNOWN) == expected


def test_license_texts_agree_with_what_packages_declare() -> None:
    """The texts that installed packages ship, against the SPDX expression in their metadata."""
    recognized = 0
    for distribution in metadata.distributions():
        declared = (distribution.metadata.get_all("License-Expression") or [""])[0]
        texts = [file for file in distribution.files or () if file.name in ("LICENSE", "LICENSE.txt", "LICENSE.md")]
        if not declared or " " in declared or len(texts) != 1:
            continue
        text = Path(str(texts[0].locate())).read_text(encoding="utf-8", errors="replace")
        if "Redistribution and use" in text and "Apache License" in text:
            continue  # python-dateutil has two licenses in one file, and declares one
        found = recognize_license(text)
        assert found in (declared, UNKNOWN), distribution.name
        recognized += found == declared
    assert recognized >= 5


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (codecs.BOM_UTF8 + b"x = 1\n", "x = 1\n"),
        ("x = 'é'\n".encode("utf-16"), "x = 'é'\n"),
        (codecs.BOM_UTF16_BE + "x = 'é'\n".encode("utf-16-be"), "x = 'é'\n"),
        ("x = 'é'\r\n".encode(), "x = 'é'\r\n"),
    ],
)
def test_byte_order_marks_are_removed(data: bytes, expected: str) -> None:
    assert decode_source(data, "a.py") == expected


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "naïve"),
        ("cp1252", "it’s"),
        ("koi8-r", "код"),
        ("shift_jis", "日本語"),
        ("gbk", "中文"),
        ("iso-8859-15", "€"),
    ],
)
@pytest.mark.parametrize("before", ["", "#!/usr/bin/env python\n"])
def test_declared_encodings_are_read_as_python_reads_them(encoding: str, text: str, before: str) -> None:
    data = f"{before}# -*- coding: {encoding} -*-\nx = '{text}'\n".encode(encoding)
    declared, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    assert decode_source(data, "a.py") == data.decode(declared)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"x = '\xe9'\n", "a.py"),
        (b"# coding: latin-1\nx = '\xe9'\n", "a.c"),
        (b"# coding: rot13\nx = '\xe9'\n", "a.py"),
        (b"# coding: unicode_escape\nx = '\xe9'\n", "a.py"),
        (b"#\n#\n# coding: latin-1\nx = '\xe9'\n", "a.py"),
        (codecs.BOM_UTF16_LE + b"x\x00\x00\xd8", "a.py"),
        (codecs.BOM_UTF16_LE + b"x", "a.py"),
    ],
)
def test_other_bytes_have_a_reason(data: bytes, path: str) -> None:
    with pytest.raises(UndecodableError, match=r"^(not UTF-8|unknown encoding|damaged UTF-16)$"):
        decode_source(data, path)


def test_code_of_notebooks_is_read(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["import os\n", "print(os.name)"], "outputs": [{"text": "secret output"}]},
        {"cell_type": "raw", "source": "raw"},
        {"cell_type": "code", "source": "x = 1"},
    ]
    notebook = json.dumps({"nbformat": 4, "cells": cells})
    found = notebook_to_text(notebook, "script")
    assert found is not None
    assert found.text == "# # Title\n# text\n\nimport os\nprint(os.name)\n\nx = 1\n"
    code = write(tmp_path / "code", {"a/n.ipynb": notebook, "b/m.py": "y = 2\n" * 30, "c/broken.ipynb": "{"})
    manifest = build_corpus(
        CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),), validation_fraction=0),
        tmp_path / "corpus",
    )
    texts = {document.path: document.text for document in read_documents(tmp_path / "corpus", "train")}
    assert "secret" not in texts["n.ipynb"]
    assert "print(os.name)" in texts["n.ipynb"]
    assert manifest["dropped"]["damaged notebook"]["documents"] == 1


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    code = write(tmp_path, {"a/x.py": "x = 1\n", "a/notes.txt~": "ignored"})
    source = LocalRepositories(folder=code, license="MIT")
    first = source.fingerprint()
    assert first == source.fingerprint()
    write(code, {"a/notes.txt~": "still ignored"})
    assert source.fingerprint() == first
    write(code, {"a/x.py": "x = 23\n"})
    second = source.fingerprint()
    write(code, {"b/y.py": "y = 1\n"})
    assert first != second != source.fingerprint()


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_about_the_wanted_fraction_is_held_out(fraction: float, tmp_path: Path) -> None:
    """One large repository and two small ones: repositories cannot be split as asked, so files are."""
    files = {f"large/{n}.py": f"value_{n} = {n}\n" * 40 for n in range(40)}
    files |= {"small/a.py": "alpha = 1\n" * 40, "tiny/b.py": "beta = 2\n" * 4}
    code = write(tmp_path / "code", files)
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),), validation_fraction=fraction)
    manifest = build_corpus(config, tmp_path / "corpus")
    held_out = manifest["splits"]["validation"]["text_bytes"]
    assert fraction / 2 <= held_out / manifest["kept"]["text_bytes"] <= 2 * fraction


def test_of_a_single_file_the_last_lines_are_held_out(tmp_path: Path) -> None:
    lines = [f"value_{n} = {n}\n" for n in range(1000)]
    code = write(tmp_path / "code", {"repo/a.py": "".join(lines)})
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),), validation_fraction=0.02)
    manifest = build_corpus(config, tmp_path / "corpus")
    parts = [
        document.text for split in ("train", "validation") for document in read_documents(tmp_path / "corpus", split)
    ]
    assert parts == ["".join(lines[:980]), "".join(lines[980:])]
    assert manifest["validation"] == {"by": "end of a file", "names": ["repo@-/a.py"], "overlap": None}
    assert manifest["kept"]["documents"] == 1


def test_a_file_of_one_line_is_used_for_training(tmp_path: Path) -> None:
    code = write(tmp_path / "code", {"repo/a.py": "value = function(argument)\n"})
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),), validation_fraction=0.02)
    manifest = build_corpus(config, tmp_path / "corpus")
    assert {name: split["documents"] for name, split in manifest["splits"].items()} == {"train": 1, "validation": 0}


@given(st.lists(st.text(alphabet="ab\r\n", max_size=9), max_size=12).map("\n".join), st.integers(0, 60))
def test_a_cut_text_is_complete_and_cut_at_a_line(text: str, n_bytes: int) -> None:
    head, tail = cut_text(text, n_bytes)
    assert head + tail == text
    assert not tail or head.endswith("\n")
    assert head or not text


def test_large_fraction_is_refused() -> None:
    with pytest.raises(ConfigError, match="validation_fraction"):
        CorpusConfig(sources=(), validation_fraction=0.5)


def test_search_for_a_license_ends_outside_of_the_top_folder() -> None:
    nearest = NearestLicense(PurePosixPath("repository"), {PurePosixPath("repository"): "MIT"}.get)
    assert nearest.of(PurePosixPath("repository/a/b")) == "MIT"
    assert nearest.of(PurePosixPath("/etc/a")) is None and nearest.of(PurePosixPath("other")) is None
