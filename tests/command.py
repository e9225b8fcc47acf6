"""Runs the command `codekiln` as a user types it."""

import os
import subprocess
import sys
from pathlib import Path


def codekiln(
    *arguments: object, stdin: bytes | None = None, cwd: Path | None = None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """The finished command. Its output is decoded strictly, and wide enough that no table cell is cut."""
    done = subprocess.run(
        [sys.executable, "-m", "codekiln", *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=240,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def assert_refused(done: "subprocess.CompletedProcess[str]", *parts: object, status: int = 1) -> None:
    """The command exited with `status`, and its message, which is no traceback, has all parts."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    message = " ".join(done.stderr.replace("│", " ").split())  # wrapped lines of a frame become one
    for part in parts:
        assert str(part) in message, done.stderr
