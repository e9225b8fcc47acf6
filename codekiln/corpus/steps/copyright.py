"""Removes copyright notices at the beginning of files, as OpenCoder does (arXiv 2411.04905, section 2.1).

They are the longest text that files of different projects share, word for word. A model that learned them would begin every
file with one, and a held-out file would share them with the training split. The license of each document stays in its
metadata.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from codekiln.corpus.steps.step import Draft, Step

# What stays before a notice: an interpreter, an encoding, or the first line of PHP.
_FIRST_LINES = re.compile(r"(?:#!.*\n|#.*coding[:=].*\n|<\?php[ \t]*\n)*")
# A comment of whole lines: lines that begin with a sign, or a block.
_LINES = "|".join(rf"{sign}.*(?:\n|\Z)(?:[ \t]*{sign}.*(?:\n|\Z))*" for sign in ("#", "//", "--", ";", "%"))
_BLOCKS = r"/\*(?s:.*?)\*/[ \t]*(?:\n|\Z)|<!--(?s:.*?)-->[ \t]*(?:\n|\Z)"
_COMMENT = re.compile(rf"\s*(?:{_LINES}|{_BLOCKS})\n*")
_NOTICE = re.compile(r"copyright|SPDX-License-Identifier|licensed under|all rights reserved", re.IGNORECASE)
MAX_NOTICES = 4  # comments at the beginning, for example one of each author
MAX_NOTICE_CHARACTERS = 20_000


@dataclass(frozen=True, kw_only=True)
class CopyrightNotices(Step):
    """Removes comments at the beginning of a file that hold a copyright notice or name a license."""

    columns: ClassVar = {"notices": int}

    def edit_document(self, draft: Draft) -> None:
        draft.text, draft.columns["notices"] = remove_notices(draft.text)


def remove_notices(text: str) -> tuple[str, int]:
    """The text without the notices at its beginning, and how many were removed. Other comments stay."""
    first = _FIRST_LINES.match(text)
    at = start = first.end() if first else 0
    n = 0
    while n < MAX_NOTICES:
        comment = _COMMENT.match(text, at, at + MAX_NOTICE_CHARACTERS)
        if comment is None or not _NOTICE.search(comment.group()):
            break
        at = comment.end()
        n += 1
    return (text[:start] + text[at:], n) if n else (text, 0)
