"""Rows of a file of the Stack Exchange dump: XML with one `<row .../>` per line."""

import re
from collections.abc import Callable
from typing import NamedTuple
from xml.parsers import expat

from codekiln.errors import InvalidFileError

# A post has at most 30,000 characters of Markdown. As HTML in XML, that is some hundred kilobytes.
MAX_ROW_BYTES = 4 * 2**20
DAMAGED_ROW = "damaged row"
LONG_ROW = "row too long"
TRUNCATED = "truncated file"

_AROUND_ROWS = re.compile(rb"(\xef\xbb\xbf)?(<\?xml[^<>]*\?>)?\s*(<\w+>)?|(?P<end></\w+>)")

_DECLARATION = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


class DumpRow(NamedTuple):
    """The attributes of a row, or why it has none. `n_bytes` are those of its line in the file."""

    attributes: dict[str, str]
    n_bytes: int
    line_number: int
    problem: str | None = None


class RowState(NamedTuple):
    """How many bytes, lines and rows of a file were read, and whether its root element has ended."""

    n_bytes: int = 0
    n_lines: int = 0
    n_rows: int = 0
    is_closed: bool = False


class RowReader:
    """Splits the blocks of a file into rows, and passes each to `receive`, also those that are damaged.

    Rows are parsed without a document type, so no entity but the five of XML has a meaning. One row at most is in memory in
    addition to the block.
    """

    def __init__(self, name: str, receive: Callable[[DumpRow], None], state: RowState | None = None) -> None:
        """With a state, reading continues after its `n_bytes`."""
        self._name = name
        self._receive = receive
        self._rest = b""  # the beginning of a line
        self._n_skipped = 0  # bytes of the present line, which is too long
        self._n_bytes, self._n_lines, self._n_rows, self._is_closed = state or RowState()

    @property
    def state(self) -> RowState | None:
        """What was read up to the last end of a line; None inside a line that is too long."""
        if self._n_skipped:
            return None
        return RowState(self._n_bytes - len(self._rest), self._n_lines, self._n_rows, self._is_closed)

    def feed(self, block: bytes) -> None:
        """Reads the next bytes. Raises InvalidFileError for a document type, which may declare entities."""
        self._n_bytes += len(block)
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()
        if lines and self._n_skipped:
            self._send_problem(LONG_ROW, self._n_skipped + len(lines.pop(0)))
            self._n_skipped = 0
        self._read(lines)
        if self._n_skipped or len(self._rest) > MAX_ROW_BYTES:
            self._n_skipped += len(self._rest)
            self._rest = b""

    def close(self) -> None:
        """Reads what is left. Raises InvalidFileError if the file has no row."""
        if self._n_skipped:
            self._send_problem(LONG_ROW, self._n_skipped + len(self._rest))
        else:
            self._read([self._rest])
        if not self._n_rows:
            raise InvalidFileError(
                f'{self._name} has no line `<row Id="..." ... />`: it is no file of a Stack Exchange dump'
            )
        if not self._is_closed:
            self._send_problem(TRUNCATED, 0)

    def _read(self, lines: list[bytes]) -> None:
        rows: list[tuple[bytes, int]] = []  # that follow one another, and the sizes of their lines
        for line in lines:
            text = line.strip()
            if len(text) <= MAX_ROW_BYTES and text.startswith(b"<row ") and text.endswith(b"/>"):
                rows.append((text, len(line) + 1))
                continue
            self._read_rows(rows)
            rows = []
            if len(text) > MAX_ROW_BYTES:
                self._send_problem(LONG_ROW, len(line))
            else:
                self._read_other(text)
        self._read_rows(rows)

    def _read_rows(self, rows: list[tuple[bytes, int]]) -> None:
        for attributes, (_, size) in zip(_parse_rows([text for text, _ in rows]), rows, strict=True):
            self._n_lines += 1
            self._n_rows += attributes is not None
            problem = DAMAGED_ROW if attributes is None else None
            self._receive(DumpRow(attributes or {}, size, self._n_lines, problem))

    def _read_other(self, text: bytes) -> None:
        """A line that is not a row: the head, the root element, or a part of a damaged row."""
        if _DECLARATION.search(text):
            raise InvalidFileError(
                f"{self._name} declares a document type, which no file of a Stack Exchange dump does: download it again"
            )
        match = _AROUND_ROWS.fullmatch(text)
        if match is None:
            self._send_problem(DAMAGED_ROW, len(text))
        else:
            self._n_lines += 1
            self._is_closed |= match["end"] is not None

    def _send_problem(self, problem: str, n_bytes: int) -> None:
        self._n_lines += 1
        self._receive(DumpRow({}, n_bytes, self._n_lines, problem))


def _parse_rows(lines: list[bytes]) -> list[dict[str, str] | None]:
    """The attributes of each row; None for a damaged one. All are parsed at once, and one by one only if that fails."""
    rows = _parse(b"\n".join(lines))
    if rows is not None and len(rows) == len(lines):
        return [*rows]
    single = (_parse(line) for line in lines)
    return [found[0] if found is not None and len(found) == 1 else None for found in single]


def _parse(data: bytes) -> list[dict[str, str]] | None:
    """The attributes of the rows in some bytes of UTF-8; None if they are not well-formed XML."""
    rows: list[dict[str, str]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            rows.append(attributes)

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    try:
        parser.Parse(b"<rows>" + data + b"</rows>", True)
    except expat.ExpatError:
        return None
    return rows
