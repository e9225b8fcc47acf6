"""Replaces e-mail addresses (InCoder, section 3.1)."""

import re

REPLACEMENT = "removed@example.com"

# The paper's expression is not published. Bounded repetitions keep it linear, and the look-behind starts an address at its
# first character only. A name after the last dot that is called or indexed belongs to a matrix product, not to an address.
_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}"
    r"@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_(\[-])"
)


def redact_emails(text: str) -> tuple[str, int]:
    """The text with each address replaced, and how many were replaced now."""
    if not _may_hold_address(text):
        return text, 0
    found = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal found
        found += match.group() != REPLACEMENT
        return REPLACEMENT

    return _ADDRESS.sub(replaced, text), found


def _may_hold_address(text: str) -> bool:
    """Whether an @ is between two characters that an address may have there. Decorators have none before it."""
    at = text.find("@")
    while at != -1:
        if 0 < at < len(text) - 1 and not text[at - 1].isspace() and text[at + 1].isalnum():
            return True
        at = text.find("@", at + 1)
    return False
