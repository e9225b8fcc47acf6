"""Reads a source file as text."""

from pathlib import Path

from codekiln.corpus.decoding import UndecodableError, decode_source
from codekiln.corpus.languages import language_of
from codekiln.corpus.notebooks import notebook_to_text

NAME_NOT_UTF8 = "name not UTF-8"
MAX_FILE_BYTES = 1_000_000  # larger files are data, not code


def read_text(location: Path, path: str) -> tuple[str, str | None]:
    """The text of a file, and the reason to drop it or None. Of notebooks, it is the code of their cells.

    `path` is the path in the repository. Its extension decides the language.
    """
    try:
        if location.stat().st_size > MAX_FILE_BYTES:
            return "", f"over {MAX_FILE_BYTES:,} bytes"
        data = location.read_bytes()
    except OSError:
        return "", "unreadable"
    try:
        text = decode_source(data, path)
    except UndecodableError as error:
        return "", str(error)
    if language_of(path) == "Jupyter":
        code = notebook_to_text(text)
        is_damaged = code is None or not is_utf8(code)
        return ("", "damaged notebook") if is_damaged else (code or "", None)
    return text, None


def is_utf8(name: str) -> bool:
    """Whether a text is valid UTF-8. Other bytes are lone surrogates, which no record can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
