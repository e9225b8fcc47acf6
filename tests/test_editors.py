"""A real Vim in a terminal multiplexer, which asks the real server as llama.vim does."""

import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import SamplingParams
from tests.small import PROGRAMS
from tests.test_protocols import serving

MISSING = [name for name in ("vim", "tmux", "curl") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
BEFORE = "def open_door(name, count=1):\n"
LINE = "    steps = ["
AFTER = "\n    return steps\n"
WAIT_SECONDS = 120


class Terminal:
    """A program in a terminal of 100 columns, run by a tmux server of its own."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        # The socket's path is short, as the operating system demands.
        self._tmux = ["tmux", "-L", f"codekiln-{uuid.uuid4().hex[:12]}", "-f", "/dev/null"]
        self._run("new-session", "-d", "-x", "100", "-y", "24", "-c", str(folder), *command)

    def keys(self, *keys: str) -> None:
        """Presses keys, in tmux's names."""
        self._run("send-keys", *keys)

    def type(self, text: str) -> None:
        """Types text."""
        self._run("send-keys", "-l", text)

    def screen(self) -> str:
        """The text on the screen."""
        return self._run("capture-pane", "-p")

    def wait_until(self, is_reached: Callable[[str], bool]) -> str:
        """The screen, as soon as it has what is waited for."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_reached(found := self.screen()):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def close(self) -> None:
        """Ends the program and its tmux server, if they are still running."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=30, check=False)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def url(small_run: Path) -> Iterator[str]:
    with serving(small_run) as address:
        yield address


@pytest.fixture
def vim(url: str, tmp_path: Path) -> Iterator[Terminal]:
    """Vim with the cursor behind the last character of LINE."""
    path = tmp_path / "doors.py"
    path.write_text(BEFORE + LINE + AFTER, encoding="utf-8")
    script = PROGRAMS / "ghost_text.vim"
    # Without the message about the file: if it is longer than a line, Vim waits for a key.
    settings = f"let g:url = '{url}' | set shortmess+=F"
    terminal = Terminal(
        tmp_path, ["vim", "-u", "NONE", "-i", "NONE", "--cmd", settings, "-S", str(script), "+2", str(path)]
    )
    yield terminal
    terminal.close()


def test_vim_shows_ghost_text_and_accepts_it(vim: Terminal, small_run: Path, tmp_path: Path) -> None:
    params = CompletionParams(
        sampling=SamplingParams(temperature=1.0, top_k=40, top_p=0.9, min_p=0.5), max_new_tokens=24
    )
    text = Completer.load(small_run).complete([InfillRequest(BEFORE + LINE, AFTER)], params)[0].text
    first, *others = text.split("\n")
    # The server ends before a line that is indented less than the current one, and the script drops empty lines at the end.
    others = list(takewhile(lambda line: not line.strip() or line.startswith(" " * 4), others))
    expected = "\n".join([first, *others]).rstrip("\n")
    assert first.strip(), "the test needs a completion with text"
    vim.wait_until(lambda screen: "ready" in screen)
    vim.type("A")
    vim.keys("C-g")
    screen = vim.wait_until(lambda screen: "shown" in screen)
    assert (LINE + first).rstrip() in screen, "the ghost text follows the line"
    vim.keys("Tab")
    vim.wait_until(lambda screen: "accepted" in screen)
    vim.keys("Escape")
    vim.type(":wq\r")
    saved = tmp_path / "doors.py"
    wanted = BEFORE + LINE + expected + AFTER
    deadline = time.monotonic() + WAIT_SECONDS
    while saved.read_text(encoding="utf-8") != wanted:
        assert time.monotonic() < deadline, saved.read_text(encoding="utf-8")
        time.sleep(0.05)
