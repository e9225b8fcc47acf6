"""Replaces e-mail addresses (InCoder, section 3.1)."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from codekiln.corpus.steps.step import Draft, Step
from codekiln.extras import import_optional

REPLACEMENT = "removed@example.com"

# The paper's expression is not published. Bounded repetitions keep it linear, and the look-behind starts an address at its
# first character only. A name after the last dot that is called or indexed belongs to a matrix product, not to an address.
_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9._%+-])(?P<user>[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63})"
    r"@(?P<domain>(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9_(\[-])"
)
_VERSION = re.compile(r"\d+\.\d")  # react@18.3.0-canary.abc


@dataclass(frozen=True, kw_only=True)
class RedactEmails(Step):
    """Replaces e-mail addresses by `REPLACEMENT`."""

    columns: ClassVar = {"emails": int}

    def edit_document(self, draft: Draft) -> None:
        draft.text, draft.columns["emails"] = redact_emails(draft.text)


def redact_emails(text: str) -> tuple[str, int]:
    """The text with each address replaced, and how many were replaced now."""
    if not _may_hold_address(text):
        return text, 0
    found = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal found
        user, domain = match["user"], match["domain"]
        escape = ""
        # In a string, the first letter may belong to an escape: "\\nme@example.org".
        if _is_escaped(text, match.start()):
            escape, user = user[:1], user[1:]
        if not user or not _is_address(text, match, user, domain):
            return match.group()
        found += match.group() != REPLACEMENT
        return escape + REPLACEMENT

    return _ADDRESS.sub(replace, text), found


def _is_address(text: str, match: re.Match[str], user: str, domain: str) -> bool:
    """Whether user@domain is an address, and not a remote of git, a version, or code."""
    is_remote = text[match.end() : match.end() + 1] == ":" and text[match.end() + 1 : match.end() + 2].strip() != ""
    if is_remote or user == "git" or _VERSION.match(domain):
        return False
    return _has_real_top_level(domain.lower())


def _is_escaped(text: str, at: int) -> bool:
    """Whether an odd number of backslashes precedes a position."""
    n = 0
    while n < at and text[at - 1 - n] == "\\":
        n += 1
    return n % 2 == 1


def _has_real_top_level(domain: str) -> bool:
    """Whether the last label is a top-level domain that exists, by the Public Suffix List."""
    return _suffixes().publicsuffix(domain) is not None


@lru_cache(maxsize=1)
def _suffixes() -> Any:
    return import_optional("publicsuffixlist", "corpus").PublicSuffixList(accept_unknown=False)


def _may_hold_address(text: str) -> bool:
    """Whether an @ is between two characters that an address may have there. Decorators have none before it."""
    at = text.find("@")
    while at != -1:
        if 0 < at < len(text) - 1 and not text[at - 1].isspace() and text[at + 1].isalnum():
            return True
        at = text.find("@", at + 1)
    return False
