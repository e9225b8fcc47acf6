"""Names whose beginning stands before the cursor.

The tokens of a name's beginning are seldom the first tokens of the whole name, so a search for tokens does not find it while it
is typed. Names are therefore searched as text. Each one that is found becomes a text for recall: the tokens before the cursor
that spell the beginning, and the rest of the name.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from codekiln.tokenizer.bpe import Tokenizer

MIN_CHARACTERS = 3  # of the beginning of a name
MAX_CHARACTERS = 100  # of a name: longer ones are data
MAX_NAMES = 8  # with one beginning
_BEGUN = re.compile(rf"(?<!\w)[^\W\d]\w{{{MIN_CHARACTERS - 1},{MAX_CHARACTERS - 1}}}\Z")
_NAME = re.compile(rf"(?<!\w)[^\W\d]\w{{{MIN_CHARACTERS},{MAX_CHARACTERS - 1}}}(?!\w)")


def begun_name(before: str) -> str | None:
    """The name that a text ends in, or the beginning of one; None if it has fewer than `MIN_CHARACTERS` characters."""
    match = _BEGUN.search(before[-MAX_CHARACTERS - 1 :])
    return match[0] if match is not None else None


def begins_in_name(after: str) -> bool:
    """Whether a text begins with a letter, digit or underscore: a name that ends before it is then not complete."""
    return re.match(r"\w", after) is not None


def names_in(text: str) -> set[str]:
    """All names of a text that are long enough to be completed."""
    return set(_NAME.findall(text))


def names_from(names: Sequence[str], begun: str) -> Iterable[str]:
    """The longer names that begin with `begun`, of sorted ones: `MAX_NAMES` at most."""
    first = bisect_left(names, begun)
    found = [name for name in names[first : first + MAX_NAMES + 1] if name.startswith(begun) and name != begun]
    return found[:MAX_NAMES]


def longer_names(begun: str, texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """The longer names in texts that begin with `begun`, the most frequent first, and then the known ones."""
    pattern = re.compile(rf"(?<!\w){re.escape(begun)}\w{{1,{MAX_CHARACTERS}}}(?!\w)")
    counts = Counter(name for text in texts for name in pattern.findall(text))
    counts.update(known)
    return [name for name, _ in counts.most_common(MAX_NAMES)]


def continued(before: Sequence[int], begun: str, names: Iterable[str], tokenizer: Tokenizer) -> list[list[int]]:
    """For each name, the last ids of `before`, which spell `begun`, and those of the rest of the name."""
    table, n_tokens, n_bytes = tokenizer.token_bytes, 0, 0
    while n_bytes < len(begun.encode()) and n_tokens < len(before):
        n_tokens += 1
        n_bytes += len(table[before[-n_tokens]])
    found = []
    for name in names:
        rest = tokenizer.encode(name[len(begun) :])
        if b"".join(table[token] for token in rest) == name[len(begun) :].encode():  # no space is added, for example
            found.append([*before[len(before) - n_tokens :], *rest])
    return found
