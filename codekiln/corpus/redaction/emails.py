"""Finds e-mail addresses (InCoder, section 3.1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from codekiln.corpus.redaction.rules import Match
from codekiln.extras import import_optional

REPLACEMENT = b"removed@example.com"
MAX_USER_BYTES = 64  # RFC 5321, section 4.5.3.1.1

# The paper's expression is not published. Bounded repetitions keep it linear. A name after the last dot that is called or
# indexed belongs to a matrix product, not to an address.
_USER = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._%+-"
_DOMAIN = re.compile(rb"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_(\[-])")
_VERSION = re.compile(rb"\d+\.\d")  # react@18.3.0-canary.abc


@dataclass(frozen=True)
class EmailAddresses:
    """E-mail addresses whose top-level domain exists, by the Public Suffix List. Remotes of git and code are none."""

    name: ClassVar = "email"
    gate: ClassVar = r"[A-Za-z0-9._%+-]@[A-Za-z0-9-]+\.[A-Za-z0-9-]"
    is_generated: ClassVar = False

    def find(self, data: bytes) -> Iterator[Match]:
        end = 0  # of the last candidate
        at = data.find(b"@")
        while at != -1:
            before = data[max(0, at - MAX_USER_BYTES - 1) : at]
            start = at - len(before) + len(before.rstrip(_USER))
            is_user = end <= start < at <= start + MAX_USER_BYTES and data[start] != ord(".")
            domain = _DOMAIN.match(data, at + 1) if is_user else None
            if domain is not None:
                end = domain.end()
                # In a string, the first letter may belong to an escape: "\\nme@example.org".
                start += _is_escaped(data, start)
                user = data[start:at]
                if data[start:end] != REPLACEMENT and user and _is_address(data, end, user, domain.group()):
                    yield Match(self.name, start, end, REPLACEMENT)
            at = data.find(b"@", at + 1)


def _is_address(data: bytes, end: int, user: bytes, domain: bytes) -> bool:
    """Whether user@domain, which ends at `end`, is an address, and not a remote of git, a version, or code."""
    is_remote = data[end : end + 1] == b":" and data[end + 1 : end + 2].strip() != b""
    if is_remote or user in (b"git", b"removed-password") or _VERSION.match(domain):
        return False
    return _has_real_top_level(domain.lower())


def _is_escaped(data: bytes, at: int) -> bool:
    """Whether an odd number of backslashes precedes a position."""
    n = 0
    while n < at and data[at - 1 - n] == ord("\\"):
        n += 1
    return n % 2 == 1


@lru_cache(maxsize=4096)
def _has_real_top_level(domain: bytes) -> bool:
    """Whether the last label is a top-level domain that exists, by the Public Suffix List."""
    return _suffixes().publicsuffix(domain.decode("ascii")) is not None


@lru_cache(maxsize=1)
def _suffixes() -> Any:
    return import_optional("publicsuffixlist", "corpus").PublicSuffixList(accept_unknown=False)


EMAILS = EmailAddresses()
