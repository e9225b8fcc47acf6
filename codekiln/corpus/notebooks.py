"""Jupyter notebooks as text: code cells as they are, text cells as comments. Outputs are left out."""

import json


def notebook_to_text(data: str) -> str | None:
    """The text of a notebook; None if it is not a notebook of format 4."""
    try:
        cells = json.loads(data)["cells"]
        parts = [_cell_to_text(cell["cell_type"], cell["source"]) for cell in cells]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return "\n\n".join(part for part in parts if part) + "\n" * any(parts)


def _cell_to_text(kind: object, source: object) -> str:
    lines = source if isinstance(source, list) else [source]
    text = "".join(str(line) for line in lines).rstrip()
    if kind == "code":
        return text
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines()) if kind == "markdown" else ""
