"""Explains why a file is kept or dropped, and shows dropped files of a finished corpus."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.declared import read_license
from codekiln.corpus.decoding import is_utf8
from codekiln.corpus.documents import DROPPED, corpus_files, document_name, read_manifest
from codekiln.corpus.languages import LANGUAGES, may_be
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.reading import NAME_NOT_UTF8, read_draft
from codekiln.corpus.sources.files import SourceFile, local_file
from codekiln.corpus.sources.tree import why_not_listed
from codekiln.corpus.steps.decontaminate import CONTAMINATED, HITS, contaminated_by
from codekiln.corpus.steps.filters import Filters, text_stats
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.corpus.steps.near import CLUSTERS, NEAR_DUPLICATE
from codekiln.corpus.steps.redact import COLUMN as REDACTIONS_COLUMN
from codekiln.corpus.steps.redact import count_rules
from codekiln.corpus.steps.step import Draft, Step
from codekiln.errors import ConfigError, MissingFileError

MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Explanation:
    """What one step, or one filter of it, does with a file: "kept", "edited", or the reason to drop it.

    `measured` is the value that decides and its limit, where there is one.
    """

    step: str
    outcome: str
    measured: str = ""
    is_dropped: bool = False


def explain_file(path: Path, config: CorpusConfig, license: str | None) -> Iterator[Explanation]:
    """The steps in order, up to the one that drops the file. Raises MissingFileError if it does not exist.

    Without a `license`, it is what the repository declares: the nearest folder above with a `.git`, or else the file's folder.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file: name a source file")
    location = path.parent.resolve() / path.name
    root = next((folder for folder in location.parents if (folder / ".git").exists()), location.parent)
    name = location.relative_to(root).as_posix()
    size, read, _ = local_file(location)
    folders = [folder for folder in location.parents if folder == root or root in folder.parents]
    declared = next((found for folder in folders if (found := read_license(folder)) is not None), UNKNOWN)
    languages = {language for source in config.sources for language in getattr(source, "languages", LANGUAGES)}
    file = SourceFile(
        source="tree",
        repository=root.name,
        revision="-",
        license=license or declared,
        path=name,
        size=size,
        read=read,
        languages=tuple(sorted(languages)),
        is_license_given=license is not None,
    )
    problem = why_not_listed(root, location)
    if problem is None and not may_be(name, file.languages):
        problem = f"not a file of these languages: {', '.join(sorted(languages))}"
    if problem is None and not is_utf8(name):
        problem = NAME_NOT_UTF8
    if problem is not None:
        yield Explanation("source", problem, is_dropped=True)
        return
    for step in config.steps:
        if type(step).check_file is not Step.check_file:
            drop = step.check_file(file)
            yield Explanation(type(step).__name__, drop.reason if drop else "kept", is_dropped=drop is not None)
            if drop:
                return
    draft, drop = read_draft(file, config)
    yield Explanation("read", drop.reason if drop else "kept", f"{file.size:,} bytes", is_dropped=drop is not None)
    if draft is None:
        return
    for step in config.steps:
        for explained in _explain_step(step, draft):
            yield explained
            if explained.is_dropped:
                return
        step.edit_document(draft)


def explain_in_corpus(path: Path, corpus: Path) -> Explanation:
    """What became of a file in a finished corpus, by the end of its path: the repository may have another name there.

    The reason of a dropped file is known if it is a near-duplicate or contaminated, or if dropped documents were written.
    """
    parts = path.absolute().parts
    for split in read_manifest(corpus)["splits"]:
        for row in _rows(corpus, f"{split}/"):
            name = document_name(row["repository"], row["revision"], row["path"])
            if _is_file(parts, name):
                return Explanation("corpus", f"kept in {split}", name)
    for row in _rows(corpus, f"{DROPPED}/"):
        name = document_name(row["repository"], row["revision"], row["path"])
        if _is_file(parts, name):
            measured = "" if row["measured"] is None else _number(row["measured"])
            return Explanation(
                "corpus", f"dropped by {row['step']}: {row['reason']}", measured or name, is_dropped=True
            )
    for row in _rows(corpus, CLUSTERS):
        if _is_file(parts, row["name"]):
            return Explanation("corpus", NEAR_DUPLICATE, f"{row['similarity']:.3f} to {row['kept']}", is_dropped=True)
    for row in _rows(corpus, HITS):
        if _is_file(parts, row["name"]):
            return Explanation("corpus", contaminated_by(row["benchmark"]), f"{row['fraction']:.0%}", is_dropped=True)
    advice = "" if (corpus / DROPPED).is_dir() else "build the corpus with --keep-dropped to see why"
    return Explanation("corpus", "not in the corpus", advice, is_dropped=True)


def _rows(corpus: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """The rows of those files of the corpus whose paths begin so, without texts. Each file is verified first.

    Raises CorruptFileError or MissingFileError that names the file.
    """
    for recorded in corpus_files(corpus):
        if str(recorded.path.relative_to(corpus)).startswith(prefix):
            recorded.verify(f"remove {corpus} and run the same command again")
            with pq.ParquetFile(recorded.path) as file:
                columns = [name for name in file.schema_arrow.names if name != "text"]
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()


def _is_file(parts: tuple[str, ...], name: str) -> bool:
    """Whether `repository@revision/path` is the file with these parts: the path is the end of its path."""
    wanted = tuple(name.partition("@")[2].partition("/")[2].split("/"))
    repository = name.partition("@")[0].rpartition("/")[2]
    is_end = parts[-len(wanted) :] == wanted
    return is_end and (repository == "." or len(parts) <= len(wanted) or repository in parts[: -len(wanted)])


def _explain_step(step: Step, draft: Draft) -> Iterator[Explanation]:
    """What a step does with one document."""
    name = type(step).__name__
    if isinstance(step, Filters) and draft.text.strip():
        stats = text_stats(draft.text)
        for filter_ in step.filters:
            reason = filter_(draft.text, stats)
            measure = getattr(filter_, "measure", None)
            measured = f"{_number(measure(stats))} (limit {filter_.limit:,})" if measure is not None else ""  # type: ignore[attr-defined]
            yield Explanation(
                f"{name}: {type(filter_).__name__}", reason or "kept", measured, is_dropped=reason is not None
            )
        return
    drop = step.check_document(draft)
    if isinstance(step, LicenseGate):
        yield Explanation(name, drop.reason if drop else "kept", draft.license, is_dropped=drop is not None)
    elif drop is not None:
        yield Explanation(name, drop.reason, "" if drop.measured is None else _number(drop.measured), is_dropped=True)
    elif type(step).edit_document is not Step.edit_document:
        edited = replace(draft, columns={})
        step.edit_document(edited)
        counts = {column: value for column, value in edited.columns.items() if isinstance(value, int)}
        counts |= count_rules(edited.columns.get(REDACTIONS_COLUMN))
        measured = ", ".join(f"{column}: {value}" for column, value in counts.items())
        yield Explanation(name, "edited" if edited.text != draft.text else "kept", measured)
    elif step.compares_documents:
        yield Explanation(name, "compared with all files")
    elif type(step).check_document is not Step.check_document:
        yield Explanation(name, "kept")


def _number(value: float) -> str:
    """A number with at most four decimal places."""
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def show_drops(corpus: Path, reason: str | None) -> dict[str, Any]:
    """Counts of dropped files by reason; or, for one reason, examples with what was measured.

    Raises ConfigError with the reasons of the corpus if there is no such reason.
    """
    dropped = read_manifest(corpus)["dropped"]
    if reason is None:
        return {name: entry["documents"] for name, entry in dropped.items()}
    if reason not in dropped:
        raise ConfigError(f"no file was dropped with the reason {reason!r}: choose from {', '.join(dropped) or 'none'}")
    examples = dict.fromkeys(dropped[reason]["examples"], "")
    if reason == NEAR_DUPLICATE:
        rows = [row for row in _rows(corpus, CLUSTERS) if row["name"] != row["kept"]]
        examples = {row["name"]: f"{row['similarity']:.3f} to {row['kept']}" for row in rows[:MAX_EXAMPLES]}
    elif reason.startswith(CONTAMINATED):
        rows = [row for row in _rows(corpus, HITS) if reason == contaminated_by(row["benchmark"])]
        examples = {row["name"]: f"{row['fraction']:.0%} of {row['text']}" for row in rows[:MAX_EXAMPLES]}
    return examples
