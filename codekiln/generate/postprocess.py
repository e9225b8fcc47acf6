"""Post-processing of completions, as editors want it: pure functions of the text before, the completion and the text after.

The list of steps follows Tabby's editor client (clients/tabby-agent). The rules are Codekiln's own. They read indentation and
brackets only, so they work for all languages and know the grammar of none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, assert_never

# Where a completion ends: at the line end; with the block of the cursor, or at a blank line after it; where the indentation
# falls below that of the line of the cursor; or where the model ended it.
Mode = Literal["line", "block", "scope", "hole"]

TAB_WIDTH = 4
MIN_REPETITIONS = 3  # of lines, at the end of a completion
MIN_REPETITIONS_IN_LINE = 5
MAX_REPEATED_LINES, MAX_REPEATED_CHARACTERS = 16, 60
MIN_SUFFIX_CHARACTERS = (
    3  # without white space, that the beginning of the suffix must have to be found inside a completion
)
MAX_AROUND = 50_000  # characters before and after a cursor that count
LINE_END = re.compile(r"\r\n|\r|\n")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_QUOTES = "\"'`"
_CLOSING_LINE = re.compile(r"\s*([\])}]+[;,)\s]*|end[;,)]*)\s*")  # a line that only closes blocks
_CONTINUING_LINE = re.compile(r"\s*(\}\s*\w|\)\s*[:{-]|(else|elif|except|finally|catch|rescue|elsif)\b)")
_AUTO_CLOSED = re.compile(r"[\])}>\"'`][\])}>\"'`;,:]*")  # what editors insert after the cursor


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Which steps are on. `mode` always applies; benchmarks need "hole" and nothing else, which is `RAW`."""

    mode: Mode = "hole"
    cut_at_suffix: bool = True
    drop_duplicates: bool = True
    cut_repetition: bool = True
    strip_space: bool = True

    @classmethod
    def raw(cls, mode: Mode = "hole") -> "PostProcessing":
        """Only the end that the mode sets."""
        return cls(mode=mode, cut_at_suffix=False, drop_duplicates=False, cut_repetition=False, strip_space=False)


RAW = PostProcessing.raw()


@dataclass(frozen=True)
class Cursor:
    """A place in a file, and how completions there are post-processed. `of` makes one.

    It can be called as `is_finished` with the text alone. Equal cursors are equal functions, unlike bound methods, so that the
    server answers equal requests together.
    """

    prefix: str
    suffix: str
    settings: PostProcessing

    @classmethod
    def of(cls, prefix: str, suffix: str, settings: PostProcessing) -> "Cursor":
        """The place between two texts, of which `MAX_AROUND` characters count."""
        return cls(prefix[-MAX_AROUND:], suffix[:MAX_AROUND], settings)

    @property
    def stop(self) -> tuple[str, ...]:
        """The stop strings of the mode."""
        return ("\n", "\r") if self.settings.mode == "line" else ()

    def postprocess(self, text: str) -> str:
        """`postprocess` at this place."""
        return postprocess(self.prefix, text, self.suffix, self.settings)

    def __call__(self, text: str) -> bool:
        return is_finished(self.prefix, text, self.suffix, self.settings)


def postprocess(prefix: str, text: str, suffix: str, settings: PostProcessing) -> str:
    """The completion `text` after all steps that are on. It is empty if nothing useful is left."""
    if settings.cut_repetition:
        text = cut_repetition(text)
    text = limit_to_mode(prefix, text, suffix, settings.mode)
    if settings.cut_at_suffix:
        text = cut_overlap(cut_where_suffix_begins(text, suffix), suffix)
    if settings.drop_duplicates and is_duplicate(prefix, text, suffix):
        return ""
    return strip_space(text, suffix) if settings.strip_space else text


def is_finished(prefix: str, text: str, suffix: str, settings: PostProcessing) -> bool:
    """Whether the complete lines of `text`, which is still being generated, have all that the steps will keep."""
    lines = text.rpartition("\n")[0]
    kept = limit_to_mode(prefix, lines, suffix, settings.mode)
    if settings.cut_at_suffix:
        kept = cut_where_suffix_begins(kept, suffix)
    return kept != lines


def limit_to_mode(prefix: str, text: str, suffix: str, mode: Mode) -> str:
    """The text up to the end that a mode sets."""
    match mode:
        case "line":
            return LINE_END.split(text, maxsplit=1)[0]
        case "block":
            return limit_to_block(prefix, text, suffix)
        case "scope":
            return limit_to_scope(prefix, text, suffix)
        case "hole":
            return text
        case _:
            assert_never(mode)


def limit_to_scope(prefix: str, text: str, suffix: str) -> str:
    """Ends before the first line with less indentation than the line of the cursor.

    A line that only closes brackets is kept as the last one, if the suffix does not continue or close that block itself.
    """
    lines = text.split("\n")
    base = _base_indentation(prefix, lines)
    for number, line in enumerate(lines[1:], start=1):
        if line.strip() and _indentation(line) < base:
            return "\n".join(lines[: number + _is_wanted_closer(line, suffix, base)])
    return text


def limit_to_block(prefix: str, text: str, suffix: str) -> str:
    """`limit_to_scope`, and ends with the statement or block that the line of the cursor begins, and at a blank line.

    After `def f():` the block is the body. After `let a =` it is the rest of the statement. On a blank line it is the run of
    lines up to the next blank line.
    """
    lines = text.split("\n")
    base = _base_indentation(prefix, lines)
    is_continued = bool(prefix.rpartition("\n")[2].strip())  # the cursor is inside of a line
    is_inside: bool | None = None  # whether the line of the cursor has opened a block
    has_text = bool(lines[0].strip())
    for number, line in enumerate(lines[1:], start=1):
        if not line.strip():
            if has_text:
                return "\n".join(lines[:number])
            continue
        indentation = _indentation(line)
        if indentation < base:
            return "\n".join(lines[: number + _is_wanted_closer(line, suffix, base)])
        if is_continued and indentation == base and (is_inside or (is_inside is None and lines[0].strip())):
            if _CLOSING_LINE.fullmatch(line):
                return "\n".join(lines[: number + 1])
            if not _CONTINUING_LINE.match(line):
                return "\n".join(lines[:number])
        if is_inside is None:
            is_inside = indentation > base
        has_text = True
    return text


def cut_where_suffix_begins(text: str, suffix: str) -> str:
    """Ends where the completion reaches the first lines of the suffix, or the brackets that an editor closed after the cursor.

    A closing bracket counts only if the completion did not open it.
    """
    places = [at for at in (_reach(text, suffix), _auto_closed_place(text, suffix)) if at is not None]
    return text[: min(places)] if places else text


def cut_overlap(text: str, suffix: str) -> str:
    """Without the longest end that is also the beginning of the suffix.

    Words are not cut, and neither is an overlap of brackets and quotes only that closes what the completion opened.
    """
    for length in range(min(len(text), len(suffix)), 0, -1):
        if text.endswith(suffix[:length]) and _is_repeated(text[:-length], suffix[:length]):
            return text[:-length]
    return text


def is_duplicate(prefix: str, text: str, suffix: str) -> bool:
    """Whether the first line of the completion is the next line of the suffix, or the line before it, once more.

    A line that only closes a bracket is a duplicate if the suffix closes all brackets that are open.
    """
    if LINE_END.split(suffix, maxsplit=1)[0].strip():
        return False  # the suffix continues the line, so the line is another one
    before, _, current = prefix.rpartition("\n")
    lines = [current + text.partition("\n")[0], *text.split("\n")[1:]]
    if current.strip() and not text.partition("\n")[0].strip():
        before, lines[0] = prefix, ""
    line = next((each.strip() for each in lines if each.strip()), "")
    following = next((each.strip() for each in suffix.splitlines() if each.strip()), "")
    if _CLOSING_LINE.fullmatch(line):
        return line == following and len(text.split()) == 1 and len(_open(prefix)) <= len(_unopened(suffix))
    previous = next((each.strip() for each in reversed(before.splitlines()) if each.strip()), "")
    return bool(re.search(r"\w", line)) and line in (following, previous)


def cut_repetition(text: str) -> str:
    """Ends after the first of the lines, or of the characters in the last line, that are repeated up to the end."""
    lines = text.split("\n")
    for period in range(1, min(MAX_REPEATED_LINES, len(lines) // MIN_REPETITIONS) + 1):
        # The last repetition may be incomplete in the middle of a line.
        n_equal = _n_equal_at_end(lines, period)
        cut_line = lines[-1 - period].startswith(lines[-1])
        if not n_equal and cut_line:
            n_equal = 1 + _n_equal_at_end(lines[:-1], period)
        is_word = any(re.search(r"\w", line) for line in lines[len(lines) - n_equal - period : len(lines) - n_equal])
        if n_equal >= (MIN_REPETITIONS - 1) * period and is_word:
            return "\n".join(lines[: len(lines) - n_equal])
    last = lines[-1]
    for period in range(1, min(MAX_REPEATED_CHARACTERS, len(last) // MIN_REPETITIONS_IN_LINE) + 1):
        n_equal = _n_equal_at_end(last, period)
        unit = last[len(last) - n_equal - period : len(last) - n_equal]
        is_long = n_equal >= max(20, (MIN_REPETITIONS_IN_LINE - 1) * period)
        if is_long and re.search(r"\w", unit):
            return "\n".join([*lines[:-1], last[: len(last) - n_equal]])
    return text


def strip_space(text: str, suffix: str) -> str:
    """Without spaces at the end, if a line ends there. Text that is white space only becomes empty."""
    if not text.strip():
        return ""
    is_line_end = not LINE_END.split(suffix, maxsplit=1)[0].strip()
    return text.rstrip(" \t") if is_line_end else text


def _indentation(line: str) -> int:
    expanded = line.expandtabs(TAB_WIDTH)
    return len(expanded) - len(expanded.lstrip())


def _base_indentation(prefix: str, lines: list[str]) -> int:
    """The indentation of the line of the cursor; of the first line of the text if that line is blank."""
    current = prefix.rpartition("\n")[2]
    first = current if current.strip() else current + lines[0]
    return _indentation(next((line for line in (first, *lines[1:]) if line.strip()), ""))


def _is_wanted_closer(line: str, suffix: str, base: int) -> bool:
    """Whether a line closes the block of the cursor, and the suffix neither continues the block nor closes it."""
    if not _CLOSING_LINE.fullmatch(line):
        return False
    following = next((each for each in suffix.splitlines()[1:] if each.strip()), "")
    return not following or (_indentation(following) < base and following.strip() != line.strip())


def _reach(text: str, suffix: str) -> int | None:
    """Where the first lines of the suffix are in the text; None if they are not."""
    stop = n_characters = 0
    for match in _LINE.finditer(suffix):
        n_characters += len("".join(match[0].split()))
        if n_characters >= MIN_SUFFIX_CHARACTERS and re.search(r"\w", match[0]):
            stop = match.end()
            break
        if match.end() > len(text) + 2:
            return None
    if not stop:
        return None
    begins_line = suffix[0] in "\r\n"
    wanted = suffix[:stop].strip("\r\n")
    for at in _places_at_line_ends(text, wanted):
        if begins_line:
            if at and text[at - 1] == "\n":
                return at - 1
        elif not (at and _is_word(text[at - 1]) and _is_word(wanted[0])):
            return at
    return None


def _auto_closed_place(text: str, suffix: str) -> int | None:
    """Where the text closes, at the end of a line, what the rest of the line of the suffix closes; None if nowhere."""
    rest = LINE_END.split(suffix, maxsplit=1)[0].strip()
    if not _AUTO_CLOSED.fullmatch(rest):
        return None
    for at in _places_at_line_ends(text, rest, spaces=" \t"):
        if not _open(text[:at]):
            return at
    return None


def _places_at_line_ends(text: str, wanted: str, spaces: str = "") -> Iterator[int]:
    """Where `wanted` is at the end of a line of the text, before any of `spaces`."""
    at = text.find(wanted)
    while at != -1:
        end = at + len(wanted)
        while end < len(text) and text[end] in spaces:
            end += 1
        if end == len(text) or text[end] in "\r\n":
            yield at
        at = text.find(wanted, at + 1)


def _is_repeated(before: str, overlap: str) -> bool:
    """Whether an overlap with the suffix is text that would be there twice."""
    if before and _is_word(before[-1]) and _is_word(overlap[0]):
        return False
    if re.search(r"\w\w", overlap):
        return True
    closers = [character for character in overlap if character in ")]}" or character in _QUOTES]
    pending = _open(before)
    return not (closers and pending and pending[-1] == closers[0])


def _open(text: str) -> list[str]:
    """The closing brackets and quotes that are missing, the innermost last. Quotes end at the line end."""
    stack: list[str] = []
    is_escaped = False
    for character in text:
        quote = stack[-1] if stack and stack[-1] in _QUOTES else None
        if is_escaped:
            is_escaped = False
        elif quote is not None:
            is_escaped = character == "\\"
            if character in (quote, "\n"):
                stack.pop()
        elif character in _QUOTES:
            stack.append(character)
        elif character in _CLOSERS:
            stack.append(_CLOSERS[character])
        elif stack and character == stack[-1]:
            stack.pop()
    return stack


def _unopened(text: str) -> list[str]:
    """The closing brackets whose opening brackets are not in the text."""
    found, stack = list[str](), list[str]()
    for character in text:
        if character in _CLOSERS:
            stack.append(_CLOSERS[character])
        elif character in ")]}":
            if stack:
                stack.pop()
            else:
                found.append(character)
    return found


def _n_equal_at_end(items: list[str] | str, period: int) -> int:
    """How many items at the end equal the item `period` before them."""
    n = 0
    while n + period < len(items) and items[-1 - n] == items[-1 - n - period]:
        n += 1
    return n


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
