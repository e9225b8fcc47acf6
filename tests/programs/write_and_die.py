"""Kills itself while it replaces a folder: write_and_die.py FOLDER."""

import os
import signal
import sys
from pathlib import Path

from codekiln.files import atomic_write

with atomic_write(Path(sys.argv[1])) as temp_path:
    temp_path.mkdir()
    (temp_path / "half").write_text("x", encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)
