"""The REST APIs of GitHub and GitLab: how repositories are searched, and where their commits and archives are.

Sources: docs.github.com/rest (search, git references, contents), docs.gitlab.com/api (projects, branches, repositories).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from codekiln.corpus.licenses import UNKNOWN, declared_license
from codekiln.corpus.sources.forge_http import ForgeError
from codekiln.corpus.sources.forge_selection import Repository, Selection, linguist_name
from codekiln.files import JsonObject
from codekiln.progress import print_line

PER_PAGE = 100  # the maximum of both
MAX_RESULTS = 1000  # of one query of GitHub's search
_SECOND = timedelta(seconds=1)
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True)
class Reply:
    """A converted answer, and the URL of the next page."""

    value: JsonObject
    next_url: str | None


class Ask(Protocol):
    """Asks a forge, or the state of an earlier fetch. `check` converts the answer, or raises ValueError, KeyError or TypeError.

    Raises RefusedError.
    """

    def __call__(self, url: str, check: Callable[[Any], JsonObject], *, limit: str) -> Reply: ...


@dataclass(frozen=True)
class Query:
    """A part of a listing. None stands for any."""

    language: str | None
    license: str | None


class ForgeApi(Protocol):
    """What the two APIs have in common."""

    @property
    def name(self) -> str: ...

    @property
    def environment(self) -> str:
        """The environment variable that has the token."""
        ...

    def headers(self, token: str | None) -> dict[str, str]: ...

    def download_hosts(self) -> tuple[str, ...]: ...

    def queries(self, selection: Selection) -> list[Query]: ...

    def search(self, query: Query, selection: Selection, ask: Ask) -> Iterator[Repository]:
        """Repositories in a fixed order. Some of them may not fit the selection."""
        ...

    def describe(self, repository: Repository, selection: Selection, ask: Ask) -> Repository:
        """The repository with its license and main language."""
        ...

    def commit_of(self, id: int, name: str, branch: str, ask: Ask) -> str:
        """The id of the newest commit of the default branch."""
        ...

    def archive_url(self, id: int, name: str, commit: str) -> str: ...


# GitHub


@dataclass(frozen=True)
class GitHub:
    """GitHub's API at `url`."""

    url: str
    name: str = "GitHub"
    environment: str = "GITHUB_TOKEN"

    def headers(self, token: str | None) -> dict[str, str]:
        version = {"X-GitHub-Api-Version": "2022-11-28"}
        return version | ({"Authorization": f"Bearer {token}"} if token else {})

    def download_hosts(self) -> tuple[str, ...]:
        host = self.url.partition("://")[2].partition("/")[0].removeprefix("api.")
        return (f"codeload.{host}",)

    def queries(self, selection: Selection) -> list[Query]:
        languages, licenses = selection.main_languages or (None,), selection.licenses or (None,)
        return [Query(language, license) for language in languages for license in licenses]

    def search(self, query: Query, selection: Selection, ask: Ask) -> Iterator[Repository]:
        """In the order of creation. Slices of time that have over 1,000 results are split, then numbers of stars."""
        first, last = (datetime.fromisoformat(day).replace(tzinfo=UTC) for day in selection.created)
        whole = _Slice(first, last + timedelta(days=1) - _SECOND, selection.min_stars, selection.max_stars)
        yield from self._search_slice(whole, query, selection, ask)

    def _search_slice(self, part: "_Slice", query: Query, selection: Selection, ask: Ask) -> Iterator[Repository]:
        text = _github_query(part, query, selection)
        parameters = {"q": text, "sort": "stars", "order": "desc", "per_page": PER_PAGE}
        reply = ask(f"{self.url}/search/repositories?{urlencode(parameters)}", _github_page, limit="search")
        if reply.value["total"] > MAX_RESULTS:
            if halves := part.halves():
                for half in halves:
                    yield from self._search_slice(half, query, selection, ask)
                return
            print_line(f"GitHub: only the first {MAX_RESULTS:,} of {reply.value['total']:,} results for {text}")
        found = _repositories(reply)
        for _ in range(MAX_RESULTS // PER_PAGE - 1):
            if reply.next_url is None:
                break
            reply = ask(reply.next_url, _github_page, limit="search")
            found += _repositories(reply)
        yield from sorted(found, key=lambda repository: (repository.created_at, repository.id))

    def describe(self, repository: Repository, selection: Selection, ask: Ask) -> Repository:
        return repository

    def commit_of(self, id: int, name: str, branch: str, ask: Ask) -> str:
        url = f"{self.url}/repos/{name}/git/ref/heads/{quote(branch)}"
        return str(ask(url, lambda found: _commit(found["object"]["sha"]), limit="core").value["commit"])

    def archive_url(self, id: int, name: str, commit: str) -> str:
        return f"{self.url}/repos/{name}/tarball/{commit}"


@dataclass(frozen=True)
class _Slice:
    """Repositories that were created in a time, both ends included, and have a number of stars."""

    first: datetime
    last: datetime
    min_stars: int
    max_stars: int | None

    def halves(self) -> tuple["_Slice", "_Slice"] | None:
        """Two slices that have the same repositories, the earlier first; None if there are none."""
        if self.first < self.last:
            middle = self.first + (self.last - self.first) // 2
            middle = middle.replace(microsecond=0)
            return replace(self, last=middle), replace(self, first=middle + _SECOND)
        if self.max_stars is None:
            limit = max(10, 2 * self.min_stars)
        elif self.min_stars < self.max_stars:
            limit = (self.min_stars + self.max_stars) // 2
        else:
            return None
        # No repository has a billion stars.
        return None if limit > 10**9 else (replace(self, max_stars=limit), replace(self, min_stars=limit + 1))


def _github_query(part: _Slice, query: Query, selection: Selection) -> str:
    stars = f"{part.min_stars}..{part.max_stars}" if part.max_stars is not None else f">={part.min_stars}"
    words = [
        "is:public",
        f"created:{_timestamp(part.first)}..{_timestamp(part.last)}",
        f"stars:{stars}",
    ]
    if query.language is not None:
        words.append(f'language:"{linguist_name(query.language)}"')
    if query.license is not None:
        words.append(f"license:{query.license.lower()}")
    if selection.pushed is not None:
        words.append("pushed:" + "..".join(selection.pushed))
    if selection.is_archived is not None:
        words.append(f"archived:{str(selection.is_archived).lower()}")
    return " ".join(words)


def _timestamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _github_page(found: Any) -> JsonObject:
    if found["incomplete_results"]:
        raise ValueError("the search ran out of time")
    return _page(_count(found["total_count"]), found["items"], _github_repository)


def _github_repository(item: Any) -> Repository | None:
    return (
        None
        if item.get("private")
        else _repository(
            id=item["id"],
            name=item["full_name"],
            default_branch=item["default_branch"],
            stars=item["stargazers_count"],
            license=(item.get("license") or {}).get("spdx_id"),
            language=item.get("language"),
            created_at=item["created_at"],
            pushed_at=item.get("pushed_at") or "",
            is_fork=item["fork"],
            is_archived=item["archived"],
        )
    )


# GitLab


@dataclass(frozen=True)
class GitLab:
    """The API of the GitLab at `url`."""

    url: str
    name: str = "GitLab"
    environment: str = "GITLAB_TOKEN"

    def headers(self, token: str | None) -> dict[str, str]:
        return {"PRIVATE-TOKEN": token} if token else {}

    def download_hosts(self) -> tuple[str, ...]:
        return ()

    def queries(self, selection: Selection) -> list[Query]:
        return [Query(language, None) for language in selection.main_languages or (None,)]

    def search(self, query: Query, selection: Selection, ask: Ask) -> Iterator[Repository]:
        """In the order of ids, which is that of creation."""
        parameters: dict[str, Any] = {"visibility": "public", "pagination": "keyset", "order_by": "id", "sort": "asc"}
        parameters["per_page"] = PER_PAGE
        if query.language is not None:
            parameters["with_programming_language"] = linguist_name(query.language)
        if selection.is_archived is not None:
            parameters["archived"] = str(selection.is_archived).lower()
        if selection.pushed is not None:
            parameters["last_activity_after"] = f"{selection.pushed[0]}T00:00:00Z"
            parameters["last_activity_before"] = f"{selection.pushed[1]}T23:59:59Z"
        url: str | None = f"{self.url}/api/v4/projects?{urlencode(parameters)}"
        last_id = -1
        while url is not None:
            reply = ask(url, _gitlab_page, limit="core")
            for repository in _repositories(reply):
                if repository.id <= last_id:
                    raise ForgeError(f"{self.url} does not list its projects in the order of their ids")
                last_id = repository.id
                yield repository
            url = reply.next_url if reply.value["items"] else None

    def describe(self, repository: Repository, selection: Selection, ask: Ask) -> Repository:
        project = f"{self.url}/api/v4/projects/{repository.id}"
        license = ask(f"{project}?license=true", _gitlab_license, limit="core").value["license"]
        language = None
        if selection.main_languages:
            language = ask(f"{project}/languages", _gitlab_language, limit="core").value["language"]
        return replace(repository, license=license, language=language)

    def commit_of(self, id: int, name: str, branch: str, ask: Ask) -> str:
        url = f"{self.url}/api/v4/projects/{id}/repository/branches/{quote(branch, safe='')}"
        return str(ask(url, lambda found: _commit(found["commit"]["id"]), limit="core").value["commit"])

    def archive_url(self, id: int, name: str, commit: str) -> str:
        return f"{self.url}/api/v4/projects/{id}/repository/archive.tar.gz?sha={commit}"


def _gitlab_page(found: Any) -> JsonObject:
    return _page(None, found, _gitlab_repository)


def _gitlab_repository(item: Any) -> Repository | None:
    return (
        None
        if item.get("visibility", "public") != "public"
        else _repository(
            id=item["id"],
            name=item["path_with_namespace"],
            default_branch=item.get("default_branch"),
            stars=item["star_count"],
            license=None,
            language=None,
            created_at=item["created_at"],
            pushed_at=item.get("last_activity_at") or "",
            is_fork=bool(item.get("forked_from_project")),
            is_archived=bool(item.get("archived")),
        )
    )


def _gitlab_license(found: Any) -> JsonObject:
    return {"license": _spdx((found.get("license") or {}).get("key"))}


def _gitlab_language(found: Any) -> JsonObject:
    fractions = {str(name): float(percent) for name, percent in found.items()}
    return {"language": max(sorted(fractions), key=fractions.__getitem__, default=None)}


# Both


def _repository(**fields: Any) -> Repository:
    """A repository with fields of the right types. Raises ValueError."""
    name, branch, language = fields["name"], fields["default_branch"], fields["language"]
    is_named = _NAME.fullmatch(name) is not None and not {".", ".."}.intersection(name.split("/"))
    if not is_named or any(not isinstance(text, str | None) for text in (branch, language)):
        raise ValueError("not a repository")
    times = {key: str(fields[key])[:30] for key in ("created_at", "pushed_at")}
    counts = {key: _count(fields[key]) for key in ("id", "stars")}
    flags = {key: bool(fields[key]) for key in ("is_fork", "is_archived")}
    return Repository(**fields | times | counts | flags | {"license": _spdx(fields["license"])})


def _page(total: int | None, items: Any, convert: Callable[[Any], Repository | None]) -> JsonObject:
    """The public repositories of a page, and how many items of it could not be understood."""
    if not isinstance(items, list):
        raise TypeError("not a list of repositories")
    repositories, n_invalid = [], 0
    for item in items:
        try:
            repository = convert(item)
        except (ValueError, KeyError, TypeError, AttributeError):
            n_invalid += 1
            continue
        if repository is not None:
            repositories.append(asdict(repository))
    return {"total": total, "items": len(items), "invalid": n_invalid, "repositories": repositories}


def _repositories(reply: Reply) -> list[Repository]:
    return [Repository(**record) for record in reply.value["repositories"]]


def _spdx(license: Any) -> str | None:
    """The SPDX expression of a license key, as "mit"; None if it is none, as "other"."""
    declared = declared_license(license, None, ()) if isinstance(license, str) else UNKNOWN
    return declared if declared != UNKNOWN else None


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**63:
        raise ValueError("not a count")
    return number


def _commit(commit: Any) -> JsonObject:
    if _COMMIT.fullmatch(commit) is None:
        raise ValueError("not a commit")
    return {"commit": commit}
