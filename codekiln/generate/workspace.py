"""The index of a folder of code, in memory, which follows changes of its files.

Files are grouped into segments, each with a suffix array of its own. A change sorts one segment again, in a thread of the
workspace: a million tokens take about 0.2 s, and the decoding thread goes on with the old segments until then.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codekiln.corpus.decoding import UndecodableError, decode_source
from codekiln.corpus.languages import LANGUAGES, may_be
from codekiln.corpus.redaction.rules import RuleSet
from codekiln.corpus.redaction.secrets import SECRETS
from codekiln.corpus.sources.files import MAX_FILE_BYTES, local_file
from codekiln.corpus.sources.tree import walk_files, why_not_listed
from codekiln.errors import MissingFileError
from codekiln.extras import import_optional
from codekiln.generate.names import names_from, names_in
from codekiln.index.build import sort_documents
from codekiln.index.continuations import SortedTokens
from codekiln.progress import print_line
from codekiln.tokenizer.bpe import Tokenizer

SEGMENT_TOKENS = 1_000_000
MAX_TOKENS = 20_000_000  # about 80 MB of code and 300 MB of memory; the files after them are left out
WAIT_SECONDS = 0.05  # for other changes, before the first one is handled
CHECK_SECONDS = 2.0  # how often a folder that was removed is looked for

_OVER_LIMIT = "over the limit of tokens of all files"

Ids = npt.NDArray[np.unsignedinteger]
_log = logging.getLogger("codekiln.workspace")


@dataclass(frozen=True)
class WorkspaceState:
    """What is indexed. `left_out` counts files by the reason; `secrets` are texts of files that were left out."""

    files: int
    tokens: int
    secrets: int
    left_out: dict[str, int]


class Workspace:
    """Indexes `folder` in a thread, from `start` on. Nothing is written to a disk.

    What .gitignore names, hidden files, links, code of others and secrets (passwords and keys, by their form) are left out. A
    folder that is removed has no files until it is there again.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        if not folder.is_dir():
            raise MissingFileError(f"{folder} is not a folder: name a folder with source code")
        self._watchfiles: Any = import_optional("watchfiles", "serve")
        self.folder = folder.resolve()
        self._tokenizer = tokenizer
        self._secrets = RuleSet(SECRETS)
        self._segments: list[_Segment] = []
        self._of_file: dict[Path, _Segment] = {}
        self._left_out: dict[Path, str] = {}
        self._over: dict[Path, int] = {}  # tokens of the files that are over the limit
        self._shards: tuple[SortedTokens, ...] = ()
        self._state = WorkspaceState(0, 0, 0, {})
        self._is_stopped = threading.Event()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workspace", daemon=True)

    @property
    def shards(self) -> Sequence[SortedTokens]:
        """The sorted segments."""
        return self._shards

    @property
    def state(self) -> WorkspaceState:
        """What is indexed now."""
        return self._state

    def names(self, begun: str) -> list[str]:
        """Names in the files that begin with a text and are longer, a few of each segment."""
        return [name for segment in self._segments for name in names_from(segment.names, begun)]

    def start(self) -> None:
        """Begins to index."""
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until all files were read once. Whether they were."""
        return self._is_ready.wait(timeout)

    def stop(self) -> None:
        """Ends the thread."""
        self._is_stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopped.is_set():
            try:
                self._follow()
            except Exception as failure:  # decoding goes on with what is indexed
                _log.warning("%s: changes are no longer followed: %s", self.folder, failure)
                self._is_ready.set()
                return

    def _follow(self) -> None:
        """Reads the folder and then its changes, until it is removed."""
        if not self.folder.is_dir():
            self._update(list(self._of_file), [])
            self._is_ready.set()
            self._is_stopped.wait(CHECK_SECONDS)
            return
        self._read_all()
        if not self._is_ready.is_set():
            print_line(f"Workspace: {self._state.files:,} files with {self._state.tokens:,} tokens are indexed")
        self._is_ready.set()
        is_first = True
        for change in self._watchfiles.watch(
            self.folder,
            watch_filter=None,
            debounce=int(4000 * WAIT_SECONDS),
            step=int(1000 * WAIT_SECONDS),
            rust_timeout=int(1000 * CHECK_SECONDS),
            yield_on_timeout=True,
            stop_event=self._is_stopped,
            raise_interrupt=False,
        ):
            if not self.folder.is_dir():
                return
            if is_first:  # what has changed before the watch began
                self._read_all()
                is_first = False
            elif change:
                self._handle({Path(path) for _, path in change})

    def _read_all(self) -> None:
        """Reads all files that are new or have changed, and removes those that are gone."""
        found = {
            (path := Path(entry.location)): _stamp(path) for entry in walk_files(self.folder) if entry.problem is None
        }
        known = {path: segment.files[path].stamp for path, segment in self._of_file.items()}
        changed = [path for path, stamp in found.items() if known.get(path) != stamp]
        self._update([*(known.keys() - found.keys()), *changed], changed)

    def _handle(self, paths: Iterable[Path]) -> None:
        """Reads changed files again, and all files below changed folders."""
        changed: set[Path] = set()
        present: list[Path] = []
        for path in sorted(paths):
            if path.name == ".gitignore":
                self._read_all()
                return
            changed.add(path)
            if path not in self._of_file and not path.is_file():
                changed |= {file for file in self._of_file if path in file.parents}
            if why_not_listed(self.folder, path) is not None:
                continue
            if path.is_dir():
                inside = {Path(entry.location) for entry in walk_files(path) if entry.problem is None}
                files = {file for file in inside if why_not_listed(self.folder, file) is None}
                changed |= files
                present += sorted(files)
            elif path.is_file():
                present.append(path)
        self._update(sorted(changed), present)

    def _update(self, changed: Sequence[Path], present: Sequence[Path]) -> None:
        """Removes changed files from their segments, adds those that are present, and sorts what differs."""
        touched: dict[int, _Segment] = {}
        for path in changed:
            self._forget(path)
            segment = self._of_file.pop(path, None)
            if segment is not None:
                segment.remove(path)
                touched[id(segment)] = segment
        # There may be room for files that were left out. Those that do not fit are not read: there may be a hundred thousand.
        n_left = self._n_left
        waiting = [path for path, n_tokens in self._over.items() if n_tokens <= n_left] if touched else []
        for number, path in enumerate([*present, *waiting]):
            if number >= len(present) and self._over[path] > self._n_left:
                continue
            self._forget(path)
            if self._is_stopped.is_set():
                return
            file = self._read(path)
            if file is None:
                continue
            segment = self._with_room(file.n_tokens)
            if segment is None:
                self._over[path] = file.n_tokens
                continue
            segment.add(path, file)
            self._of_file[path] = segment
            touched[id(segment)] = segment
            if segment.n_tokens >= SEGMENT_TOKENS:  # it is full: what was read so far can be searched
                self._publish([touched.pop(id(segment))])
        self._publish(touched.values())

    def _forget(self, path: Path) -> None:
        """Removes the reason why a file is left out."""
        self._left_out.pop(path, None)
        self._over.pop(path, None)

    @property
    def _n_left(self) -> int:
        """How many tokens more may be indexed."""
        return MAX_TOKENS - sum(each.n_tokens for each in self._segments)

    def _with_room(self, n_tokens: int) -> "_Segment | None":
        if n_tokens > self._n_left:
            return None
        for segment in self._segments:
            if segment.n_tokens < SEGMENT_TOKENS:
                return segment
        self._segments.append(_Segment())
        return self._segments[-1]

    def _publish(self, touched: Iterable["_Segment"]) -> None:
        for segment in touched:
            segment.sort(self._tokenizer.vocab_size)
        self._segments = [segment for segment in self._segments if segment.files]
        self._shards = tuple(segment.sorted for segment in self._segments if segment.sorted is not None)
        files = [file for segment in self._segments for file in segment.files.values()]
        self._state = WorkspaceState(
            len(files),
            sum(file.n_tokens for file in files),
            sum(file.n_secrets for file in files),
            dict(Counter([*self._left_out.values(), *[_OVER_LIMIT] * len(self._over)])),
        )

    def _read(self, path: Path) -> "_File | None":
        """The tokens of a file. None if it is left out, with the reason in `_left_out` unless it is no code."""
        if not may_be(path.name, LANGUAGES):
            return None
        stamp = _stamp(path)
        size, read, problem = local_file(path)
        if problem is None and size > MAX_FILE_BYTES:
            problem = f"over {MAX_FILE_BYTES:,} bytes"
        try:
            data = read() if problem is None else b""
            text = data if isinstance(data, str) else decode_source(data, path.name)
        except UndecodableError as error:
            problem = str(error)
        except OSError:
            problem = "cannot be read"
        if problem is not None:
            self._left_out[path] = problem
            return None
        pieces, data, at = [], text.encode(errors="replace"), 0
        matches = self._secrets.find(data)
        for match in matches:
            pieces.append(data[at : match.start])
            at = match.end
        pieces.append(data[at:])
        dtype = np.uint16 if self._tokenizer.vocab_size <= 2**16 else np.uint32
        texts = [piece.decode(errors="replace") for piece in pieces]
        names = frozenset(name for text in texts for name in names_in(text))
        encoded = (self._tokenizer.encode(text) for text in texts)
        return _File(tuple(np.array(ids, dtype) for ids in encoded if ids), names, len(matches), stamp)


@dataclass(frozen=True)
class _File:
    """The ids of a file, in pieces between secrets, and the names in them."""

    pieces: tuple[Ids, ...]
    names: frozenset[str]
    n_secrets: int
    stamp: tuple[int, int] | None  # size and time of change, when it was read

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.pieces))


class _Segment:
    """Files that are sorted together."""

    def __init__(self) -> None:
        self.files: dict[Path, _File] = {}
        self.n_tokens = 0
        self.sorted: SortedTokens | None = None
        self.names: list[str] = []

    def add(self, path: Path, file: _File) -> None:
        self.files[path] = file
        self.n_tokens += file.n_tokens

    def remove(self, path: Path) -> None:
        self.n_tokens -= self.files.pop(path).n_tokens

    def sort(self, vocab_size: int) -> None:
        pieces = [piece for file in self.files.values() for piece in file.pieces]
        self.sorted = sort_documents(pieces, vocab_size) if pieces else None
        self.names = sorted(frozenset().union(*(file.names for file in self.files.values())))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
