"""Runs the command `codekiln`, in this process or as a user types it."""

import contextlib
import io
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from codekiln.cli import main

# Output so wide that no table cell is cut.
_ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1"}


def codekiln(*arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
    """Runs the command in this process, which saves the seconds in which PyTorch is imported. Output is decoded strictly."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    words = ["codekiln", *map(str, arguments)]
    status: object = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in (os.environ | _ENVIRONMENT).items():
            patch.setenv(name, value)  # also what the command changes is undone
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        try:
            main()
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 1
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(words, status if isinstance(status, int) else 1, stdout, stderr)


def codekiln_with_log(stderr: Path, *arguments: object) -> None:
    """Runs the command in a forked process, see `start_forked`, with its errors in a file."""
    os.environ.update(_ENVIRONMENT)
    sys.argv = ["codekiln", *map(str, arguments)]
    with stderr.open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        main()


def codekiln_process(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "codekiln", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=240,
        env=os.environ | _ENVIRONMENT | environment,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_refused(done: "subprocess.CompletedProcess[str]", *parts: object, status: int = 1) -> None:
    """The command exited with `status`, and its message, which is no traceback, has all parts."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    message = " ".join(done.stderr.replace("│", " ").split())  # wrapped lines of a frame become one
    for part in parts:
        assert str(part) in message, done.stderr
