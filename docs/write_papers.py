"""Writes docs/papers.md: `python docs/write_papers.py`, from the root of the repository."""

from pathlib import Path

from codekiln.recipes.papers import render_page

PAGE = Path(__file__).parent / "papers.md"

if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
