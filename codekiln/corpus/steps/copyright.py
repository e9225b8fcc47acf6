"""Removes copyright notices at the beginning of files, as OpenCoder does (arXiv 2411.04905, section 2.1).

They are the longest text that files of different projects share, word for word. A model that learned them would begin every
file with one, and a held-out file would share them with the training split. The license of each document stays in its
metadata.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from codekiln.corpus.steps.step import Draft, Drop, Step

# The signs of line comments, and the ends of block comments, by language.
_HASH, _SLASH, _BLOCK = ("#",), ("//",), ("/*", "*/")
_C_LIKE = (
    *("C", "C++", "C#", "Dart", "Go", "Java", "JavaScript", "Kotlin", "Rust", "Scala", "Swift", "TypeScript"),
)  # fmt: skip
_COMMENTS: Mapping[str, tuple[tuple[str, ...], tuple[str, str] | None]] = {
    **dict.fromkeys(("Python", "Jupyter", "Perl", "R", "Ruby", "Shell", "Julia"), (_HASH, None)),
    **dict.fromkeys(_C_LIKE, (_SLASH, _BLOCK)),
    "PHP": (("#", "//"), _BLOCK),
    "CSS": ((), _BLOCK),
    "HTML": ((), ("<!--", "-->")),
    "SQL": (("--",), _BLOCK),
    "Lua": (("--(?!\\[)",), None),  # --[[ begins a block
    "Haskell": (("--",), ("{-", "-}")),
    "Common Lisp": ((";",), None),
    "Matlab": (("%",), None),
}
_END = r"(?:\r\n?|\n|\Z)"
# Lines before a notice that are kept: an interpreter, an encoding, and the first line of PHP.
_FIRST_LINES = re.compile(rf"(?:#![^\r\n]*{_END}|#[^\r\n]*coding[:=][^\r\n]*{_END}|<\?php[ \t]*{_END})*")
_NOTICE = re.compile(r"copyright|SPDX-License-Identifier|licensed under|all rights reserved", re.IGNORECASE)
MAX_NOTICES = 4  # comments at the beginning, for example one of each author
MAX_NOTICE_CHARACTERS = 20_000
ONLY_NOTICE = "only a copyright notice"


@dataclass(frozen=True, kw_only=True)
class CopyrightNotices(Step):
    """Removes comments at the beginning of a file that hold a copyright notice or name a license.

    It comes after the filters, which look for phrases of generators in such comments.
    """

    columns: ClassVar = {"notices": int}

    def check_document(self, draft: Draft) -> Drop | None:
        rest, n = remove_notices(draft.text, draft.language)
        return Drop(ONLY_NOTICE) if n and not rest.strip() else None

    def edit_document(self, draft: Draft) -> None:
        draft.text, draft.columns["notices"] = remove_notices(draft.text, draft.language)


def remove_notices(text: str, language: str) -> tuple[str, int]:
    """The text without the notices at its beginning, and how many were removed. Other comments stay.

    A text in a language without known comments, or with a notice of more than `MAX_NOTICE_CHARACTERS`, is not changed.
    """
    comment_pattern = _comment_pattern(language)
    first = _FIRST_LINES.match(text)
    at = start = first.end() if first else 0
    n = 0
    while comment_pattern is not None and n < MAX_NOTICES:
        limit = at + MAX_NOTICE_CHARACTERS
        comment = comment_pattern.match(text, at, limit)
        if comment is None or not _NOTICE.search(comment.group()) or comment.end() == limit < len(text):
            break
        at = comment.end()
        n += 1
    return (text[:start] + text[at:], n) if n else (text, 0)


@cache
def _comment_pattern(language: str) -> re.Pattern[str] | None:
    """A comment of whole lines with the blank lines around it; None if the comments of a language are not known."""
    if language not in _COMMENTS:
        return None
    signs, block = _COMMENTS[language]
    kinds = [rf"{sign}[^\r\n]*{_END}(?:[ \t]*{sign}[^\r\n]*{_END})*" for sign in signs]
    if block is not None:
        kinds.append(rf"{re.escape(block[0])}(?s:.*?){re.escape(block[1])}[ \t]*{_END}")
    return re.compile(rf"\s*(?:{'|'.join(kinds)})[\r\n]*")
