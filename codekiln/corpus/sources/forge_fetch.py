"""Fetches the repositories of a selection: lists them, then downloads an archive of each."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from codekiln.corpus.sources.forge_apis import Ask, ForgeApi, GitHub, GitLab, Query, Reply
from codekiln.corpus.sources.forge_http import Clock, ForgeClient, ForgeError, RefusedError
from codekiln.corpus.sources.forge_selection import Repository, Selection
from codekiln.corpus.sources.forge_state import ForgeState, StoredAnswer, StoredRepository
from codekiln.errors import ConfigError
from codekiln.files import JsonObject, remove_leftovers
from codekiln.folders import claim_folder
from codekiln.progress import print_line, progress_bar

STATE, ARCHIVES = "state.sqlite", "archives"


class Fetcher:
    """Fetches into `folder`, which has the state and the archives. It is locked while it is open."""

    def __init__(
        self,
        kind: Literal["github", "gitlab"],
        url: str,
        folder: Path,
        selection: Selection,
        download_hosts: tuple[str, ...],
        clock: Clock | None = None,
    ) -> None:
        self._api: ForgeApi = GitHub(url) if kind == "github" else GitLab(url)
        self._url, self._folder, self._selection, self._clock = url, folder, selection, clock or Clock()
        self._download_hosts = (*self._api.download_hosts(), *download_hosts)
        self._opt_out = selection.read_opt_out()
        self._key = selection.key(self._opt_out)

    def __enter__(self) -> "Fetcher":
        claim_folder(self._folder, "repositories")
        (self._folder / ARCHIVES).mkdir(exist_ok=True)
        self._state = ForgeState(self._folder / STATE, self._url)
        return self

    def __exit__(self, *error: object) -> None:
        self._state.close()

    def selected(self) -> list[StoredRepository]:
        """The repositories of the selection that were fetched, or tried, by id. Empty before it was listed."""
        return [repository for repository in self._state.selected(self._key) if repository.status is not None]

    def fetch(self, *, refresh: bool) -> None:
        """Continues where an earlier process was interrupted. Makes no request if nothing is missing."""
        remove_leftovers(self._folder / ARCHIVES)
        self._remove_opted_out()
        is_listed = self._state.is_listed(self._key) and not refresh
        if is_listed and not any(map(self._is_missing, self._state.selected(self._key))):
            return
        headers = self._api.headers(_token(self._api.environment))
        with ForgeClient(self._api.name, self._url, headers, self._download_hosts, self._clock) as client:
            ask = partial(self._ask, client, refresh)
            undescribed = self._list(ask) if not is_listed else frozenset()
            self._download_all(client, ask, refresh, undescribed)

    def _remove_opted_out(self) -> None:
        """Removes archives of repositories that have been entered in the opt-out list since."""
        for repository in self._state.repositories():
            if repository.name in self._opt_out:
                self._remove_archive(repository)
                self._state.set_problem(repository.id, None)  # it is fetched again if its opt-out ends

    def _is_missing(self, repository: StoredRepository) -> bool:
        """Whether a repository was not tried yet, or its archive is no longer there."""
        if repository.file is None:
            return repository.status is None
        path = self._folder / repository.file
        return not path.is_file() or path.stat().st_size != repository.n_bytes

    # Listing

    def _ask(
        self, client: ForgeClient, refresh: bool, url: str, check: Callable[[Any], JsonObject], *, limit: str
    ) -> Reply:
        """The stored answer; if there is none, or for a refresh, that of the forge."""
        stored = self._state.answer(url)
        if stored is not None and not refresh:
            return Reply(stored.value, stored.next_url)
        answer = client.get_json(url, check, etag=stored.etag if stored is not None else None, limit=limit)
        if answer.value is None:
            assert stored is not None  # "not modified" is only accepted with an ETag
            return Reply(stored.value, stored.next_url)
        self._state.set_answer(url, StoredAnswer(answer.value, answer.etag, answer.next_url))
        return Reply(answer.value, answer.next_url)

    def _list(self, ask: Ask) -> frozenset[int]:
        """Lists the selection, all of it or up to its maximum. Returns the repositories that the forge does not describe."""
        found: set[int] = set()
        seen: set[int] = set()
        problems: dict[int, str] = {}
        queries = self._api.queries(self._selection)
        with progress_bar(f"{self._api.name}: list", len(queries)) as progress:
            for query in queries:
                for listed in self._search(query, ask):
                    if listed.id in seen or listed.name in self._opt_out:
                        continue
                    seen.add(listed.id)
                    if self._selection.accepts_listed(listed) and self._describe(listed, ask, problems):
                        found.add(listed.id)
                        progress.advance(0, note=f"{len(found):,} repositories")
                    if len(found) == self._selection.max_repositories:
                        break
                progress.advance(note=f"{len(found):,} repositories")
                if len(found) == self._selection.max_repositories:
                    break
        for id, reason in problems.items():
            self._state.set_problem(id, reason)
        self._state.finish_listing(self._key, found)
        print_line(f"{self._api.name}: {len(found):,} repositories fit the selection")
        return frozenset(problems)

    def _search(self, query: Query, ask: Ask) -> Iterator[Repository]:
        n_invalid = 0

        def ask_page(url: str, check: Callable[[Any], JsonObject], *, limit: str) -> Reply:
            nonlocal n_invalid
            reply = ask(url, check, limit=limit)
            n_invalid += reply.value["invalid"]
            return reply

        try:
            yield from self._api.search(query, self._selection, ask_page)
        except RefusedError as error:
            raise ForgeError(f"{self._api.name} does not list repositories: {error}. Run again to continue") from None
        if n_invalid:
            print_line(f"{self._api.name}: {n_invalid:,} entries of the listing are no repositories, and were ignored")

    def _describe(self, listed: Repository, ask: Ask, problems: dict[int, str]) -> bool:
        """Whether a repository fits by its license and language. One that the forge does not describe counts as a problem."""
        try:
            described = self._api.describe(listed, self._selection, ask)
        except RefusedError as error:
            problems[listed.id] = str(error)
            self._state.add_repository(listed)
            return True
        if not self._selection.accepts_described(described):
            return False
        self._state.add_repository(described)
        return True

    # Archives

    def _download_all(self, client: ForgeClient, ask: Ask, refresh: bool, undescribed: frozenset[int]) -> None:
        repositories = list(self._state.selected(self._key))
        wanted = [each for each in repositories if refresh or self._is_missing(each)]
        wanted = [each for each in wanted if each.id not in undescribed]  # they may not fit the selection
        n_bytes = 0
        done = len(repositories) - len(wanted)
        with progress_bar(f"{self._api.name}: download", len(repositories), done=done) as progress:

            def advance(n: int) -> None:
                nonlocal n_bytes
                n_bytes += n
                progress.advance(0, note=f"{n_bytes / 1e6:,.1f} MB")

            for repository in wanted:
                try:
                    self._download(repository, client, ask, advance)
                except RefusedError as error:
                    self._fail(repository, error)
                progress.advance(note=f"{n_bytes / 1e6:,.1f} MB")

    def _download(
        self, repository: StoredRepository, client: ForgeClient, ask: Ask, advance: Callable[[int], None]
    ) -> None:
        """Downloads the archive of the newest commit that is known, unless it is there."""
        if not repository.default_branch:
            raise RefusedError("empty repository")
        commit = self._api.commit_of(repository.id, repository.name, repository.default_branch, ask)
        file = f"{ARCHIVES}/{repository.id}-{commit}.tar.gz"
        path = self._folder / file
        if path.is_file():  # a process that was killed had downloaded it
            n_bytes = path.stat().st_size
        else:
            url = self._api.archive_url(repository.id, repository.name, commit)
            n_bytes = client.download(url, path, limit="core", advance=advance)
        self._state.set_fetched(repository.id, commit, file, n_bytes)
        if repository.file != file:
            self._remove_archive(repository)

    def _fail(self, repository: StoredRepository, error: RefusedError) -> None:
        """Records that there is no archive. An older one is kept, unless the forge says that the repository is gone."""
        if repository.file is not None and not error.is_gone and not self._is_missing(repository):
            print_line(f"{self._api.name}: {repository.name} was not refreshed: {error}")
            return
        self._state.set_problem(repository.id, str(error))
        self._remove_archive(repository)

    def _remove_archive(self, repository: StoredRepository) -> None:
        if repository.file is not None:
            (self._folder / repository.file).unlink(missing_ok=True)


def _token(variable: str) -> str | None:
    """The token in an environment variable. A message never has it. Raises ConfigError if it cannot be one."""
    token = os.environ.get(variable, "").strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(f"{variable} is no token: it has characters that none has")
    return token or None
