"""Jupyter notebooks as text, and the language of their kernel. Outputs are left out."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from codekiln.corpus.html_text import html_to_text
from codekiln.extras import import_optional

NotebookLayout = Literal["cells", "script"]
DEFAULT_KERNEL = "python"
_VERSION = re.compile(r"[-_ .]?v?\d[\d.]*\Z")
_KERNEL = re.compile(r"[a-z0-9#+._-]{1,40}")


@dataclass(frozen=True)
class Notebook:
    """`kernel` is the language of the code cells in lower case, without a version: "python", "julia", "c++"."""

    text: str
    kernel: str


@dataclass(frozen=True)
class _Cell:
    is_code: bool
    source: str


def notebook_to_text(data: str, layout: NotebookLayout) -> Notebook | None:
    """The code and text cells of a notebook of format 3 or 4 in order. None if it is not a notebook.

    "cells" is InCoder's layout (section 3.1): `<cell>` lines around code, `<text>` lines around text, without Markdown.
    "script" has code as it is, and text as comments. Raw cells and empty ones are left out.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    found = _listed_cells(record)
    cells = [cell for cell in found or () if isinstance(cell, dict) and isinstance(cell.get("cell_type"), str)]
    if found is None or (found and not cells):
        return None
    try:
        text = _render([cell for each in cells if (cell := _read_cell(each)) and cell.source], layout)
        text.encode()
    except UnicodeEncodeError:  # JSON can hold lone surrogates, which no text file can
        return None
    return Notebook(text, _kernel(record, cells))


def _render(cells: list[_Cell], layout: NotebookLayout) -> str:
    match layout:
        case "cells":
            parts = [
                f"<cell>\n{cell.source}\n</cell>" if cell.is_code else f"<text>\n{text}\n</text>"
                for cell in cells
                if (text := cell.source if cell.is_code else _markdown_to_text(cell.source))
            ]
            separator = "\n"
        case "script":
            parts = [cell.source if cell.is_code else _commented(cell.source) for cell in cells]
            separator = "\n\n"
        case _:
            assert_never(layout)
    return separator.join(parts) + "\n" * bool(parts)


def _listed_cells(record: Any) -> list[Any] | None:
    """The cells of format 4, or those of all worksheets of format 3. None if there is no list of cells."""
    if not isinstance(record, dict):
        return None
    if isinstance(cells := record.get("cells"), list):
        return cells
    if not isinstance(sheets := record.get("worksheets"), list):
        return None
    lists = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
    return [cell for cells in lists if isinstance(cells, list) for cell in cells]


def _read_cell(cell: dict[str, Any]) -> _Cell | None:
    """None for a raw cell. Format 3 has the code in `input`, and headings and HTML in cells of their own."""
    kind = cell["cell_type"]
    if kind == "code":
        return _Cell(True, _joined(cell.get("source", cell.get("input"))))
    return _Cell(False, _joined(cell.get("source"))) if kind in ("markdown", "heading", "html") else None


def _joined(source: object) -> str:
    """A multi-line string of a notebook: one string, or a list of lines with their line ends."""
    lines = source if isinstance(source, list) else [source]
    return "".join(line for line in lines if isinstance(line, str)).rstrip()


def _commented(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _markdown_to_text(text: str) -> str:
    """Markdown without its formatting: rendered as HTML, of which the text is taken."""
    cmark = import_optional("cmarkgfm", "corpus")
    # HTML in the Markdown is passed on, so that its text is kept. The result is never shown as HTML.
    render: Callable[..., str] = cmark.markdown_to_html
    return html_to_text(render(text, cmark.cmark.Options.CMARK_OPT_UNSAFE), is_code_marked=False)


def _kernel(record: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """The first name that is one, else "python"."""
    names = (_VERSION.sub("", name.strip().lower()) for name in _kernel_names(record, cells) if isinstance(name, str))
    return next((name for name in names if _KERNEL.fullmatch(name)), DEFAULT_KERNEL)


def _kernel_names(record: dict[str, Any], cells: list[dict[str, Any]]) -> Iterator[object]:
    metadata = record.get("metadata")
    if isinstance(metadata, dict):
        tables = (("kernelspec", "language"), ("language_info", "name"), ("kernelspec", "name"))
        for table, key in tables:
            if isinstance(found := metadata.get(table), dict):
                yield found.get(key)
    yield next((cell.get("language") for cell in cells if cell["cell_type"] == "code"), None)  # format 3
