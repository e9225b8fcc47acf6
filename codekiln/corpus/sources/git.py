"""Git repositories, local or remote: files are read from the objects of a revision, without a checkout.

Git is started with argument lists. Nothing that a repository configures is run: hooks and the file system monitor are off, and
reading uses no transport at all, so a partial clone does not fetch what it lacks.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from codekiln.corpus.declared import MAX_BYTES, NearestLicense, license_of_files
from codekiln.corpus.languages import LANGUAGES, may_be
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.files import MAX_FILE_BYTES, UNIT_BYTES, UNIT_FILES, CannotRead, SourceFile
from codekiln.corpus.sources.ignored import VENDORED_REASON, is_hidden, is_vendored
from codekiln.errors import ConfigError, MissingFileError
from codekiln.files import JsonObject, atomic_write
from codekiln.progress import print_line

PROTOCOLS = "file:https:ssh:git"  # for fetching: not those that run a command
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[\w.-]+@[\w.-]+:")
_REVISION = re.compile(r"[A-Za-z0-9_][\w./@^~{}+-]*")
_SAFE = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-c", "gc.auto=0")
_FILE_MODES = frozenset({"100644", "100755", "100664"})  # not links, and not commits of submodules


@dataclass(frozen=True, kw_only=True)
class GitRepository:
    """One repository: the path of a folder (also a bare one), or a URL, and the name of a commit, branch or tag.

    `license` is the SPDX expression for all of it; None reads what its folders declare. Hidden files, symbolic links and
    submodules are left out, and folders with code of others are counted as drops. A remote repository is fetched to `scratch`
    without its history.
    """

    repository: str
    revision: str = "HEAD"
    license: str | None = None
    languages: tuple[str, ...] = LANGUAGES

    def __post_init__(self) -> None:
        if not _REVISION.fullmatch(self.revision):
            raise ConfigError(f"{self.revision!r} is not the name of a commit, branch or tag")
        if self.repository.startswith("-"):
            raise ConfigError(f"{self.repository!r} is not the path or the URL of a repository")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*:[^/]*@", self.repository):
            raise ConfigError(
                "the URL of a repository has a password, which would be recorded: use a credential helper of git"
            )

    def units(self, scratch: Path) -> Iterator["BlobList"]:
        """Raises MissingFileError if there is no such repository or revision, and ConfigError if it has no source file."""
        location = self._fetch(scratch) if self._is_remote else _git_folder(Path(self.repository))
        commit = _commit(location, self.revision if not self._is_remote else "FETCH_HEAD", self.repository)
        entries = list(_list_tree(location, commit))
        with _blob_reader(location) as read:
            licenses = NearestLicense(PurePosixPath("."), _DeclaringFiles(read, entries).read_license)
            yield from self._list(location, commit, entries, licenses)

    def _list(
        self, location: Path, commit: str, entries: Sequence["_TreeEntry"], licenses: NearestLicense[PurePosixPath]
    ) -> Iterator["BlobList"]:
        blobs: list[_Blob] = []
        n_bytes = n_files = 0
        for entry in entries:
            if entry.mode not in _FILE_MODES or not may_be(entry.path, self.languages):
                continue
            path = PurePosixPath(entry.path)
            if any(map(is_hidden, path.parts)):
                continue
            problem = VENDORED_REASON if any(map(is_vendored, path.parts[:-1])) else None
            license = self.license or licenses.of(path.parent) or UNKNOWN
            blobs.append(_Blob(entry.path, entry.object_id, entry.size, license, problem))
            n_files += 1
            n_bytes += entry.size
            if n_bytes >= UNIT_BYTES or len(blobs) >= UNIT_FILES:
                yield self._unit(location, commit, blobs)
                blobs, n_bytes = [], 0
        if blobs:
            yield self._unit(location, commit, blobs)
        if not n_files:
            known = ", ".join(self.languages)
            raise ConfigError(f"{self.repository} at {self.revision} has no source file of these languages: {known}")

    def fingerprint(self) -> dict[str, Any]:
        """The commit of a local repository. A remote one may change, and a run keeps the corpus that it has built."""
        if self._is_remote:
            return {}
        return {
            "folder": self.repository,
            "commit": _commit(_git_folder(Path(self.repository)), self.revision, self.repository),
        }

    @property
    def folders(self) -> tuple[Path, ...]:
        return () if self._is_remote else (Path(self.repository),)

    @property
    def _is_remote(self) -> bool:
        return _URL.match(self.repository) is not None

    @property
    def name(self) -> str:
        """The last two parts of a URL, or the name of the folder, without ".git"."""
        path = re.sub(r"^[\w.-]+@[\w.-]+:", "", re.sub(r"^[A-Za-z][\w+.-]*://[^/]*/?", "", self.repository))
        parts = PurePosixPath(path if self._is_remote else Path(self.repository).absolute().as_posix()).parts
        return "/".join(parts[-2:] if self._is_remote else parts[-1:]).removesuffix(".git")

    def _unit(self, location: Path, commit: str, blobs: Sequence["_Blob"]) -> "BlobList":
        return BlobList(location, self.name, commit, tuple(blobs), self.languages, self.license is not None)

    def _fetch(self, scratch: Path) -> Path:
        """A bare repository in `scratch` with the wanted revision only. It is fetched once."""
        digest = hashlib.sha256(f"{self.repository}\0{self.revision}".encode()).hexdigest()[:16]
        folder = scratch / f"{digest}.git"
        if folder.is_dir():
            return folder
        print_line(f"Corpus: fetch {_without_password(self.repository)} …")
        with atomic_write(folder) as temp_path:
            _git(temp_path, "init", "--bare", "--quiet", str(temp_path), about=self.repository)
            wanted = ("fetch", "--quiet", "--depth", "1", "--no-tags", "--", self.repository, self.revision)
            _git(temp_path, *wanted, about=self.repository, protocols=PROTOCOLS)
            shutil.rmtree(temp_path / "hooks", ignore_errors=True)
        return folder


@dataclass(frozen=True)
class _Blob:
    path: str
    object_id: str
    size: int
    license: str
    problem: str | None


@dataclass(frozen=True)
class BlobList:
    """A work unit: files of one commit. `location` is the repository, which all workers see."""

    location: Path
    repository: str
    commit: str
    blobs: tuple[_Blob, ...]
    languages: tuple[str, ...]
    is_license_given: bool

    @property
    def n_bytes(self) -> int:
        return sum(blob.size for blob in self.blobs)

    def files(self) -> Iterator[SourceFile]:
        with _blob_reader(self.location) as read:
            for blob in self.blobs:
                yield SourceFile(
                    source="git",
                    repository=self.repository,
                    revision=self.commit,
                    license=blob.license,
                    path=blob.path,
                    size=blob.size,
                    read=CannotRead() if blob.problem is not None else _ReadBlob(read, blob.object_id),
                    problem=blob.problem,
                    languages=self.languages,
                    is_license_given=self.is_license_given,
                )


@dataclass(frozen=True)
class _ReadBlob:
    reader: "_BlobReader"
    object_id: str

    def __call__(self) -> bytes:
        return self.reader.read(self.object_id)


class _BlobReader:
    """A process `git cat-file --batch`, which answers object ids with their content."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None and process.stdout is not None
        self._requests: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout

    def read(self, object_id: str) -> bytes:
        """Raises OSError if the repository lacks the object, or is damaged."""
        try:
            self._requests.write(object_id.encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise OSError("git has ended: the repository is damaged") from None
        header = self._answers.readline().split()
        if len(header) != 3 or header[1] != b"blob":
            raise OSError(f"the repository lacks the object {object_id}")
        data = self._answers.read(int(header[2]))
        if len(data) != int(header[2]) or self._answers.read(1) != b"\n":
            raise OSError(f"the object {object_id} is damaged")
        return data


@contextmanager
def _blob_reader(location: Path) -> Iterator[_BlobReader]:
    command = _command(location, "cat-file", "--batch")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment("")
    )
    try:
        yield _BlobReader(process)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class _TreeEntry:
    mode: str
    object_id: str
    size: int
    path: str


def _list_tree(location: Path, commit: str) -> Iterator[_TreeEntry]:
    """The files of a commit in git's order. Names that are not UTF-8 have lone surrogates, as file names in Python have."""
    listing = _git(location, "ls-tree", "-r", "-z", "--long", "--full-tree", commit, about=str(location))
    for line in listing.split(b"\0"):
        header, _, name = line.partition(b"\t")
        if not name:
            continue
        mode, kind, object_id, size = header.decode("ascii").split()
        if kind == "blob":
            # The size of an object that is missing is BAD. Reading it fails, which is counted.
            yield _TreeEntry(mode, object_id, int(size) if size.isdigit() else 0, os.fsdecode(name))


class _DeclaringFiles:
    """Reads what the folders of a commit declare."""

    def __init__(self, reader: "_BlobReader", entries: Sequence[_TreeEntry]) -> None:
        self._reader = reader
        self._entries: dict[PurePosixPath, dict[str, _TreeEntry]] = {}
        for entry in entries:
            path = PurePosixPath(entry.path)
            if entry.mode in _FILE_MODES:
                self._entries.setdefault(path.parent, {})[path.name] = entry

    def read_license(self, folder: PurePosixPath) -> str | None:
        files = self._entries.get(folder, {})
        return license_of_files(files, lambda name: self._read(files.get(name)))

    def _read(self, entry: _TreeEntry | None) -> str:
        if entry is None or entry.size > min(MAX_BYTES, MAX_FILE_BYTES):
            return ""
        try:
            return self._reader.read(entry.object_id).decode("utf-8-sig", errors="replace")
        except OSError:  # the object is missing
            return ""


def _git_folder(path: Path) -> Path:
    """The folder with the objects of a local repository. Raises MissingFileError if it is none."""
    if not path.is_dir():
        raise MissingFileError(f"{path} is not a folder: name a git repository, or its URL")
    found = _git(path, "rev-parse", "--absolute-git-dir", about=str(path), is_inside=True).decode(
        errors="surrogateescape"
    )
    return Path(found.rstrip("\n"))


def _commit(location: Path, revision: str, about: str) -> str:
    found = _git(
        location, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", about=about
    )
    return found.decode("ascii").strip()


def _git(location: Path, *arguments: str, about: str, is_inside: bool = False, protocols: str = "") -> bytes:
    """The output of a command of git. Raises MissingFileError with its message if it fails."""
    if shutil.which("git") is None:
        raise MissingFileError("git is not installed: install it, or use a folder of files as the source")
    command = ["git", "-C", str(location), *_SAFE, *arguments] if is_inside else _command(location, *arguments)
    # A folder in a repository is none: git would look for one above.
    environment = _environment(protocols) | {"GIT_CEILING_DIRECTORIES": str(location.absolute().parent)}
    done = subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        message = (done.stderr.decode(errors="replace").strip() or "unknown revision").splitlines()[-1]
        name, message = _without_password(about), _without_password(message)
        raise MissingFileError(f"git cannot read {name}: {message[:500]}")
    return done.stdout


def _command(location: Path, *arguments: str) -> list[str]:
    return ["git", f"--git-dir={location}", *_SAFE, *arguments]


def _environment(protocols: str) -> dict[str, str]:
    """Git asks nothing, and uses no transport but those in `protocols`."""
    safe: JsonObject = {
        "GIT_ALLOW_PROTOCOL": protocols,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name == "GIT_SSH_COMMAND"
    }
    return inherited | safe


def _without_password(text: str) -> str:
    return re.sub(r"(://)[^/\s]*@", r"\1", text)
