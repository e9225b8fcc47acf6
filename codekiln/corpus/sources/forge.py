"""Repositories of GitHub or GitLab, by their public APIs: listed, downloaded as archives, and read from those."""

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from codekiln.corpus.languages import LANGUAGES
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.sources.files import UNIT_BYTES, CannotRead, FileList, SourceFile, WorkUnit
from codekiln.corpus.sources.forge_selection import Selection
from codekiln.corpus.sources.tarballs import Archive, ArchiveUnit
from codekiln.errors import ConfigError
from codekiln.extras import import_optional

ForgeService = Literal["github", "gitlab"]
_URLS: dict[ForgeService, str] = {"github": "https://api.github.com", "gitlab": "https://gitlab.com"}


@dataclass(frozen=True, kw_only=True)
class Forge:
    """The newest commits of the default branches of selected repositories. The commit is the revision.

    Archives are kept in `folder`, and are not downloaded again: the same recipe gives the same corpus. `fetch(refresh=True)`
    looks for changes. A token is read from GITHUB_TOKEN or GITLAB_TOKEN, and kept nowhere. Files are those that
    `LocalRepositories` reads, in `languages`. A repository that the forge does not deliver is counted as a drop.

    `url` is that of another installation: "https://HOST/api/v3" for GitHub, "https://HOST" for GitLab. `download_hosts` are
    hosts to which it redirects downloads, besides itself and GitHub's codeload.
    """

    service: ForgeService
    folder: Path
    selection: Selection
    languages: tuple[str, ...] = LANGUAGES
    url: str | None = None
    download_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.url is not None and not _is_safe(self.url):
            raise ConfigError(
                f"url is {self.url!r}: it must be https://HOST, or http:// to this machine, without a password"
            )

    @property
    def folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    def fetch(self, *, refresh: bool = False) -> None:
        """Downloads what is missing; with `refresh`, also what has changed since.

        Raises ForgeError if the forge cannot be reached or answers wrongly. Running again continues.
        """
        with self._fetcher() as fetcher:
            fetcher.fetch(refresh=refresh)

    def units(self, scratch: Path) -> Iterator[WorkUnit]:
        """Fetches first. Archives are in the order of the ids of their repositories, in units of about `UNIT_BYTES`.

        Nothing is written to `scratch`: archives outlive the corpus.
        """
        with self._fetcher() as fetcher:
            fetcher.fetch(refresh=False)
            repositories = fetcher.selected()
        problems: list[SourceFile] = []
        archives: list[Archive] = []
        n_bytes = 0
        for repository in repositories:
            if repository.file is None:
                problems.append(self._problem(repository.name, repository.status or ""))
                continue
            archive = Archive(
                location=self.folder / repository.file,
                n_bytes=repository.n_bytes,
                source=self.service,
                repository=repository.name,
                revision=repository.commit_id,
                license=repository.license,
                stars=repository.stars,
                languages=self.languages,
            )
            archives.append(archive)
            n_bytes += archive.n_bytes
            if n_bytes >= UNIT_BYTES:
                yield ArchiveUnit(tuple(archives))
                archives, n_bytes = [], 0
        if archives:
            yield ArchiveUnit(tuple(archives))
        if problems:
            yield FileList.of(problems)
        if not repositories:
            raise ConfigError(f"no repository of {self._url} fits the selection: select others")

    def fingerprint(self) -> dict[str, Any]:
        """The number of repositories that were fetched, and a hash of their commits."""
        repositories = []
        if self.folder.is_dir():
            with self._fetcher() as fetcher:
                repositories = fetcher.selected()
        digest = hashlib.sha256()
        for repository in repositories:
            digest.update(f"{repository.id} {repository.name} {repository.commit_id or repository.status}\n".encode())
        return {"folder": str(self.folder), "repositories": len(repositories), "sha256": digest.hexdigest()}

    @property
    def _url(self) -> str:
        return (self.url or _URLS[self.service]).rstrip("/")

    def _fetcher(self) -> Any:
        module = import_optional("codekiln.corpus.sources.forge_fetch", "forge")
        return module.Fetcher(self.service, self._url, self.folder, self.selection, self.download_hosts)

    def _problem(self, repository: str, reason: str) -> SourceFile:
        return SourceFile(
            source=self.service,
            repository=repository,
            revision="-",
            license=UNKNOWN,
            path=".",
            size=0,
            read=CannotRead(),
            problem=reason,
        )


def _is_safe(url: str) -> bool:
    """Whether a URL keeps a token secret: HTTPS, or HTTP on this machine, and no user name in it."""
    try:
        parts = urlsplit(url)
        host, has_port = parts.hostname or "", parts.port is None or parts.port > 0
    except ValueError:
        return False
    if (
        not re.fullmatch(r"[A-Za-z0-9.:-]+", host)
        or not has_port
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(host))


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
