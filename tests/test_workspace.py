"""The index of a folder that follows its changes, alone and in a real server."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from codekiln.errors import MissingFileError
from codekiln.generate import workspace as module
from codekiln.generate.workspace import Workspace
from codekiln.index.continuations import find_continuations
from codekiln.tokenizer.bpe import Tokenizer
from tests.command import assert_refused, codekiln
from tests.small import running_server

SECONDS = 20.0  # to wait at most; a change is seen after about 0.3


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "nothing has changed"
        time.sleep(0.02)


@pytest.fixture
def tokenizer(small_run: Path) -> Tokenizer:
    return Tokenizer.load(small_run / "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "package").mkdir(parents=True)
    (code / "main.py").write_text("def main():\n    return compute_everything()\n", encoding="utf-8")
    (code / "package" / "other.py").write_text("def other_function():\n    pass\n", encoding="utf-8")
    return code


@pytest.fixture
def workspace(folder: Path, tokenizer: Tokenizer) -> Iterator[Workspace]:
    followed = Workspace(folder, tokenizer)
    followed.start()
    assert followed.wait(SECONDS)
    yield followed
    followed.stop()


def has(workspace: Workspace, text: str) -> bool:
    """Whether a text of the beginning of a line is indexed."""
    ids = np.array(Tokenizer.encode(workspace._tokenizer, text))
    shards = workspace.shards
    return bool(shards) and find_continuations(shards, ids).length == len(ids)


def test_changes_are_followed(folder: Path, workspace: Workspace) -> None:
    assert workspace.state.files == 2 and workspace.state.tokens > 0
    assert has(workspace, "def other_function():\n")
    (folder / "new.py").write_text("def brand_new():\n    pass\n", encoding="utf-8")
    wait_until(lambda: has(workspace, "def brand_new():\n"))
    (folder / "new.py").write_text("def changed_name():\n    pass\n", encoding="utf-8")
    wait_until(lambda: has(workspace, "def changed_name():\n") and not has(workspace, "def brand_new():\n"))
    (folder / "new.py").unlink()
    wait_until(lambda: not has(workspace, "def changed_name():\n"))
    (folder / "package").rename(folder / "renamed")
    wait_until(lambda: folder / "renamed" / "other.py" in workspace._of_file)
    assert has(workspace, "def other_function():\n") and workspace.state.files == 2
    shutil.rmtree(folder / "renamed")
    wait_until(lambda: workspace.state.files == 1)
    assert not has(workspace, "def other_function():\n")


def test_editors_that_replace_the_file_are_followed(folder: Path, workspace: Workspace) -> None:
    (folder / ".main.py.swp").write_text("def from_the_swap_file():\n", encoding="utf-8")
    (folder / "main.py~").write_text("def main_before():\n    pass\n", encoding="utf-8")
    (folder / ".main.py.new").write_text("def saved_by_rename():\n    pass\n", encoding="utf-8")
    (folder / ".main.py.new").replace(folder / "main.py")
    wait_until(lambda: has(workspace, "def saved_by_rename():\n"))
    assert workspace.state.files == 2 and not has(workspace, "def from_the_swap_file():\n")


def test_names_are_those_of_the_files(folder: Path, workspace: Workspace) -> None:
    """Also after a change, and not those of secrets."""
    key = "AKIAIOSFODNN7EXAMPLQ"
    (folder / "names.py").write_text(f"quagga_herd = quagga\nkey = '{key}'\n", encoding="utf-8")
    wait_until(lambda: workspace.names("quag") == ["quagga", "quagga_herd"])
    assert workspace.names("quagga") == ["quagga_herd"]
    assert workspace.names("quagga_herd") == workspace.names("AKIA") == workspace.names("zzz") == []
    (folder / "names.py").write_text("quagga_zoo = 1\n", encoding="utf-8")
    wait_until(lambda: workspace.names("quag") == ["quagga_zoo"])


def test_ignored_files_and_secrets_are_left_out(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / ".gitignore").write_text("private.py\n", encoding="utf-8")
    (folder / "private.py").write_text("def private_function():\n    pass\n", encoding="utf-8")
    (folder / ".hidden.py").write_text("def hidden_function():\n    pass\n", encoding="utf-8")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "their.py").write_text("def their_function():\n    pass\n", encoding="utf-8")
    (folder / "link.py").symlink_to("/etc/passwd")
    key = "ghp_x7Qm2LdV9aRt4KzW8bNc3JpY6eHs1GuF5oTi"
    (folder / "key.py").write_text(f'def before_key():\n    token = "{key}"\n    after_key()\n', encoding="utf-8")
    followed = Workspace(folder, tokenizer)
    followed.start()
    assert followed.wait(SECONDS)
    for name in ("private", "hidden", "their"):
        assert not has(followed, f"def {name}_function():\n")
    assert not has(followed, key) and not has(followed, key[5:30])
    assert has(followed, "def before_key():\n") and followed.state.secrets == 1
    assert followed.state.files == 3
    (folder / ".gitignore").write_text("", encoding="utf-8")
    wait_until(lambda: has(followed, "def private_function():\n"))
    (folder / ".gitignore").write_text("package/\n", encoding="utf-8")
    wait_until(lambda: not has(followed, "def other_function():\n"))
    followed.stop()


def test_files_that_cannot_be_indexed_are_counted(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "binary.py").write_bytes(bytes(range(256)))
    (folder / "large.py").write_text("x = 1\n" * 200_000, encoding="utf-8")
    (folder / "empty.py").touch()
    (folder / "image.png").write_bytes(b"\x89PNG")
    (folder / "locked.py").write_text("x = 1\n", encoding="utf-8")
    (folder / "locked.py").chmod(0)
    os.mkfifo(folder / "pipe.py")
    followed = Workspace(folder, tokenizer)
    followed.start()
    assert followed.wait(SECONDS)
    followed.stop()
    reasons = dict(followed.state.left_out)
    n_locked = reasons.pop("cannot be read", 0)
    assert n_locked == (0 if os.geteuid() == 0 else 1)
    assert sorted(reasons.values()) == [1, 1] and any("UTF-8" in reason for reason in reasons)
    assert any("over 1,000,000 bytes" in reason for reason in reasons)


def test_a_removed_folder_has_no_files_until_it_is_back(
    folder: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.2)
    shutil.rmtree(folder)
    wait_until(lambda: workspace.state.files == 0 and not workspace.shards)
    folder.mkdir()
    (folder / "again.py").write_text("def here_again():\n    pass\n", encoding="utf-8")
    wait_until(lambda: has(workspace, "def here_again():\n"))


def test_more_files_than_the_limit_are_left_out(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_TOKENS", 500)
    monkeypatch.setattr(module, "MAX_TOKENS", 2000)
    for k in range(60):
        (folder / f"file_{k:02}.py").write_text(f"def number_{k}():\n    return {k} + other\n" * 3, encoding="utf-8")
    followed = Workspace(folder, tokenizer)
    followed.start()
    assert followed.wait(SECONDS)
    assert 1500 <= followed.state.tokens <= 2000 and len(followed.shards) >= 3
    assert followed.state.left_out == {"over the limit of tokens of all files": 62 - followed.state.files}
    assert has(followed, "def number_0():\n")
    opened: list[Path] = []
    read = Workspace._read

    def read_and_note(self: Workspace, path: Path) -> Any:
        opened.append(path)
        return read(self, path)

    monkeypatch.setattr(Workspace, "_read", read_and_note)
    for name in (
        "number_nought",
        "number_zero",
    ):  # when the first change is seen, all files are read that are not indexed
        opened.clear()
        (folder / "file_00.py").write_text(f"def {name}():\n    return other\n", encoding="utf-8")
        wait_until(lambda name=name: has(followed, f"def {name}():\n"))  # type: ignore[misc]
    assert len(opened) < 5  # the files that do not fit are not read again after each change
    for path in sorted(folder.glob("file_*.py"))[:30]:  # makes room for others
        path.unlink()
    wait_until(lambda: not has(followed, "def number_zero():\n"))
    wait_until(lambda: has(followed, "def number_40():\n"))
    followed.stop()


def test_small_files_take_the_room_that_large_ones_leave(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    sizes = {}
    for name, n in (("a_middle", 20), ("b_large", 60), ("c_small", 3)):
        text = f"def {name}():\n" + "    return other\n" * n
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        sizes[name] = len(tokenizer.encode(text))
    monkeypatch.setattr(module, "MAX_TOKENS", sizes["a_middle"] + sizes["c_small"] - 1)
    followed = Workspace(folder, tokenizer)
    followed.start()
    assert followed.wait(SECONDS)
    assert (followed.state.files, followed.state.left_out) == (1, {"over the limit of tokens of all files": 2})
    (folder / "a_middle.py").unlink()
    wait_until(lambda: has(followed, "def c_small():\n"))
    assert (followed.state.files, followed.state.left_out) == (1, {"over the limit of tokens of all files": 1})
    followed.stop()


def test_a_missing_folder_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MissingFileError, match="is not a folder"):
        Workspace(tmp_path / "missing", tokenizer)


# The server


def complete(url: str, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    return str(answer.json()["choices"][0]["text"])


def test_a_saved_function_is_completed_in_another_file(small_run: Path, folder: Path) -> None:
    with running_server(small_run, "--workspace", str(folder)) as server:
        prompt = "import tools\n\n\ndef run():\n    return tools.zebra_"
        assert not complete(server.url, prompt).startswith("crossing")
        tools = "import tools\n\n\ndef first():\n    return tools.zebra_crossing(4)\n"
        (folder / "tools.py").write_text(tools, encoding="utf-8")
        wait_until(lambda: complete(server.url, prompt).startswith("crossing(4)"))
        before, name = prompt[: -len("zebra_")], "zebra_crossing"
        for n in range(3, len(name)):  # its tokens are not those of the whole name
            assert complete(server.url, before + name[:n]).startswith(name[n:]), n
        (folder / "tools.py").unlink()
        wait_until(lambda: not complete(server.url, prompt).startswith("crossing"))
        shutil.rmtree(folder)
        assert complete(server.url, "def main(")
    assert any("Workspace:" in line for line in server.lines)


def test_other_backends_and_missing_folders_are_refused(small_run: Path, tmp_path: Path) -> None:
    done = codekiln("serve", small_run, "--port", "0", "--workspace", tmp_path / "missing")
    assert_refused(done, "missing is not a folder")
    done = codekiln("complete", small_run, "x", "--recall", "--backend", "ctranslate2")
    assert_refused(done, "recall works with the backend pytorch only")
