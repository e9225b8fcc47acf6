"""Replaces personal data and secrets: e-mail addresses (InCoder, section 3.1), and beyond the paper IP addresses and keys.

Every replacement is recorded in `redactions.parquet`, without the text that was replaced.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.corpus.documents import document_name
from codekiln.corpus.redaction.emails import EMAILS
from codekiln.corpus.redaction.ip_addresses import IP_ADDRESSES
from codekiln.corpus.redaction.rules import Match, Rule, RuleSet, replace_matches
from codekiln.corpus.redaction.secrets import SECRETS, entropy_bits
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.steps.step import Draft, Step
from codekiln.files import atomic_write

ALL_RULES: tuple[Rule, ...] = (*SECRETS, IP_ADDRESSES, EMAILS)
REDACTIONS = "redactions.parquet"
COLUMN = "redactions"  # of a draft: the JSON of a list of [rule, line, byte, sha256], or null
REDACTIONS_SCHEMA = pa.schema(
    [("name", pa.string()), ("rule", pa.string()), ("line", pa.int64()), ("byte", pa.int64()), ("sha256", pa.string())]
)
MIN_HASHED_BITS = 64


@dataclass(frozen=True, kw_only=True)
class Redact(Step):
    """Replaces what `rules` find. Where two matches overlap, that of the rule that comes first counts.

    `redactions.parquet` lists every replacement in the documents that are kept: `name` of the document, `rule`, `line`
    (from 1) and `byte` (from 0) in the text before any step edited it, and `sha256` of the text that was replaced. A corpus
    has the same bytes whenever it is built, so hashes have no random salt, and could be reversed by guessing. Therefore only
    random values of vendors' formats with more than `MIN_HASHED_BITS` bits have one, which cannot be guessed; it shows where
    the same key occurs. For addresses and passwords it is null.
    """

    rules: tuple[Rule, ...] = ALL_RULES

    columns: ClassVar = {COLUMN: str}
    outputs: ClassVar = (REDACTIONS,)
    redacts = True

    @cached_property
    def _rule_set(self) -> RuleSet:
        return RuleSet(self.rules)

    @cached_property
    def _generated(self) -> frozenset[str]:
        return frozenset(rule.name for rule in self.rules if rule.is_generated)

    def edit_document(self, draft: Draft) -> None:
        data = draft.text.encode()
        if matches := self._rule_set.find(data):
            draft.columns[COLUMN] = json.dumps(self._audit(draft, data, matches))
            draft.text = replace_matches(data, matches).decode()

    def _audit(self, draft: Draft, data: bytes, matches: list[Match]) -> list[list[Any]]:
        """Rule, line, byte and SHA-256 of each match."""
        original = draft.original.encode()
        n_equal = _n_common_end(original, data)
        rows: list[list[Any]] = []
        line, counted = 1, 0
        for match in matches:
            # An edit before this step moved what follows it.
            shift = len(original) - len(data) if match.start >= len(data) - n_equal else 0
            at = match.start + shift
            if at < counted:  # the match before is in text that a step inserted
                line, counted = 1, 0
            line += original.count(b"\n", counted, at)
            counted = at
            secret = data[match.start : match.end]
            is_hashed = match.rule in self._generated and entropy_bits(secret) > MIN_HASHED_BITS
            rows.append([match.rule, line, at, hashlib.sha256(secret).hexdigest() if is_hashed else None])
        return rows

    def finish_corpus(self, scratch: Scratch) -> None:
        columns = ["repository", "revision", "path", COLUMN]
        with (
            atomic_write(scratch.outputs / REDACTIONS) as temp_path,
            pq.ParquetWriter(temp_path, REDACTIONS_SCHEMA) as writer,
        ):
            for unit in range(scratch.n_units):
                found: list[dict[str, object]] = []
                for batch in scratch.batches(unit, columns):
                    for row in batch.filter(pc.is_valid(batch.column(COLUMN))).to_pylist():
                        name = document_name(row["repository"], row["revision"], row["path"])
                        found += [
                            dict(zip(REDACTIONS_SCHEMA.names, (name, *entry), strict=True))
                            for entry in json.loads(row[COLUMN])
                        ]
                if found:
                    writer.write_table(pa.Table.from_pylist(found, REDACTIONS_SCHEMA))


def count_rules(value: object) -> dict[str, int]:
    """The number of replacements per rule in a value of the column, the most frequent first; none if it is null."""
    counts = Counter(entry[0] for entry in json.loads(value)) if isinstance(value, str) else Counter[str]()
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def redact_emails(text: str) -> tuple[str, int]:
    """The text with each e-mail address replaced, and how many were replaced now."""
    data = text.encode()
    matches = list(EMAILS.find(data))
    return replace_matches(data, matches).decode(), len(matches)


def _n_common_end(one: bytes, other: bytes) -> int:
    """The length of the longest common suffix. Slices are compared, because a loop over bytes would be slow."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle :] == other[len(other) - middle :]:
            low = middle
        else:
            high = middle - 1
    return low
