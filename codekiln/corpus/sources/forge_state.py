"""What was fetched from a forge, in SQLite: answers of its API, repositories, and which of them a selection has.

Every answer is committed before the next request, so that a process that is killed continues where it was.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.sources.forge_http import ForgeError
from codekiln.corpus.sources.forge_selection import Repository
from codekiln.errors import ConfigError, CorruptFileError, InvalidFileError
from codekiln.files import JsonObject

VERSION = 1
_SCHEMA = f"""
CREATE TABLE forge (url TEXT NOT NULL);
-- Of GET requests: the converted answer as JSON, and the URL of the next page.
CREATE TABLE answers (url TEXT PRIMARY KEY, etag TEXT, value TEXT NOT NULL, next_url TEXT) WITHOUT ROWID;
-- `file` is the archive of `commit_id`; `status` is 'fetched', why there is none, or NULL if it was not tried yet.
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, default_branch TEXT, stars INTEGER NOT NULL, license TEXT,
    pushed_at TEXT NOT NULL, commit_id TEXT, file TEXT, n_bytes INTEGER, status TEXT
);
-- Those that are complete.
CREATE TABLE listings (selection TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE selected (selection TEXT, repository INTEGER, PRIMARY KEY (selection, repository)) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
FETCHED = "fetched"


@dataclass(frozen=True)
class StoredAnswer:
    """The converted answer to a request."""

    value: JsonObject
    etag: str | None
    next_url: str | None


ARCHIVE_NAME = re.compile(r"archives/\d+-[0-9a-f]{40,64}\.tar\.gz")  # nothing else is read or removed


@dataclass(frozen=True)
class StoredRepository:
    """A row of `repositories`, as the SQL above has it."""

    id: int
    name: str
    default_branch: str | None
    stars: int
    license: str | None
    commit_id: str | None
    file: str | None
    n_bytes: int | None
    status: str | None

    def __post_init__(self) -> None:
        if self.file is not None and not ARCHIVE_NAME.fullmatch(self.file):
            raise InvalidFileError(
                f"the state of fetched repositories names {self.file!r}, which is no archive: remove it"
            )


class ForgeState:
    """The file `path`, which is created. It is locked: a second process gets a ForgeError.

    Raises ConfigError if it is of another forge than `url`, and CorruptFileError if it is damaged.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._connection = sqlite3.connect(path, timeout=1)
        try:
            self._open(url)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise ForgeError(
                    f"{path} is in use, or cannot be written ({error}): is another process fetching?"
                ) from None
            if isinstance(error, sqlite3.DatabaseError):
                raise CorruptFileError(
                    f"{path} is damaged ({error}): remove it, and repositories are listed again"
                ) from None
            raise

    def _open(self, url: str) -> None:
        connection = self._connection
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO forge VALUES (?)", (url,))
        elif version != VERSION:
            raise CorruptFileError(f"{self._path} is of another version of Codekiln: use another folder")
        (found,) = connection.execute("SELECT url FROM forge").fetchone()
        if found != url:
            raise ConfigError(f"{self._path.parent} has repositories of {found}, not of {url}: use another folder")
        connection.commit()

    def close(self) -> None:
        self._connection.commit()
        self._connection.close()

    # Answers

    def answer(self, url: str) -> StoredAnswer | None:
        row = self._connection.execute("SELECT value, etag, next_url FROM answers WHERE url = ?", (url,)).fetchone()
        return StoredAnswer(json.loads(row[0]), row[1], row[2]) if row is not None else None

    def set_answer(self, url: str, answer: StoredAnswer) -> None:
        row = (url, answer.etag, json.dumps(answer.value), answer.next_url)
        self._connection.execute("INSERT OR REPLACE INTO answers (url, etag, value, next_url) VALUES (?, ?, ?, ?)", row)
        self._connection.commit()

    # Listings

    def is_listed(self, selection: str) -> bool:
        found = self._connection.execute("SELECT 1 FROM listings WHERE selection = ?", (selection,)).fetchone()
        return found is not None

    def add_repository(self, repository: Repository) -> None:
        """Adds a repository, or what has changed of it. It is committed with the next answer."""
        self._connection.execute(
            "INSERT INTO repositories (id, name, default_branch, stars, license, pushed_at) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, default_branch = excluded.default_branch, "
            "stars = excluded.stars, license = excluded.license, pushed_at = excluded.pushed_at",
            (
                repository.id,
                repository.name,
                repository.default_branch,
                repository.stars,
                repository.license,
                repository.pushed_at,
            ),
        )

    def finish_listing(self, selection: str, repositories: Iterable[int]) -> None:
        """Records which repositories a selection has."""
        self._connection.execute("DELETE FROM selected WHERE selection = ?", (selection,))
        self._connection.executemany("INSERT INTO selected VALUES (?, ?)", ((selection, id) for id in repositories))
        self._connection.execute("INSERT OR IGNORE INTO listings VALUES (?)", (selection,))
        self._connection.commit()

    # Repositories

    def selected(self, selection: str) -> Iterator[StoredRepository]:
        """The repositories of a selection, by id."""
        rows = self._connection.execute(
            "SELECT id, name, default_branch, stars, license, commit_id, file, n_bytes, status FROM selected "
            "JOIN repositories ON id = repository WHERE selection = ? ORDER BY id",
            (selection,),
        )
        yield from (StoredRepository(*row) for row in rows.fetchall())

    def repositories(self) -> Iterator[StoredRepository]:
        """All repositories that have an archive."""
        rows = self._connection.execute(
            "SELECT id, name, default_branch, stars, license, commit_id, file, n_bytes, status FROM repositories "
            "WHERE file IS NOT NULL ORDER BY id"
        )
        yield from (StoredRepository(*row) for row in rows.fetchall())

    def set_fetched(self, id: int, commit: str, file: str, n_bytes: int) -> None:
        self._connection.execute(
            "UPDATE repositories SET commit_id = ?, file = ?, n_bytes = ?, status = ? WHERE id = ?",
            (commit, file, n_bytes, FETCHED, id),
        )
        self._connection.commit()

    def set_problem(self, id: int, reason: str | None) -> None:
        """Records why a repository has no archive; None if it was not tried."""
        self._connection.execute(
            "UPDATE repositories SET commit_id = NULL, file = NULL, n_bytes = NULL, status = ? WHERE id = ?",
            (reason, id),
        )
        self._connection.commit()
