"""The code blocks of the documentation, and what is stated about running them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from tests.small import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(?:^ *<!-- (.*?) -->\n)?^( *)```(.*)\n((?:.*\n)*?)^ *```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block. `note` is the comment before it, for example "not run: needs a GPU", or "". `line` counts from 1."""

    page: Path
    line: int
    language: str
    text: str
    note: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> Iterator[str]:
        """The commands of a shell block, each as one line."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def read_blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(3)) + 1, found[3], dedent(found[4]), found[1] or "")
        for found in _BLOCK.finditer(text)
    ]


ALL_BLOCKS = [block for page in PAGES for block in read_blocks(page)]
