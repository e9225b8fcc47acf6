"""Reads a source file as text."""

from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.decoding import UndecodableError, decode_source
from codekiln.corpus.languages import language_of
from codekiln.corpus.notebooks import NotebookLayout, notebook_to_text

NAME_NOT_UTF8 = "name not UTF-8"
MAX_FILE_BYTES = 1_000_000  # larger files are data, not code


@dataclass(frozen=True)
class SourceText:
    """The text of a file, or the reason to drop it. `kernel` is the language of a notebook."""

    text: str = ""
    kernel: str = ""
    problem: str | None = None


def read_text(location: Path, path: str, notebooks: NotebookLayout) -> SourceText:
    """Reads a file. Of notebooks, the text is that of their cells.

    `path` is the path in the repository. Its extension decides the language.
    """
    try:
        if location.stat().st_size > MAX_FILE_BYTES:
            return SourceText(problem=f"over {MAX_FILE_BYTES:,} bytes")
        data = location.read_bytes()
    except OSError:
        return SourceText(problem="unreadable")
    try:
        text = decode_source(data, path)
    except UndecodableError as error:
        return SourceText(problem=str(error))
    if language_of(path) == "Jupyter":
        notebook = notebook_to_text(text, notebooks)
        return SourceText(notebook.text, notebook.kernel) if notebook else SourceText(problem="damaged notebook")
    return SourceText(text)


def is_utf8(name: str) -> bool:
    """Whether a text is valid UTF-8. Other bytes are lone surrogates, which no record can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
