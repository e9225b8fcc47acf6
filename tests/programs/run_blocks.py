"""Runs the Python code blocks of one section of a Markdown file in one namespace: run_blocks.py FILE HEADING."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text(encoding="utf-8")
sections = re.split(r"^## ", text, flags=re.MULTILINE)
section = next(section for section in sections if section.startswith(sys.argv[2]))
blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
assert blocks, f"{sys.argv[2]} has no code blocks"
namespace: dict[str, object] = {"__name__": "extending"}
for block in blocks:
    exec(compile(block, block.split("\n", 1)[0], "exec"), namespace)  # noqa: S102 - our own documentation
