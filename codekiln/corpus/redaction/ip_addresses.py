"""Finds IP addresses of the public Internet, and not versions or other numbers with dots."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Network, IPv6Address, IPv6Network
from typing import Any, ClassVar

from codekiln.corpus.redaction.rules import Match, compile_re2

IPV4_REPLACEMENT, IPV6_REPLACEMENT = b"192.0.2.1", b"2001:db8::1"  # for documentation: RFC 5737 and RFC 3849

# IANA's registries of special-purpose addresses, multicast, and what is reserved. Python's `is_global` differs by version.
_SPECIAL_V4 = tuple(
    (int(network.network_address), int(network.broadcast_address))
    for network in map(
        IPv4Network,
        (
            *(
                "0.0.0.0/8",
                "10.0.0.0/8",
                "100.64.0.0/10",
                "127.0.0.0/8",
                "169.254.0.0/16",
                "172.16.0.0/12",
                "192.0.0.0/24",
            ),
            *("192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        ),
    )
)
_SPECIAL_V4_STARTS = [start for start, _ in _SPECIAL_V4]
_SPECIAL_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))

# Services that programs name by their address, and numbers that examples use.
_WELL_KNOWN_V4 = frozenset(
    tuple(map(int, address.split(".")))
    for address in (
        *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "149.112.112.112", "208.67.222.222", "208.67.220.220"),
        *("64.6.64.6", "64.6.65.6", "94.140.14.14", "94.140.15.15", "223.5.5.5", "223.6.6.6", "119.29.29.29"),
        *("180.76.76.76", "168.63.129.16"),
        *("12.34.56.78", "11.22.33.44", "123.45.67.89", "98.76.54.32", "123.123.123.123"),
    )
)
_WELL_KNOWN_V6 = frozenset(
    IPv6Address(address)
    for address in (
        *("2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111", "2606:4700:4700::1001"),
        *("2620:fe::fe", "2620:fe::9", "2620:119:35::35", "2620:119:53::53"),
    )
)
_IPV4 = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
_IPV6 = r"[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}"  # all public ones are in 2000::/3
# The byte before is part of the match, and the bytes after are looked at later: they may begin the next address.
_CANDIDATE = rf"(?:\A|[^0-9A-Za-z_.])({_IPV4})|(?:\A|[^0-9A-Za-z_.:])({_IPV6})"
_WINDOW_BYTES = 48  # of the line before a candidate

# Before a version, a section or an object identifier: a word in lower case, an operator, or a product and a slash.
_NUMBERED = re.compile(
    rb"version|release|revision|firmware|section|chapter|clause|\xc2\xa7|rfc| (?:ver|rev|sec)[ .]|[ \"]oid|objectidentifier"
)
_OPERATOR = re.compile(rb"(?:[=~!<>]=|~>|\^)[ \t]*\Z|[a-z][/-]\Z")
# After a number that continues, or has a suffix such as `-beta`.
_CONTINUED = re.compile(rb"[0-9A-Za-z_]|[.+-][0-9]*[A-Za-z]|\.[0-9]")
_CONTINUED_V6 = re.compile(rb"[0-9A-Za-z_:]|\.[0-9]")
_LINE_START, _HEADING = re.compile(rb"[ \t]*(?:[#*/;%]+[ \t]*)?[\"']?\Z"), re.compile(rb"\.?[ \t]+[A-Z][a-z]")


@dataclass(frozen=True)
class IpAddresses:
    """Public IPv4 and IPv6 addresses.

    The step keeps addresses that the registries of IANA do not list as global (private, loopback, link-local, documentation,
    multicast, masks), well-known name servers, and networks (the last number is 0). It keeps numbers after a word
    such as "version" or an operator of a requirement, those with another number of parts, and those with single digits only.
    """

    name: ClassVar = "ip-address"
    gate: ClassVar = r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:"
    is_generated: ClassVar = False

    def find(self, data: bytes) -> Iterator[Match]:
        for match in _candidates().finditer(data):
            is_v4 = match.start(1) != -1
            start, end = match.span(1 if is_v4 else 2)
            if is_v4:
                if is_public_ipv4(data[start:end]) and not _is_number(data, start, end):
                    yield Match(self.name, start, end, IPV4_REPLACEMENT)
            elif not _CONTINUED_V6.match(data, end) and is_public_ipv6(data[start:end]):
                yield Match(self.name, start, end, IPV6_REPLACEMENT)


@lru_cache(maxsize=4096)
def is_public_ipv4(spelled: bytes) -> bool:
    """Whether four numbers are the address of one host on the Internet."""
    parts = spelled.split(b".")
    if parts[3] == b"0" or spelled.startswith((b"2.5.4.", b"2.5.29.", b"1.3.101.")):  # networks; object identifiers
        return False
    if len(set(parts)) == 1 or all(len(part) == 1 for part in parts):
        return False
    numbers = tuple(map(int, parts))
    if max(numbers) > 255 or any(part[0] == ord("0") and len(part) > 1 for part in parts) or numbers in _WELL_KNOWN_V4:
        return False
    value = int.from_bytes(bytes(numbers), "big")
    at = bisect_right(_SPECIAL_V4_STARTS, value) - 1
    return value > _SPECIAL_V4[at][1]


def is_public_ipv6(spelled: bytes) -> bool:
    """Whether it is the address of one host on the Internet."""
    try:
        address = IPv6Address(spelled.decode("ascii"))
    except AddressValueError:
        return False
    is_special = any(address in network for network in _SPECIAL_V6)
    return not is_special and not spelled.endswith(b"::") and address not in _WELL_KNOWN_V6


def _is_number(data: bytes, start: int, end: int) -> bool:
    """Whether the text around says that four numbers are a version or a section."""
    if _CONTINUED.match(data, end, end + _WINDOW_BYTES):
        return True
    window = data[max(0, start - _WINDOW_BYTES) : start]
    line = window[window.rfind(b"\n") + 1 :].lower()
    clause = b" " + line[max(line.rfind(b","), line.rfind(b";")) + 1 :]
    if _NUMBERED.search(clause) or _OPERATOR.search(line[-6:]):
        return True
    begins_line = len(line) < len(window) or start <= _WINDOW_BYTES
    return begins_line and _LINE_START.match(line) is not None and _HEADING.match(data, end) is not None


@lru_cache(maxsize=1)
def _candidates() -> Any:
    return compile_re2(_CANDIDATE)


IP_ADDRESSES = IpAddresses()
