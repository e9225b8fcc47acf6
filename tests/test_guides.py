"""The commands of the guides and the Python blocks of the other pages run, in the order in which they are written.

They run in a folder with a small run (`runs/demo`), a model (`models/base`) and code (`~/src`). Trainings are made smaller.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.command import codekiln
from tests.markdown import ALL_BLOCKS, Block, read_blocks
from tests.small import ROOT, program_environment, running_server

pytestmark = pytest.mark.process

GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
ADDRESS = "http://127.0.0.1:8080"
PYTHON_BLOCKS = [block for block in ALL_BLOCKS if block.language == "python" and block.page.name != "extending.md"]
# What is added to the commands that train, so that they take seconds.
SMALLER = [
    "--no-compile",
    *("--set", "train.total_tokens=16384"),
    *("--set", "train.eval_sequences=4"),
    *("--set", "infilling.n_problems=8"),
    *("--set", "min_free_bytes=1000000"),
]
SMALLER_FINETUNE = ["--no-compile", "--set", "infilling.n_problems=8", "--set", "min_free_bytes=1000000"]


@pytest.fixture
def workplace(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and the home folder."""
    shutil.copytree(small_run, tmp_path / "runs" / "demo")
    shutil.copytree(small_run / "model", tmp_path / "models" / "base")
    for package in ("corpus", "generate"):
        shutil.copytree(ROOT / "codekiln" / package, tmp_path / "src" / package, ignore=lambda *_: {"playground"})
    project = tmp_path / "src" / "my-project"
    project.mkdir()
    shutil.copy(ROOT / "codekiln" / "runs.py", project / "main.py")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(command: str) -> list[str]:
    """The words of a command, as a shell expands them."""
    script = "words() { printf '%s\\0' \"$@\"; }\nwords " + command
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.split("\0")[:-1]


def run_command(command: str) -> str:
    """What the command prints. Commands of Codekiln run in this process."""
    program, *arguments = words_of(command)
    if program != "codekiln":
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=False, env=program_environment()
        )
    else:
        if arguments[0] == "train":
            kept = {word for word in arguments if word.startswith("train.total_tokens")}
            arguments += SMALLER if not kept or "longer" in command else [*SMALLER[:1], *SMALLER[3:]]
        if arguments[0] == "finetune":
            arguments += SMALLER_FINETUNE
        done = codekiln(*arguments)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# These take half a minute or more each.
SLOW_GUIDES = ("cluster", "finetune", "measure", "train")


@pytest.mark.parametrize(
    "guide",
    [pytest.param(guide, marks=pytest.mark.slow if guide.stem in SLOW_GUIDES else ()) for guide in GUIDES],
    ids=lambda guide: guide.stem,
)
def test_commands_of_the_guide_run(guide: Path, workplace: Path) -> None:
    with ExitStack() as servers:
        address = ADDRESS
        for block in read_blocks(guide):
            for command in block.commands if block.language == "bash" and not block.note.startswith("not run") else ():
                if block.note == "run as a server":
                    servers.close()
                    _, _, model, *options = words_of(re.sub(r" --port \d+", "", command))
                    address = servers.enter_context(running_server(Path(model), *options)).url
                else:
                    printed = run_command(command.replace(ADDRESS, address))
                    if block.note == "run against the server":
                        assert json.loads(printed)["choices"]


@pytest.fixture
def demo_server(workplace: Path) -> Iterator[str]:
    with running_server(workplace / "runs" / "demo") as server:
        yield server.url


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_python_block_runs(block: Block, workplace: Path, request: pytest.FixtureRequest) -> None:
    text = block.text
    if ADDRESS in text:
        text = text.replace(ADDRESS, request.getfixturevalue("demo_server"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        capture_output=True, text=True, timeout=120, check=False, env=program_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_each_guide_has_commands_that_run() -> None:
    for guide in GUIDES:
        assert any(block.language == "bash" and not block.note.startswith("not") for block in read_blocks(guide)), guide
