"""What a rule of redaction is, and how several rules search a document in one pass.

Rules search the UTF-8 bytes of a text. Each has a gate: an expression that every match contains. One automaton of RE2 looks
for all gates at once, and only the rules whose gates occur search the document. RE2 takes linear time on any text.
"""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from codekiln.extras import import_optional


class Match(NamedTuple):
    """A range of bytes that is replaced."""

    rule: str
    start: int
    end: int
    replacement: bytes


class Rule(Protocol):
    """A small frozen object that finds one kind of personal data or secret. Only ASCII characters are replaced."""

    @property
    def name(self) -> str:
        """In the manifest and in `redactions.parquet`."""
        ...

    @property
    def gate(self) -> str:
        """An expression of RE2. A document without it has no match. It should be rare, and short: it is searched everywhere."""
        ...

    @property
    def is_generated(self) -> bool:
        """Whether matches are random values that no person chose, so that their hash cannot be reversed by guessing."""
        ...

    def find(self, data: bytes) -> Iterator[Match]:
        """The matches in order, without overlaps. A replacement is not a match."""
        ...


class RuleSet:
    """Rules with their compiled gates. Raises MissingPackageError if RE2 is not installed."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        re2 = import_optional("re2", "corpus")
        self._gates = re2.Set.SearchSet(_options())
        for rule in self.rules:
            self._gates.Add(rule.gate.encode("ascii"))
        self._gates.Compile()

    def __reduce__(self) -> tuple[Any, ...]:
        return RuleSet, (self.rules,)  # compiled again in another process

    def find(self, data: bytes) -> list[Match]:
        """All matches in order. Where matches overlap, that of the rule that comes first counts."""
        passed = self._gates.Match(data)
        if not passed:
            return []
        found: list[Match] = []
        for number in sorted(passed):
            new = list(self.rules[number].find(data))
            found = _merge(found, new) if found and new else found or new
        return found


def compile_re2(pattern: str) -> Any:
    """An expression of RE2 for bytes: a byte is a character, and classes are those of ASCII."""
    return import_optional("re2", "corpus").compile(pattern.encode("ascii"), _options())


def compile_re2_ignoring_case(pattern: str) -> Any:
    """An expression of RE2 for UTF-8, in upper and lower case."""
    re2 = import_optional("re2", "corpus")
    options = re2.Options()
    options.case_sensitive = False
    return re2.compile(pattern.encode(), options)


def _options() -> Any:
    options = import_optional("re2", "corpus").Options()
    options.encoding = options.Encoding.LATIN1
    return options


def replace_matches(data: bytes, matches: Sequence[Match]) -> bytes:
    """The bytes with each match replaced. Matches are in order."""
    parts, at = [], 0
    for match in matches:
        parts += [data[at : match.start], match.replacement]
        at = match.end
    return b"".join([*parts, data[at:]])


def _merge(first: list[Match], others: list[Match]) -> list[Match]:
    """Both lists in order, without the matches of `others` that overlap one of `first`."""
    merged, at = list(first), 0
    for match in others:
        while at < len(first) and first[at].end <= match.start:
            at += 1
        if at == len(first) or match.end <= first[at].start:
            merged.append(match)
    return sorted(merged, key=attrgetter("start"))
