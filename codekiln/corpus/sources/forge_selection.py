"""Which repositories of a forge are wanted."""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from codekiln.corpus.languages import LANGUAGES
from codekiln.errors import ConfigError, MissingFileError
from codekiln.files import shorten, to_record

_OPT_OUT = re.compile(r"([^\s/*]+/)+(\*|[^\s/*]+)")


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
    all. `opt_out` and the lines of `opt_out_file` are `owner/name`, or `owner/*` for all below; `#` begins a comment.
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

    def read_opt_out(self) -> "OptOut":
        """The opt-out list. Raises MissingFileError, or ConfigError for a line of another form."""
        entries = list(self.opt_out)
        if self.opt_out_file is not None:
            try:
                text = self.opt_out_file.read_text(encoding="utf-8-sig")
            except OSError as error:
                raise MissingFileError(
                    f"the opt-out list {self.opt_out_file} cannot be read: {error.strerror}"
                ) from None
            except UnicodeDecodeError:
                raise ConfigError(f"the opt-out list {self.opt_out_file} is not UTF-8") from None
            entries += [line.partition("#")[0].strip() for line in text.splitlines()]
        entries = [entry for entry in entries if entry]
        for entry in entries:
            if not _OPT_OUT.fullmatch(entry):
                raise ConfigError(f"{shorten(entry)!r} is not an entry of an opt-out list: write owner/name or owner/*")
        return OptOut(frozenset(entry.lower() for entry in entries))

    def key(self, opt_out: "OptOut") -> str:
        """A hash that differs for another selection or opt-out list."""
        record = json.dumps([to_record(self), sorted(opt_out.entries)])
        return hashlib.sha256(record.encode()).hexdigest()


@dataclass(frozen=True)
class OptOut:
    """Repositories whose owners do not want them to be used. Letter case does not matter, as on the forges."""

    entries: Collection[str]

    def __contains__(self, name: str) -> bool:
        name = name.lower()
        owners = name.split("/")[:-1]
        return name in self.entries or any(
            "/".join(owners[:n]) + "/*" in self.entries for n in range(1, len(owners) + 1)
        )


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
