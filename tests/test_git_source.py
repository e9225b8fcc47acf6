"""The git source reads what a checkout of the same commit holds, and runs nothing that a repository configures."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources.files import UNREADABLE, SourceFile
from codekiln.corpus.sources.git import GitRepository
from codekiln.corpus.sources.ignored import VENDORED_REASON
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.errors import ConfigError, MissingFileError
from tests.small import write_tree

pytestmark = pytest.mark.process
MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy\nThe above copyright notice and\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
    command = ["git", "-C", str(folder), *identity, *arguments]
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout.decode().strip()


def commit(folder: Path, files: dict[str, str | bytes], message: str = "a commit") -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


def files_of(source: GitRepository, scratch: Path) -> dict[str, SourceFile]:
    return {file.path: file for unit in source.units(scratch) for file in unit.files()}


def contents(source: GitRepository, scratch: Path) -> dict[str, bytes | str]:
    return {file.path: file.read() for unit in source.units(scratch) for file in unit.files() if file.problem is None}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    files: dict[str, str | bytes] = {
        "LICENSE": MIT,
        "a.py": "alpha = 1\n",
        "src/b.py": b"name = '\xc3\xa9'\r\n",
        "src/latin.py": b"# caf\xe9\n",
        "vendor/c.py": "gamma = 1\n",
        "notes.txt": "words\n",
        ".hidden/d.py": "delta = 1\n",
        "gpl/COPYING": "GNU GENERAL PUBLIC LICENSE\nVersion 3\n",
        "gpl/inner/e.py": "epsilon = 1\n",
        "line\nbreak.py": "zeta = 1\n",
        os.fsdecode(b"caf\xe9.py"): "eta = 1\n",
    }
    folder.mkdir()
    commit(folder, files)
    (folder / "link.py").symlink_to("/etc/passwd")
    (folder / "large.py").write_text("x = 1\n" * 300_000, encoding="utf-8")
    commit(folder, {})
    return folder


def test_a_revision_is_read_without_a_checkout(repository: Path, tmp_path: Path) -> None:
    before = git(repository, "rev-parse", "HEAD")
    commit(repository, {"a.py": "alpha = 2\n", "new.py": "theta = 1\n"})
    (repository / "a.py").write_text("not committed\n", encoding="utf-8")
    source = GitRepository(repository=str(repository), languages=("Python",))
    found = contents(source, tmp_path / "scratch")
    assert found["a.py"] == b"alpha = 2\n" and found["new.py"] == b"theta = 1\n"
    old = GitRepository(repository=str(repository), revision=before, languages=("Python",))
    assert contents(old, tmp_path / "scratch")["a.py"] == b"alpha = 1\n"
    files = files_of(old, tmp_path / "scratch")
    assert set(files) == {
        "a.py", "src/b.py", "src/latin.py", "vendor/c.py", "gpl/inner/e.py", "line\nbreak.py", "caf\udce9.py", "large.py",
    }  # fmt: skip
    assert {file.revision for file in files.values()} == {before}
    assert files["vendor/c.py"].problem == VENDORED_REASON
    assert (files["a.py"].license, files["gpl/inner/e.py"].license) == ("MIT", "unknown")
    assert files["large.py"].size == 1_800_000
    assert not (tmp_path / "scratch").exists()
    assert source.fingerprint() != old.fingerprint()


def test_the_corpus_equals_that_of_a_checkout(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    commit(code, {"LICENSE": MIT})
    texts = []
    for name, source in (("git", GitRepository(repository=str(code))), ("tree", LocalRepositories(folder=code))):
        build_corpus(CorpusConfig(sources=(source,), validation_fraction=0.0), tmp_path / name)
        texts.append({document.path: document.text for document in read_documents(tmp_path / name, "train")})
    assert texts[0] == texts[1] and len(texts[0]) == 20


def test_bare_and_remote_repositories(repository: Path, tmp_path: Path) -> None:
    expected = contents(GitRepository(repository=str(repository)), tmp_path / "scratch")
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")
    assert contents(GitRepository(repository=str(tmp_path / "bare.git")), tmp_path / "scratch") == expected
    remote = GitRepository(repository=f"file://{repository}", revision="main")
    assert contents(remote, tmp_path / "scratch") == expected
    (fetched,) = (tmp_path / "scratch").iterdir()
    assert git(fetched, "rev-list", "--all", "FETCH_HEAD").count("\n") == 0  # no history
    (repository / ".git").rename(tmp_path / "gone")  # it is fetched once
    assert contents(remote, tmp_path / "scratch") == expected
    assert remote.name == f"{tmp_path.name}/project"
    assert GitRepository(repository="git@example.com:group/part/name.git").name == "part/name"


def test_nothing_that_a_repository_configures_is_run(repository: Path, tmp_path: Path) -> None:
    """A stranger's repository: hooks, commands in its configuration, and objects that it would have to fetch."""
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\nexit 1\n", encoding="utf-8")
    trap.chmod(trap.stat().st_mode | stat.S_IXUSR)
    for hook in ("post-checkout", "pre-auto-gc", "reference-transaction", "post-index-change"):
        (repository / ".git" / "hooks").mkdir(exist_ok=True)
        (repository / ".git" / "hooks" / hook).symlink_to(trap)
    for name in ("core.fsmonitor", "core.sshCommand", "core.editor", "core.pager", "diff.external", "filter.x.smudge",
                 "filter.x.clean", "remote.origin.uploadpack", "core.askPass", "credential.helper"):  # fmt: skip
        git(repository, "config", name, str(trap))
    (repository / ".gitattributes").write_text("*.py filter=x diff=x\n", encoding="utf-8")
    blob = git(repository, "rev-parse", "HEAD:a.py")
    for url in (f"ext::{trap}", "ssh://127.0.0.1/x", f"file://{tmp_path}/none"):
        git(repository, "config", "remote.origin.url", url)
        git(repository, "config", "remote.origin.promisor", "true")
        git(repository, "config", "extensions.partialClone", "origin")
        found = contents(GitRepository(repository=str(repository)), tmp_path / "scratch")
        assert found["a.py"] == b"alpha = 1\n"
    path = repository / ".git" / "objects" / blob[:2] / blob[2:]
    path.unlink()  # now it is missing, and git would fetch it
    with pytest.raises(OSError, match="lacks the object"):
        contents(GitRepository(repository=str(repository)), tmp_path / "scratch")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_object_is_counted(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    commit(code, {})
    blob = git(code, "rev-parse", "HEAD:repository0/open_door.py")
    (code / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    source = GitRepository(repository=str(code), license="MIT")
    manifest = build_corpus(CorpusConfig(sources=(source,)), tmp_path / "corpus")
    assert {reason: entry["documents"] for reason, entry in manifest["dropped"].items()} == {UNREADABLE: 1}
    assert manifest["kept"]["documents"] == 19


@pytest.mark.parametrize(
    "repository", ["ext::sh -c 'touch sprung'", "-u./trap", "https://user:secret@127.0.0.1:1/x.git"]
)
def test_wrong_repositories_are_refused(repository: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, MissingFileError)) as caught:
        files_of(GitRepository(repository=repository), tmp_path)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert not Path("sprung").exists()


def test_wrong_revisions_are_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "plain").mkdir()
    with pytest.raises(MissingFileError, match="not a git repository"):
        files_of(GitRepository(repository=str(repository / "plain")), tmp_path)
    for revision in ("none", "--upload-pack=x", "", "a b", "HEAD:a.py"):
        with pytest.raises((ConfigError, MissingFileError)):
            files_of(GitRepository(repository=str(repository), revision=revision), tmp_path)
    with pytest.raises(MissingFileError, match="not a folder"):
        files_of(GitRepository(repository=str(tmp_path / "none")), tmp_path)
    with pytest.raises(ConfigError, match="no source file"):
        files_of(GitRepository(repository=str(repository), languages=("Rust",)), tmp_path)
