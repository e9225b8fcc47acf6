"""Counts over the characters and lines of a text, in one compiled pass over its bytes."""

from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt

# Bits of a class of characters: letters, digits and underscores; hexadecimal digits; other visible characters.
WORD, HEX, SIGN = np.uint8(1), np.uint8(4), np.uint8(8)
_NEWLINE, _RETURN = 10, 13


_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def count_text(data: npt.NDArray[np.uint8], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Counts over valid UTF-8; `classes` has the class of each code point.

    They are, in order: characters; lines; the longest line and the sum of all lines in characters, without line ends; the same
    two in tokens; word characters; hexadecimal digits.
    """
    is_ascii = True
    for byte in data:
        is_ascii &= byte < 0x80
    counts: npt.NDArray[np.int64] = _count_ascii(data, classes) if is_ascii else _count_utf8(data, classes)
    return counts


@_compiled
def _count_ascii(data: npt.NDArray[np.uint8], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """`count_text` of ASCII. Line ends are the only branch of the loop."""
    n_word = n_hex = n_tokens = n_lines = longest = total = most_tokens = 0
    before = start = tokens_before = 0  # whether the last character belongs to a word; the beginning of the line
    for at in range(len(data)):
        kind = int(classes[data[at]])
        is_word = kind & 1
        n_word += is_word
        n_hex += (kind >> 2) & 1
        n_tokens += (is_word & (before ^ 1)) + (kind >> 3)
        before = is_word
        if data[at] == _NEWLINE or data[at] == _RETURN:
            length = at - start
            if length > 0 or at == 0 or data[at] == _RETURN or data[at - 1] != _RETURN:  # \r\n ends one line
                n_lines += 1
                total += length
                longest, most_tokens = max(longest, length), max(most_tokens, n_tokens - tokens_before)
            start, tokens_before = at + 1, n_tokens
    if start < len(data) or n_lines == 0:
        length = len(data) - start
        n_lines += 1
        total += length
        longest, most_tokens = max(longest, length), max(most_tokens, n_tokens - tokens_before)
    return np.array((len(data), n_lines, longest, total, most_tokens, n_tokens, n_word, n_hex))


@_compiled
def _count_utf8(data: npt.NDArray[np.uint8], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """`count_text` of any text."""
    n_characters = n_lines = n_word = n_hex = 0
    longest = total = most_tokens = total_tokens = 0
    line = tokens = 0  # of this line
    is_inside_word = is_after_return = False
    at = 0
    while at < len(data):
        code = np.uint32(data[at])
        if code < 0x80:
            at += 1
        elif code < 0xE0:
            code = (code & np.uint32(0x1F)) << np.uint32(6) | (data[at + 1] & np.uint32(0x3F))
            at += 2
        elif code < 0xF0:
            code = (
                (code & np.uint32(0x0F)) << np.uint32(12)
                | (data[at + 1] & np.uint32(0x3F)) << np.uint32(6)
                | (data[at + 2] & np.uint32(0x3F))
            )
            at += 3
        else:
            code = (
                (code & np.uint32(0x07)) << np.uint32(18)
                | (data[at + 1] & np.uint32(0x3F)) << np.uint32(12)
                | (data[at + 2] & np.uint32(0x3F)) << np.uint32(6)
                | (data[at + 3] & np.uint32(0x3F))
            )
            at += 4
        n_characters += 1
        if code in (_NEWLINE, _RETURN):
            if not (code == _NEWLINE and is_after_return):  # \\r\\n ends one line
                n_lines += 1
                longest, most_tokens = max(longest, line), max(most_tokens, tokens)
                total += line
                total_tokens += tokens
                line = tokens = 0
            is_after_return = code == _RETURN
            is_inside_word = False
            continue
        is_after_return = False
        kind = classes[code]
        line += 1
        is_word = (kind & WORD) != 0
        if is_word:
            n_word += 1
            tokens += not is_inside_word
        elif kind & SIGN:
            tokens += 1
        if kind & HEX:
            n_hex += 1
        is_inside_word = is_word
    if line > 0 or n_lines == 0:
        n_lines += 1
        longest, most_tokens = max(longest, line), max(most_tokens, tokens)
        total += line
        total_tokens += tokens
    return np.array((n_characters, n_lines, longest, total, most_tokens, total_tokens, n_word, n_hex))


@lru_cache(maxsize=1)
def character_classes() -> npt.NDArray[np.uint8]:
    """The class of each Unicode code point, as bits. Computed once, which takes about 0.25 s."""
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(0x110000):
        character = chr(code)
        if character.isalnum() or character == "_":
            kinds[code] = WORD
        elif not character.isspace():
            kinds[code] = SIGN
    for character in "0123456789abcdefABCDEF":
        kinds[ord(character)] |= HEX
    return kinds
