"""Hostile and broken files: each is counted with a reason, and none stops a corpus."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from codekiln.corpus.config import DEFAULT_STEPS, CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.reading import NAME_NOT_UTF8
from codekiln.corpus.sources.files import UNREADABLE, FileList, ReadFile
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.files import JsonObject
from tests.small import write_tree

pytestmark = pytest.mark.process


def build(code: Path, out: Path) -> tuple[JsonObject, dict[str, str]]:
    """The manifest, and the reasons of dropped files by their names."""
    source = LocalRepositories(folder=code, license="MIT")
    manifest = build_corpus(CorpusConfig(sources=(source,), validation_fraction=0.0), out)
    reasons = {name: reason for reason, entry in manifest["dropped"].items() for name in entry["examples"]}
    return manifest, {name.split("/", 1)[1]: reason for name, reason in reasons.items()}


def test_every_kind_of_broken_file_is_counted(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    folder = code / "repository0"
    contents: dict[str, bytes] = {
        "latin.py": b"# caf\xe9\n",
        "utf16.py": "value = 'é'\n".encode("utf-16"),
        "half_utf16.py": b"\xff\xfex\0=\0\xff",
        "binary.py": bytes(range(256)),
        "nul.py": b"x = 1\0\n" * 20,
        "empty.py": b"",
        "blank.py": b"\r\n \t\r\n",
        "one_line.py": b"x" * 900_000,
        "large.py": b"y = 1\n" * 9_000_000,
        "broken.ipynb": b'{"cells": [{"cell_type": "code"',
        "list.ipynb": b"[1, 2]",
        "deep.ipynb": b'{"cells": ' + b"[" * 100_000,
        "mark.py": b"\xef\xbb\xbfbom = 1\n",
        "surrogate.ipynb": b'{"cells": [{"cell_type": "code", "source": "x = \'\\ud800\'"}]}',
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    bad_name = os.fsdecode(b"caf\xe9.py")
    (folder / bad_name).write_bytes(b"eta = 1\n")
    (folder / "line\nbreak.py").write_bytes(b"theta = 1\n")
    os.mkfifo(folder / "pipe.py")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(folder / "socket.py")
        (folder / "loop").symlink_to(folder)
        (folder / "self.py").symlink_to(folder / "self.py")
        (folder / "passwd.py").symlink_to("/etc/passwd")
        for name in ("pyproject.toml", "setup.cfg", "package.json", "Cargo.toml"):
            (folder / name).write_bytes(b"\xff{[=\0")
        manifest, reasons = build(code, tmp_path / "corpus")
    assert reasons == {
        "latin.py": "not UTF-8",
        "half_utf16.py": "damaged UTF-16",
        "binary.py": "not UTF-8",
        "nul.py": "few letters and digits",
        "empty.py": "empty",
        "blank.py": "empty",
        "one_line.py": "mean line too long (characters)",
        "large.py": "over 1,000,000 bytes",
        "broken.ipynb": "damaged notebook",
        "list.ipynb": "damaged notebook",
        "deep.ipynb": "damaged notebook",
        "surrogate.ipynb": "damaged notebook",
        r"caf\udce9.py": NAME_NOT_UTF8,
    }
    texts = {document.path: document.text for document in read_documents(tmp_path / "corpus", "train")}
    assert texts["mark.py"] == "bom = 1\n" and texts["utf16.py"] == "value = 'é'\n"
    assert texts["line\nbreak.py"] == "theta = 1\n"
    assert len(texts) == 20 + 3 and manifest["read"]["files"] == 20 + 3 + len(reasons)


def test_files_that_change_after_they_were_listed(tmp_path: Path) -> None:
    """One vanishes, one becomes a link, one a pipe, one grows, and one loses its text."""
    code = write_tree(tmp_path / "code")
    folder = code / "repository0"
    names = ("gone.py", "link.py", "pipe.py", "grown.py", "shrunk.py")
    for name in names:
        (folder / name).write_text(f"{name[:-3]} = 1\n", encoding="utf-8")

    class Changing(LocalRepositories):
        def files(self):  # type: ignore[no-untyped-def]
            yield from list(super().files())
            (folder / "gone.py").unlink()
            (folder / "link.py").unlink()
            (folder / "link.py").symlink_to("/etc/passwd")
            (folder / "pipe.py").unlink()
            os.mkfifo(folder / "pipe.py")
            (folder / "grown.py").write_bytes(b"x = 1\n" * 200_000)
            (folder / "shrunk.py").write_bytes(b"")

    config = CorpusConfig(sources=(Changing(folder=code, license="MIT"),), validation_fraction=0.0)
    manifest = build_corpus(config, tmp_path / "corpus")
    dropped = {reason: set(entry["examples"]) for reason, entry in manifest["dropped"].items()}
    assert dropped == {
        UNREADABLE: {f"repository0@-/{name}" for name in ("gone.py", "link.py", "pipe.py")},
        "over 1,000,000 bytes": {"repository0@-/grown.py"},
        "empty": {"repository0@-/shrunk.py"},
    }


def test_devices_and_links_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "link", tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=r"."):
            ReadFile(str(path), 0)()


def test_a_repository_with_many_files(tmp_path: Path) -> None:
    """Work units are bounded by their number of files, too."""
    folder = tmp_path / "code" / "repository"
    for n in range(12_000):
        if n % 100 == 0:
            (folder / f"{n}").mkdir(parents=True)
        (folder / f"{n - n % 100}" / f"{n}.py").write_text(f"value_{n} = {n}\n", encoding="utf-8")
    source = LocalRepositories(folder=tmp_path / "code", license="MIT")
    units: list[FileList] = list(source.units(tmp_path))
    assert [unit.n_files for unit in units] == [10_000, 2_000]
    assert sum(len(unit.compressed) for unit in units) < 30 * 12_000  # of a list of millions, little is in memory
    manifest, _ = build(tmp_path / "code", tmp_path / "corpus")
    assert manifest["kept"]["documents"] == 12_000


def test_a_list_of_files_is_complete(tmp_path: Path) -> None:
    """Names that are not UTF-8, unreadable folders and declared licenses are in the compressed list."""
    code = write_tree(tmp_path / "code")
    (code / "repository0" / os.fsdecode(b"\xff.py")).write_text("value = 1\n", encoding="utf-8")
    (code / "repository0" / "vendor").mkdir()
    source = LocalRepositories(folder=code, license="MIT", languages=("Python",))
    listed = list(source.files())
    assert [file for unit in source.units(tmp_path) for file in unit.files()] == listed
    assert {file.problem is None for file in listed} == {True, False}
    assert any(file.path == "\udcff.py" for file in listed)


def test_clock_and_locale_change_nothing(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    (code / "repository0" / "é.py").write_text("wert = 'ä'\n", encoding="utf-8")
    program = (
        "import sys\nfrom pathlib import Path\nfrom codekiln.corpus.config import CorpusConfig\n"
        "from codekiln.corpus.pipeline import build_corpus\n"
        "from codekiln.corpus.sources.tree import LocalRepositories\n"
        "source = LocalRepositories(folder=Path(sys.argv[1]), license='MIT')\n"
        "build_corpus(CorpusConfig(sources=(source,)), Path(sys.argv[2]))\n"
    )
    found = []
    for n, settings in enumerate(({"LC_ALL": "C", "TZ": "Asia/Kolkata"}, {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"})):
        out = tmp_path / f"corpus{n}"
        subprocess.run([sys.executable, "-c", program, code, out], env=os.environ | settings, check=True)
        found.append({path.name: path.read_bytes() for path in sorted(out.rglob("*.parquet"))})
        found[-1]["manifest"] = (out / "manifest.json").read_bytes()
    assert found[0] == found[1]
    assert json.loads(found[0]["manifest"])["kept"]["documents"] == 21
    steps = {step["step"] for step in json.loads(found[0]["manifest"])["steps"]}
    assert {type(step).__name__ for step in DEFAULT_STEPS} <= steps
