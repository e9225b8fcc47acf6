"""Replaces a file by one of 5,000 bytes: write_large_file.py FILE. Prints the message if that fails."""
# ruff: noqa: T201 - prints its result

import sys
from pathlib import Path

from codekiln.files import atomic_write

try:
    with atomic_write(Path(sys.argv[1])) as temp_path:
        temp_path.write_bytes(b"x" * 5000)
except OSError as error:
    print(error.strerror)
