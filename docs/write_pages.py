"""Writes docs/papers.md and NOTICE: `python docs/write_pages.py`, from the root of the repository."""

import re
from pathlib import Path

from codekiln.recipes.papers import render_page

ROOT = Path(__file__).parent.parent
LICENSES = ROOT / "codekiln" / "serve" / "playground" / "playground-licenses.txt"
LINE = "-" * 80 + "\n"


def render_notice() -> str:
    """The notices of bundled packages, from their own license files: the copyright of each, and each license text once."""
    packages: dict[str, list[str]] = {}
    for entry in LICENSES.read_text(encoding="utf-8").split(LINE)[1:]:
        name, _, text = entry.strip().partition("\n\n")
        lines = text.splitlines()
        owners = [line.strip() for line in lines if re.match(r"\s*Copyright", line)]
        title = [line for line in lines if line.strip().lower() in ("mit license", "the mit license (mit)")]
        rest = [line for line in lines if line.strip() not in owners and line not in title]
        body = " ".join(" ".join(rest).split())
        packages.setdefault(body, []).append("\n".join([name, *(f"    {owner}" for owner in owners)]))
    parts = [_HEADING]
    for body, names in packages.items():
        parts += ["\n".join(names), _wrapped(body)]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 78:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return "\n".join(f"    {line}" for line in lines)


_HEADING = """\
Codekiln
Copyright the Codekiln contributors. Licensed under the Apache License, Version 2.0; see LICENSE.

The playground of `codekiln serve` (codekiln/serve/playground/playground.js) contains the following packages. Their
license files are in codekiln/serve/playground/playground-licenses.txt, which is installed with Codekiln."""

if __name__ == "__main__":
    (ROOT / "docs" / "papers.md").write_text(render_page(), encoding="utf-8")
    (ROOT / "NOTICE").write_text(render_notice(), encoding="utf-8")
