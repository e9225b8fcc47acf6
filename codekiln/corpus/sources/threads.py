"""Threads of Stack Exchange: a question, its answers and all comments as one text in InCoder's layout (appendix A.2).

    <| q tags=python,django |>
    How do I count words?

    I tried this:
    <code>
    len(text)
    </code>
    <|/ q dscore=3 |>
    <| c |>
    What is a word?
    <|/ c |>
    <| a dscore=4 |>
    …
    <|/ a tags=python,django |>

The places of attributes are drawn as in `steps/metadata.py`.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from codekiln.corpus.bins import bin_of
from codekiln.corpus.html_text import html_to_text
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.files import STACK_EXCHANGE, CannotRead, SourceFile
from codekiln.corpus.steps.metadata import VALUE, render_tags

MAX_THREAD_BYTES = 20_000_000
NO_QUESTION = "answer without its question"
NO_POST = "comment without its post"
DUPLICATE_ROW = "second row of the same number"


class Row(NamedTuple):
    """A post, a comment, or a row that is dropped, as the partitions hold it.

    `post` is the number of the post itself, or of the one that a comment belongs to. `license` is the version of CC BY-SA.
    `body` is HTML, and plain text in comments. Of a dropped row, `title` is the reason and `body` its path.
    """

    kind: Literal["question", "answer", "comment", "dropped"]
    id: int
    thread: int
    post: int
    score: int
    license: str
    n_bytes: int
    title: str
    tags: str
    body: str


@dataclass(frozen=True)
class SiteFacts:
    """What is known of a whole site. `edges` are those of the bins of its scores."""

    site: str
    revision: str
    edges: tuple[int, ...]
    seed: int


@dataclass
class _Thread:
    question: Row | None = None
    answers: dict[int, Row] = field(default_factory=dict)
    comments: dict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))
    seen: set[tuple[bool, int]] = field(default_factory=set)


def dropped_row(path: str, reason: str, n_bytes: int) -> Row:
    return Row("dropped", 0, 0, 0, 0, "", n_bytes, reason, "", path)


def join_threads(rows: Iterable[list[Any]], facts: SiteFacts) -> Iterator[SourceFile]:
    """A file for each dropped row, and then one for each thread, by the number of its question.

    `rows` are all rows of their threads, in the order of the dump.
    """
    threads: defaultdict[int, _Thread] = defaultdict(_Thread)
    for values in rows:
        row = Row(*values)
        if row.kind == "dropped":
            yield _dropped_file(row.body, row.title, row.n_bytes, facts)
            continue
        thread, key = threads[row.thread], (row.kind == "comment", row.id)
        if key in thread.seen:
            yield _dropped_file(_path(row), DUPLICATE_ROW, row.n_bytes, facts)
            continue
        thread.seen.add(key)
        if row.kind == "question":
            thread.question = row
        elif row.kind == "answer":
            thread.answers[row.id] = row
        else:
            thread.comments[row.post].append(row)
    for number in sorted(threads):
        yield from _thread_files(threads.pop(number), facts)


def _thread_files(thread: _Thread, facts: SiteFacts) -> Iterator[SourceFile]:
    """The rows that have no place in the thread, and the thread if it has a question."""
    question = thread.question
    answers = sorted(thread.answers.values(), key=lambda row: (-row.score, row.id))
    posts = [question, *answers] if question else []
    ordered = []
    for post in posts:
        ordered += [post, *sorted(thread.comments.pop(post.id, ()), key=lambda row: row.id)]
    lost = [*(() if question else answers), *(row for rows in thread.comments.values() for row in rows)]
    for row in lost:
        reason = NO_QUESTION if row.kind == "answer" else NO_POST
        yield _dropped_file(_path(row), reason, row.n_bytes, facts)
    if question:
        yield SourceFile(
            source=STACK_EXCHANGE,
            repository=facts.site,
            revision=facts.revision,
            license=" AND ".join(f"CC-BY-SA-{version}" for version in sorted({row.license for row in ordered})),
            path=f"questions/{question.id}",
            size=sum(row.n_bytes for row in ordered),
            read=partial(_render, question, ordered, facts),
            language="Stack Exchange",
            max_bytes=MAX_THREAD_BYTES,
            is_prose=True,
        )


def _render(question: Row, rows: list[Row], facts: SiteFacts) -> str:
    digest = hashlib.sha256(f"{facts.seed}:{facts.site}:{question.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8]))
    tags = ",".join(tag for tag in re.split(r"[<>|]", question.tags) if VALUE.fullmatch(tag) and "," not in tag)
    parts = []
    for row in rows:
        attributes = {"dscore": str(bin_of(row.score, facts.edges))}
        if tags:
            attributes["tags"] = tags
        match row.kind:
            case "question":
                title = " ".join(row.title.split())
                text = f"{title}\n\n{html_to_text(row.body, is_code_marked=True)}".strip("\n")
                parts.append(render_tags(text, attributes, rng, "q"))
            case "answer":
                parts.append(render_tags(html_to_text(row.body, is_code_marked=True), attributes, rng, "a"))
            case _:
                parts.append(render_tags(row.body.strip(), {}, rng, "c"))
    return "".join(parts)


def _dropped_file(path: str, reason: str, n_bytes: int, facts: SiteFacts) -> SourceFile:
    return SourceFile(
        source=STACK_EXCHANGE,
        repository=facts.site,
        revision=facts.revision,
        license=UNKNOWN,
        path=path,
        size=n_bytes,
        read=CannotRead(),
        problem=reason,
    )


def _path(row: Row) -> str:
    return f"{'comments' if row.kind == 'comment' else 'posts'}/{row.id}"
