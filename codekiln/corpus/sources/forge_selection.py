"""Which repositories of a forge are wanted."""

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from codekiln.corpus.languages import LANGUAGES
from codekiln.corpus.repository_names import RepositoryNames, parse_names, read_names
from codekiln.errors import ConfigError
from codekiln.files import shorten, to_record


@dataclass(frozen=True, kw_only=True)
class Repository:
    """What a forge lists. `language` is the one with most of its code, by Linguist's names. Dates are in ISO format."""

    id: int
    name: str  # owner/name; on GitLab there may be several owners
    default_branch: str | None  # None if it is empty
    stars: int
    license: str | None  # an SPDX expression; None if the forge knows none
    language: str | None
    created_at: str
    pushed_at: str
    is_fork: bool
    is_archived: bool


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Public repositories that are no forks. Dates are days, `2021-12-09`, and both are included.

    The window of `created` has to end, so that the same recipe lists the same repositories. No languages or licenses stand for
    all. `opt_out` and the lines of `opt_out_file` are `owner/name`, a URL, or `owner/*` for all below; `#` begins a comment.
    `max_repositories` keeps those that are listed first: the oldest of the first language and license.
    """

    created: tuple[str, str]
    pushed: tuple[str, str] | None = None
    main_languages: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()  # SPDX ids
    min_stars: int = 0
    max_stars: int | None = None
    is_archived: bool | None = None  # None takes both
    opt_out: tuple[str, ...] = ()
    opt_out_file: Path | None = None
    max_repositories: int | None = None

    def __post_init__(self) -> None:
        for name, days in (("created", self.created), ("pushed", self.pushed)):
            if days is not None and not _is_window(days):
                raise ConfigError(f"{name} is {days!r}: it must be two days in order, as ('2020-01-01', '2021-12-09')")
        if unknown := set(self.main_languages) - set(LANGUAGES):
            raise ConfigError(
                f"main_languages has {', '.join(sorted(unknown))}: the languages are {', '.join(LANGUAGES)}"
            )
        if not 0 <= self.min_stars <= (self.min_stars if self.max_stars is None else self.max_stars):
            raise ConfigError(
                f"min_stars is {self.min_stars} and max_stars is {self.max_stars}: no number is in between"
            )
        if self.max_repositories is not None and self.max_repositories < 1:
            raise ConfigError(f"max_repositories is {self.max_repositories}: it must be at least 1")

    def accepts_listed(self, repository: Repository) -> bool:
        """Whether the repository fits by what all forges list of it."""
        return (
            not repository.is_fork
            and self.is_archived in (None, repository.is_archived)
            and self.min_stars <= repository.stars
            and (self.max_stars is None or repository.stars <= self.max_stars)
            and _is_within(repository.created_at, self.created)
            and (self.pushed is None or _is_within(repository.pushed_at, self.pushed))
        )

    def accepts_described(self, repository: Repository) -> bool:
        """Whether the repository fits by its license and main language too."""
        has_language = not self.main_languages or repository.language in [
            linguist_name(name) for name in self.main_languages
        ]
        return has_language and (not self.licenses or repository.license in self.licenses)

    def read_opt_out(self) -> RepositoryNames:
        """The opt-out list. Raises CodekilnError for a file that cannot be read, and an entry of another form."""
        found = parse_names(self.opt_out, "opt_out")
        if self.opt_out_file is not None:
            found |= read_names(self.opt_out_file)
        if bare := sorted(entry for entry in found.entries if "/" not in entry):
            raise ConfigError(
                f"{shorten(bare[0])!r} in the opt-out list is not a repository: write owner/name, or owner/*"
            )
        return found

    def key(self, opt_out: RepositoryNames) -> str:
        """A hash that differs for another selection or opt-out list."""
        record = json.dumps([to_record(self), sorted(opt_out.entries)])
        return hashlib.sha256(record.encode()).hexdigest()


def linguist_name(language: str) -> str:
    """The name of a language in GitHub's Linguist, which GitLab uses too."""
    return {"Jupyter": "Jupyter Notebook", "Matlab": "MATLAB"}.get(language, language)


def _is_window(days: tuple[str, str]) -> bool:
    try:
        first, last = map(date.fromisoformat, days)
    except (ValueError, TypeError):
        return False
    return first <= last and all(len(day) == len("2021-12-09") for day in days)


def _is_within(time: str, days: tuple[str, str]) -> bool:
    return days[0] <= time[:10] <= days[1]
