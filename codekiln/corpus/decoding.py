"""Bytes of a source file to text: UTF-8 with or without a mark, UTF-16 with a mark, and Python's encoding comments."""

import codecs
import re

# A file in another encoding is dropped; these are the reasons.
NOT_UTF8 = "not UTF-8"
DAMAGED_UTF16 = "damaged UTF-16"
UNKNOWN_ENCODING = "unknown encoding"

# PEP 263: in one of the first two lines.
_COOKIE = re.compile(rb"\A(?:[^\r\n]*\r?\n)?[ \t\f]*#[^\r\n]*?coding[:=][ \t]*([-\w.]+)")
# Encodings that files declare. A codec of Python may do anything, so others are not looked up.
_ENCODINGS = re.compile(
    r"(utf-?8(-sig)?|ascii|latin-?1|iso-?8859-?\d{1,2}|cp\d{3,4}|windows-?\d{3,4}|koi8-[ru]|mac-?roman|gbk|gb2312|gb18030"
    r"|big5(hkscs)?|shift-?jis|s-?jis|euc-?(jp|kr)|iso-?2022-?jp)"
)


_UTF16 = re.compile(r"utf-?(16|32)(-?[bl]e)?")


class UndecodableError(ValueError):
    """The bytes are not text in a supported encoding; the message is the reason."""


def decode_source(data: bytes, path: str) -> str:
    """The text of a file, without a byte order mark. Raises UndecodableError with the reason.

    A mark would make twins of equal files, and hide the first word of a file.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decode(data, "utf-16", DAMAGED_UTF16)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if not path.lower().endswith((".py", ".pyi", ".pyw")) or (cookie := _COOKIE.search(data)) is None:
            raise UndecodableError(NOT_UTF8) from None
    encoding = _encoding_name(cookie[1].decode("ascii"))
    if not _ENCODINGS.fullmatch(encoding):
        raise UndecodableError(UNKNOWN_ENCODING)
    return _decode(data, encoding, NOT_UTF8)


def decode_as(data: bytes, encoding: str) -> str:
    """The text of bytes whose encoding is known, without a byte order mark. Raises UndecodableError with the reason."""
    name = _encoding_name(encoding)
    if not (_ENCODINGS.fullmatch(name) or _UTF16.fullmatch(name)):
        raise UndecodableError(UNKNOWN_ENCODING)
    return _decode(data, name, f"not {name.upper()}").removeprefix("\ufeff")


def _encoding_name(encoding: str) -> str:
    return encoding.lower().replace("_", "-")


def is_utf8(text: str) -> bool:
    """Whether a text is valid UTF-8. Other bytes are lone surrogates, which no record can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode(data: bytes, encoding: str, reason: str) -> str:
    try:
        text = data.decode(encoding)
        text.encode("utf-8")  # decoders of other encodings may produce lone surrogates
    except (UnicodeError, LookupError):
        raise UndecodableError(reason) from None
    return text
