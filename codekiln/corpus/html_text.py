"""HTML of posts and of rendered Markdown as text."""

import threading
from typing import Any

from codekiln.extras import import_optional

# Elements that begin and end a line.
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "br", "dd", "details", "div", "dl", "dt", "figcaption"}
    | {"figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li"}
    | {"main", "nav", "ol", "p", "section", "summary", "table", "tr", "ul"}
)
_CELLS = frozenset({"td", "th"})
_DROPPED = frozenset({"head", "script", "style", "template", "title"})

_parsers = threading.local()  # making a parser takes longer than parsing a post


def html_to_text(html: str, *, is_code_marked: bool) -> str:
    """The text of HTML: blocks and line breaks are lines, links are their text, images and comments are dropped.

    `<pre>` is kept character by character, with a line end at its end; the parser makes every line end `\\n`. If
    `is_code_marked`, it is between lines `<code>` and `</code>`. Elsewhere, runs of white space in a line are one space, and
    empty lines are dropped. The time is linear in the length, for any nesting.
    """
    found = vars(_parsers)
    parser = found.pop(str(is_code_marked), None)
    if parser is None:
        etree = import_optional("lxml.etree", "corpus")
        parser = etree.HTMLParser(target=_Lines(is_code_marked), huge_tree=True)
    parser.feed(html)
    text = str(parser.close())
    found[str(is_code_marked)] = parser  # not after an exception: its state would be unknown
    return text


class _Lines:
    """Receives what the parser finds, and collects lines. The parser also closes what the text leaves open."""

    def __init__(self, is_code_marked: bool) -> None:
        self._is_code_marked = is_code_marked
        self._reset()

    def _reset(self) -> None:
        self._lines: list[str] = []
        self._open: list[str] = []  # text of lines that have not ended
        self._code: list[str] = []
        self._n_pre = self._n_dropped = 0  # nesting

    def start(self, tag: str, attributes: Any) -> None:
        if tag in _DROPPED:
            self._n_dropped += 1
        elif tag == "pre":
            self._end_line()
            self._n_pre += 1
        elif self._n_pre:
            if tag == "br":
                self._code.append("\n")
        elif tag in _BLOCKS:
            self._end_line()
        elif tag in _CELLS:
            self._open.append(" ")

    def end(self, tag: str) -> None:
        if tag in _DROPPED:
            self._n_dropped -= 1
        elif tag == "pre":
            self._n_pre -= 1
            if not self._n_pre:
                self._end_code()
        elif not self._n_pre and tag in _BLOCKS:
            self._end_line()

    def data(self, text: str) -> None:
        if self._n_dropped:
            return
        if self._n_pre:
            self._code.append(text)
        elif self._open or text != "\n":
            self._open.append(text)

    def comment(self, text: str) -> None:
        pass

    def pi(self, target: str, data: str | None = None) -> None:
        pass

    def close(self) -> str:
        """The text; the next one begins."""
        self._end_line()
        text = "\n".join(self._lines)
        self._reset()
        return text

    def _end_line(self) -> None:
        if self._open:
            for line in "".join(self._open).split("\n"):
                if words := line.split():
                    self._lines.append(" ".join(words))
            self._open.clear()

    def _end_code(self) -> None:
        code = "".join(self._code).removesuffix("\n")
        self._lines += ["<code>", code, "</code>"] if self._is_code_marked else [code]
        self._code.clear()
