"""Exact duplicates by InCoder's key: the alphanumeric tokens of a file."""

import hashlib
from pathlib import PurePosixPath

_IS_WORD = bytes(byte if byte >= 0x80 or chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in range(256))


def duplicate_key(path: str, text: str) -> str:
    """(file extension, number of alphanumeric tokens, MD5 of their sequence) as one string: InCoder, section 3.1.

    Characters beyond ASCII count as letters. The paper keeps the keys in a Bloom filter. Codekiln compares them
    exactly, so nothing is dropped by accident.
    """
    words = text.encode().translate(_IS_WORD).split()
    digest = hashlib.md5(b" ".join(words), usedforsecurity=False).hexdigest()
    return f"{PurePosixPath(path).suffix.lower()}:{len(words)}:{digest}"
