"""The public Stack Exchange dump, joined into threads."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codekiln.corpus.bins import percentile_bins
from codekiln.corpus.sources.dump_files import ArchiveMember, DumpFile, PlainFile
from codekiln.corpus.sources.dump_rows import DAMAGED_ROW, DumpRow, RowReader, RowState
from codekiln.corpus.sources.files import SourceFile
from codekiln.corpus.sources.partitions import (
    CHECKPOINT_BYTES,
    MAX_PARTITIONS,
    Sorting,
    make_partitions,
    partition_path,
    read_partition,
)
from codekiln.corpus.sources.threads import NO_POST, Row, SiteFacts, dropped_row, join_threads
from codekiln.errors import MissingFileError
from codekiln.files import JsonObject
from codekiln.progress import ProgressTask, progress_bar

POSTS, COMMENTS = "Posts.xml", "Comments.xml"
NO_BODY = "row without a body"
DELETED = "deleted post"
OTHER_POST = "neither question nor answer"

FORMAT = 1  # of the partitions
JOINED_PER_SAVE = 16  # partitions
_MAX_SCORE = 10**6  # larger ones count as this: the counts of scores stay small
_KINDS = {"1": "question", "2": "answer"}  # PostTypeId
_LICENSES = {f"CC BY-SA {version}": version for version in ("2.5", "3.0", "4.0")}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?=T|\Z)", re.ASCII)
_NUMBER, _SCORE = re.compile(r"[1-9]\d{0,14}", re.ASCII), re.compile(r"-?\d{1,9}", re.ASCII)
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class StackExchange:
    """Questions with their answers and comments; each thread is a document.

    `folder` is a site: Posts.xml and Comments.xml, or Posts.7z and Comments.7z. Or it holds such folders, and the archives as
    they are published: SITE.7z with both, or SITE-Posts.7z and SITE-Comments.7z. The repository of a document is the site.

    Its license is that of its posts and comments: what their rows declare, else what applied at their dates.

    The rows are sorted into partitions of about `partition_bytes` of XML. They need half of the size of the XML on the disk,
    and while they are made another half of Comments.xml. A partition is joined in memory: about four times its size.
    """

    folder: Path
    seed: int = 0
    partition_bytes: int = 128 * 2**20

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    def units(self, scratch: Path) -> Iterator["ThreadPartition"]:
        """The partitions. Raises MissingFileError if there is no dump, and InvalidFileError for damaged archives."""
        for site in find_sites(self.folder):
            folder = scratch / site.name
            record = self._partition(site, folder)
            facts = SiteFacts(site.name, record["revision"], tuple(record["edges"]), self.seed)
            for number, n_bytes in enumerate(record["partitions"]):
                yield ThreadPartition(partition_path(folder / "threads", number), facts, n_bytes)

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and times of the files of all sites."""
        return {
            "folder": str(self.folder),
            "sites": {site.name: site.fingerprint() for site in find_sites(self.folder)},
        }

    def _partition(self, site: "Site", folder: Path) -> JsonObject:
        """The record of the partitions of a site, which are made unless they exist."""
        inputs = {"files": site.fingerprint(), "partition_bytes": self.partition_bytes, "format": FORMAT}

        def make(sorting: Sorting) -> JsonObject:
            return asdict(_Partitioning(site, sorting, self.partition_bytes).run())

        return make_partitions(folder, inputs, make, not_kept=("posts", "comments"))


@dataclass(frozen=True)
class ThreadPartition:
    """The threads of one partition, by the numbers of their questions, after its dropped rows."""

    path: Path
    facts: SiteFacts
    n_bytes: int  # of XML

    def files(self) -> Iterator[SourceFile]:
        """Raises CorruptFileError if the partition is damaged."""
        return join_threads(read_partition(self.path), self.facts)


@dataclass(frozen=True)
class Site:
    name: str
    posts: DumpFile
    comments: DumpFile

    def fingerprint(self) -> JsonObject:
        statuses = {file.path.name: file.path.stat() for file in (self.posts, self.comments)}
        return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}


def find_sites(folder: Path) -> list[Site]:
    """The sites in a folder and in the folders in it, by name. Raises MissingFileError if there is none, or a part of one."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder: name a folder with a Stack Exchange dump")
    folder = folder.resolve()
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())]
    sites = {site.name: site for each in folders for site in _sites_in(each) if _NAME.fullmatch(site.name)}
    if not sites:
        raise MissingFileError(
            f"{folder} has no Stack Exchange dump: it needs {POSTS} and {COMMENTS}, Posts.7z and Comments.7z, or SITE.7z"
        )
    return [sites[name] for name in sorted(sites)]


def _sites_in(folder: Path) -> Iterator[Site]:
    """The sites whose files are directly in a folder."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}

    def file(plain: str, archive: str) -> DumpFile:
        if plain in files:
            return PlainFile(files[plain])
        if archive in files:
            return ArchiveMember(files[archive], plain)
        raise MissingFileError(f"{folder} has neither {plain} nor {archive}: a dump needs posts and comments")

    if files.keys() & {POSTS, "Posts.7z"}:
        yield Site(folder.name, file(POSTS, "Posts.7z"), file(COMMENTS, "Comments.7z"))
        return
    for path in files.values():
        stem = path.stem
        if path.suffix != ".7z":
            continue
        if stem.endswith("-Posts"):
            site = stem.removesuffix("-Posts")
            yield Site(
                site, ArchiveMember(path, POSTS), ArchiveMember(_needed(files, f"{site}-Comments.7z", path), COMMENTS)
            )
        elif not re.search(r"-[A-Z]\w+\Z", stem):  # SITE-Users.7z and others
            yield Site(stem if "." in stem else folder.name, ArchiveMember(path, POSTS), ArchiveMember(path, COMMENTS))


def _needed(files: dict[str, Path], name: str, path: Path) -> Path:
    if name not in files:
        raise MissingFileError(f"{path.with_name(name)} is missing: a dump needs posts and comments")
    return files[name]


@dataclass(frozen=True)
class PartitionRecord:
    """`partitions` are the bytes of XML of each. `edges` are those of the bins of scores."""

    revision: str
    edges: tuple[int, ...]
    partitions: tuple[int, ...]


class _Partitioning:
    """Sorts the rows of a site by thread.

    A comment names its post only. So posts write pairs of post and thread, sorted by post, and comments are sorted by post as
    well; then each partition of posts is small enough to look up the threads of its comments.
    """

    def __init__(self, site: Site, sorting: Sorting, partition_bytes: int) -> None:
        self._site, self._sorting, self._folder = site, sorting, sorting.folder
        total_bytes = site.posts.n_bytes + site.comments.n_bytes
        self._n = min(max(1, math.ceil(total_bytes / partition_bytes)), MAX_PARTITIONS)
        saved = sorting.state or {}
        self._read_states: dict[str, list[Any]] = saved.get("read", {})  # of the reader of each file
        self._finished: list[str] = saved.get("finished", [])  # files
        self._n_joined: int = saved.get("joined", 0)  # partitions whose comments have their threads
        self._partition_bytes: list[int] = saved.get("partition_bytes", [0] * self._n)
        self._scores = Counter({int(score): n for score, n in saved.get("scores", {}).items()})
        self._newest: str = saved.get("newest", "")
        self._threads, self._posts, self._comments = (
            sorting.writer(name, self._n) for name in ("threads", "posts", "comments")
        )

    def _save(self) -> None:
        self._sorting.save(
            {
                "read": self._read_states,
                "finished": self._finished,
                "joined": self._n_joined,
                "partition_bytes": self._partition_bytes,
                "scores": self._scores,
                "newest": self._newest,
            }
        )

    def run(self) -> PartitionRecord:
        files = {POSTS: (self._site.posts, self._receive_post), COMMENTS: (self._site.comments, self._receive_comment)}
        total_bytes = sum(file.n_bytes for file, _ in files.values())
        done = sum(RowState(*state).n_bytes for state in self._read_states.values())
        with progress_bar(f"{self._site.name}: sort by thread", total_bytes, done=done) as progress:
            for name, (file, receive) in files.items():
                self._read(file, name, receive, progress)
        while self._n_joined < self._n:
            number = self._n_joined
            thread_of: dict[int, int] = {}
            for post, thread in read_partition(partition_path(self._folder / "posts", number)):
                thread_of.setdefault(post, thread)
            for values in read_partition(partition_path(self._folder / "comments", number)):
                row = Row(*values)
                if row.post in thread_of:
                    self._write(row._replace(thread=thread_of[row.post]))
                else:
                    self._drop(f"comments/{row.id}", NO_POST, row.n_bytes)
            self._n_joined += 1
            if self._n_joined % JOINED_PER_SAVE == 0:
                self._save()
        self._threads.flush()
        return PartitionRecord(self._newest or "-", percentile_bins(self._scores), tuple(self._partition_bytes))

    def _read(self, file: DumpFile, name: str, receive: Callable[[DumpRow], None], progress: ProgressTask) -> None:
        """Reads the rest of a file, and drops rows without attributes."""

        def receive_row(row: DumpRow) -> None:
            if row.problem is not None:
                self._drop(f"{name}/{row.line_number}", row.problem, row.n_bytes)
                return
            try:
                receive(row)
            except (KeyError, ValueError):
                self._drop(f"{name}/{row.line_number}", DAMAGED_ROW, row.n_bytes)

        if name in self._finished:
            return
        saved = RowState(*self._read_states.get(name, ()))
        reader = RowReader(f"{file.path} ({name})", receive_row, saved)
        n_unsaved = 0

        def feed(block: bytes) -> None:
            nonlocal n_unsaved
            reader.feed(block)
            progress.advance(len(block))
            n_unsaved += len(block)
            if n_unsaved >= CHECKPOINT_BYTES and (state := reader.state) is not None:
                self._read_states[name] = list(state)
                self._save()
                n_unsaved = 0

        file.read(feed, saved.n_bytes)
        reader.close()
        self._read_states[name] = [file.n_bytes]
        self._finished.append(name)
        self._save()

    def _receive_post(self, row: DumpRow) -> None:
        """Raises KeyError or ValueError for missing or wrong numbers and dates."""
        values = row.attributes
        number, kind = _number(values["Id"]), _KINDS.get(values["PostTypeId"])
        if kind is None or values.get("DeletionDate"):
            self._drop(f"posts/{number}", OTHER_POST if kind is None else DELETED, row.n_bytes)
            return
        thread = number if kind == "question" else _number(values["ParentId"])
        license, score = self._license(values), _score(values.get("Score", "0"))
        if not values.get("Body", "").strip():
            self._drop(f"posts/{number}", NO_BODY, row.n_bytes)
            return
        self._scores[score] += 1
        self._posts.write(number % self._n, [number, thread])
        title, tags = values.get("Title", ""), values.get("Tags", "")
        self._write(Row(kind, number, thread, number, score, license, row.n_bytes, title, tags, values["Body"]))  # type: ignore[arg-type]

    def _receive_comment(self, row: DumpRow) -> None:
        """Raises KeyError or ValueError for missing or wrong numbers and dates."""
        values = row.attributes
        number, post = _number(values["Id"]), _number(values["PostId"])
        license = self._license(values)
        if not (text := values.get("Text", "")).strip():
            self._drop(f"comments/{number}", NO_BODY, row.n_bytes)
            return
        self._comments.write(post % self._n, Row("comment", number, 0, post, 0, license, row.n_bytes, "", "", text))

    def _license(self, values: dict[str, str]) -> str:
        """The version of CC BY-SA that the row declares, or that its date had. Raises ValueError without a date."""
        match = _DATE.match(values["CreationDate"])
        if match is None:
            raise ValueError
        self._newest = max(self._newest, match[0])
        by_date = "2.5" if match[0] < "2011-04-08" else "3.0" if match[0] < "2018-05-02" else "4.0"
        return _LICENSES.get(values.get("ContentLicense", ""), by_date)

    def _write(self, row: Row) -> None:
        partition = row.thread % self._n
        self._threads.write(partition, row)
        self._partition_bytes[partition] += row.n_bytes

    def _drop(self, path: str, reason: str, n_bytes: int) -> None:
        self._write(dropped_row(path, reason, n_bytes))


def _number(text: str) -> int:
    """A number of a post or comment. Raises ValueError for other text."""
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return int(text)


def _score(text: str) -> int:
    """A score, at most a million in size. Raises ValueError for other text."""
    if not _SCORE.fullmatch(text):
        raise ValueError
    return min(max(int(text), -_MAX_SCORE), _MAX_SCORE)
