"""A member of a tar or zip archive, and which names members may have."""

from typing import NamedTuple

LINK = "link or device"
SPARSE = "sparse file"
ENCRYPTED = "encrypted member"
OTHER_METHOD = "unknown compression method"
UNKNOWN_MEMBER = "unknown kind of member"
DAMAGED_MEMBER = "damaged member"
UNSAFE_NAME = "unsafe name"


class Member(NamedTuple):
    """`content` is None for a member with a problem and for one that is too large. A damaged archive has no name."""

    name: str
    size: int
    content: bytes | None = None
    problem: str | None = None


def is_unsafe(name: str) -> bool:
    """Whether a name is absolute, empty, or leads out of the archive."""
    parts = name.split("/")
    return name.startswith("/") or ".." in parts or "\0" in name or not clean_name(name)


def clean_name(name: str) -> str:
    """A name without empty parts and without `.`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
