"""Counts the documents of a corpus: what each step drops, and what is kept, by source, language, license and repository."""

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

from codekiln.corpus.config import CorpusConfig, step_columns
from codekiln.corpus.documents import document_name
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.split import HeldOut
from codekiln.corpus.steps.redact import COLUMN as REDACTIONS_COLUMN
from codekiln.corpus.steps.redact import count_rules
from codekiln.files import JsonObject, read_json, write_json

N_EXAMPLES = 10  # of each reason
GROUPS = {
    "sources": ("source",),
    "languages": ("language",),
    "licenses": ("license",),
    "repositories": ("repository", "revision", "license"),
}
# Packages that decide about documents, besides Codekiln.
_PACKAGES = ("codekiln", "daft", "google-re2", "license-expression", "numba", "pathspec", "publicsuffixlist", "pyarrow")
_READ, _READ_BYTES, _KEPT, _KEPT_BYTES = range(4)


@dataclass
class Tally:
    """Counts of documents, which can be added."""

    n_training: int = 0
    sums: dict[str, int] = field(default_factory=dict)  # of the columns of steps, over documents that are kept
    redacted: dict[str, int] = field(default_factory=dict)  # replacements of each rule, in documents that are kept
    # For each group and value: documents and bytes of files that were read, documents and bytes of text that are kept.
    groups: dict[str, dict[tuple[str, ...], list[int]]] = field(default_factory=lambda: {name: {} for name in GROUPS})
    # For each step and reason: documents and bytes of files, and the first names in a random order.
    dropped: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def n_read(self) -> int:
        return self._total(_READ)

    @property
    def n_kept(self) -> int:
        return self._total(_KEPT)

    @property
    def n_by_reason(self) -> dict[str, int]:
        """Dropped documents by reason, the most frequent first."""
        found: dict[str, int] = {}
        for (_, reason), (n, _) in self.dropped.items():
            found[reason] = found.get(reason, 0) + n
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def add(self, row: dict[str, Any], columns: Sequence[str], *, is_held_out: bool) -> None:
        """Counts one document."""
        is_kept = row["reason"] is None
        counts = [1, row["file_bytes"], int(is_kept), row["text_bytes"] if is_kept else 0]
        for group, names in GROUPS.items():
            _add(self.groups[group], tuple(row[name] for name in names), counts)
        if is_kept:
            self.n_training += not is_held_out
            for column in columns:
                self.sums[column] = self.sums.get(column, 0) + (row[column] or 0)
            _add_counts(self.redacted, count_rules(row.get(REDACTIONS_COLUMN)))
            return
        key = (row["step"], row["reason"])
        _add(self.dropped, key, [1, row["file_bytes"]])
        name = document_name(row["repository"], row["revision"], row["path"])
        self.examples[key] = heapq.nsmallest(N_EXAMPLES, [*self.examples.get(key, ()), (row["draw"], name)])

    def merge(self, other: "Tally") -> None:
        """Adds the counts of another one."""
        self.n_training += other.n_training
        _add_counts(self.sums, other.sums)
        _add_counts(self.redacted, other.redacted)
        for group, counted in other.groups.items():
            for key, counts in counted.items():
                _add(self.groups[group], key, counts)
        for pair, counts in other.dropped.items():
            _add(self.dropped, pair, counts)
        for pair, names in other.examples.items():
            self.examples[pair] = heapq.nsmallest(N_EXAMPLES, [*self.examples.get(pair, ()), *names])

    def record(self, steps: Sequence[str]) -> JsonObject:
        """The counts for the manifest; `steps` are the names of all steps in order."""
        dropped: JsonObject = {}
        for (step, reason), (n, n_bytes) in self.dropped.items():
            entry = dropped.setdefault(reason, {"step": step, "documents": 0, "bytes": 0, "examples": []})
            entry["documents"] += n
            entry["bytes"] += n_bytes
            entry["examples"] = [name for _, name in self.examples[step, reason]]
        left, left_bytes = self.n_read, self._total(_READ_BYTES)
        funnel = []
        for step in ("Source", "Read", *steps):
            counts = [counts for (each, _), counts in self.dropped.items() if each == step]
            n, n_bytes = sum(pair[0] for pair in counts), sum(pair[1] for pair in counts)
            before = {"step": step, "documents_in": left, "bytes_in": left_bytes}
            left, left_bytes = left - n, left_bytes - n_bytes
            funnel.append(before | {"documents_out": left, "bytes_out": left_bytes})
        return {
            "read": {"files": self.n_read, "bytes": self._total(_READ_BYTES)},
            "kept": {"documents": self.n_kept, "text_bytes": self._total(_KEPT_BYTES)},
            "steps": funnel,
            "dropped": dict(sorted(dropped.items(), key=lambda item: (-item[1]["documents"], item[0]))),
            "redacted": dict(sorted(self.redacted.items(), key=lambda item: (-item[1], item[0]))),
            "notices_removed": self.sums.get("notices", 0),
            "sources": self._group("sources", with_read=True),
            "languages": self._group("languages", with_read=True),
            "licenses": self._group("licenses"),
            "repositories": self._group("repositories"),
            "versions": dict(_versions()),
        }

    def _group(self, group: str, *, with_read: bool = False) -> list[JsonObject]:
        """One row for each value of a group; without `with_read`, only for those that have documents."""
        found = []
        for key, counts in sorted(self.groups[group].items()):
            row: JsonObject = dict(zip(GROUPS[group], key, strict=True))
            if with_read:
                row |= {"files_read": counts[_READ], "bytes_read": counts[_READ_BYTES]}
            if with_read or counts[_KEPT]:
                found.append(row | {"documents": counts[_KEPT], "text_bytes": counts[_KEPT_BYTES]})
        return found

    def _total(self, what: int) -> int:
        return sum(counts[what] for counts in self.groups["sources"].values())


def tally_corpus(config: CorpusConfig, scratch: Scratch, held_out: HeldOut | None) -> Tally:
    """Counts all documents. Training documents are those that are kept and not held out."""
    kinds = step_columns(config)
    columns = [name for name, kind in kinds.items() if kind is int]
    needed = [name for name in kinds if name in columns or name == REDACTIONS_COLUMN]
    scratch.run("Corpus: count", "tally", partial(_tally_unit, scratch, held_out, columns, needed))
    total = Tally()
    for unit in range(scratch.n_units):
        total.merge(_from_json(read_json(scratch.path("tally", unit))))
    return total


def _tally_unit(
    scratch: Scratch, held_out: HeldOut | None, columns: Sequence[str], needed: Sequence[str], unit: int
) -> None:
    """Task: counts the documents of a work unit, and the sums of `columns`, which are some of those that are `needed`."""
    names = ["order", "draw", *GROUPS["repositories"], "path", "source", "language", "file_bytes", "text_bytes"]
    tally = Tally()
    for batch in scratch.batches(unit, [*names, "step", "reason", *needed], dropped=True):
        is_held_out = held_out.mask(batch) if held_out is not None and not held_out.is_cut else [False] * len(batch)
        for row, is_out in zip(batch.to_pylist(), is_held_out, strict=True):
            tally.add(row, columns, is_held_out=bool(is_out))
    write_json(scratch.path("tally", unit), _to_json(tally))


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # another distribution may provide the module
            yield name, metadata.version(name)


def _to_json(tally: Tally) -> JsonObject:
    return {
        "n_training": tally.n_training,
        "sums": tally.sums,
        "redacted": tally.redacted,
        "groups": {
            group: [[list(key), counts] for key, counts in found.items()] for group, found in tally.groups.items()
        },
        "dropped": [[list(key), counts] for key, counts in tally.dropped.items()],
        "examples": [[list(key), names] for key, names in tally.examples.items()],
    }


def _from_json(record: JsonObject) -> Tally:
    return Tally(
        n_training=record["n_training"],
        sums=record["sums"],
        redacted=record["redacted"],
        groups={group: {tuple(key): counts for key, counts in found} for group, found in record["groups"].items()},
        dropped={(step, reason): counts for (step, reason), counts in record["dropped"]},
        examples={
            (step, reason): [(draw, name) for draw, name in names] for (step, reason), names in record["examples"]
        },
    )


def _add_counts(counts: dict[str, int], others: dict[str, int]) -> None:
    for name, n in others.items():
        counts[name] = counts.get(name, 0) + n


def _add(counted: dict[Any, list[int]], key: Any, counts: list[int]) -> None:
    before = counted.get(key)
    counted[key] = list(counts) if before is None else [a + b for a, b in zip(before, counts, strict=True)]
