"""Repositories of GitHub and GitLab: listing, downloads, rate limits, hostile servers and archives, interrupted fetches."""

import email.utils
import gzip
import io
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources import forge_http, members, streams, tarballs
from codekiln.corpus.sources.files import MAX_FILE_BYTES, Source, SourceFile
from codekiln.corpus.sources.forge import Forge
from codekiln.corpus.sources.forge_apis import GitHub, Query, Reply
from codekiln.corpus.sources.forge_fetch import Fetcher
from codekiln.corpus.sources.forge_http import Clock, ForgeClient, ForgeError
from codekiln.corpus.sources.forge_selection import Selection
from codekiln.corpus.sources.ignored import VENDORED_REASON
from codekiln.corpus.sources.tarballs import Archive, ArchiveUnit
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.errors import CodekilnError, ConfigError, CorruptFileError, InvalidFileError, MissingFileError
from codekiln.files import to_record
from tests.forge_server import (
    Fault,
    ForgeServer,
    Hosted,
    drop_connection,
    forge_server,
    make_archive,
    never_end,
    redirect,
    refuse,
    send_bytes,
    send_html,
    stall,
)
from tests.small import program_environment
from tests.test_corpus_sources import MIT_TEXT, write

ALL = Selection(created=("2008-01-01", "2021-12-09"))
TOKEN = "secret-of-the-test-0123456789"
KINDS = ("github", "gitlab")


@dataclass
class FakeClock:
    """A clock whose time passes by sleeping only."""

    time: float = 1_600_000_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def code(n: int) -> str:
    return f"def function_{n}(argument):\n    return argument + {n}\n" * 5


@pytest.fixture
def server() -> Iterator[ForgeServer]:
    with forge_server([Hosted(n, f"owner{n}/name{n}", {"a.py": code(n)}) for n in (1, 2, 3)]) as forge:
        yield forge


def forge_of(
    server: ForgeServer, folder: Path, selection: Selection = ALL, service: Any = "github", **more: Any
) -> Forge:
    return Forge(service=service, url=server.url, folder=folder / "forge", selection=selection, **more)


def fetch(forge: Forge, clock: FakeClock | None = None, *, refresh: bool = False) -> dict[str, str | None]:
    """The status of each repository after a fetch that waits for nothing."""
    clock = clock or FakeClock()
    assert forge.url is not None
    timing = Clock(clock.now, clock.sleep)
    with Fetcher(forge.service, forge.url, forge.folder, forge.selection, forge.download_hosts, timing) as fetcher:
        fetcher.fetch(refresh=refresh)
        return {repository.name: repository.status for repository in fetcher.selected()}


def files_of(forge: Forge) -> list[SourceFile]:
    return [file for unit in forge.units(forge.folder) for file in unit.files()]


# Listing


@pytest.mark.process
def test_queries_are_split_until_each_has_a_thousand_results() -> None:
    """Of 4,000 repositories, 1,500 were created in the same second, with different numbers of stars."""
    rng = random.Random(0)
    hosted = [Hosted(n, f"o/r{n}", {}, stars=rng.randrange(2000)) for n in range(1500)]
    for n in range(1500, 4000):
        day, second = rng.randrange(1, 29), rng.randrange(60)
        created = f"20{rng.randrange(15, 22)}-0{rng.randrange(1, 10)}-{day:02}T10:20:{second:02}Z"
        hosted.append(Hosted(n, f"o/r{n}", {}, stars=rng.randrange(2000), created_at=created))
    selection = replace(ALL, created=("2016-02-01", "2021-06-30"), min_stars=3)
    with forge_server(hosted) as server, ForgeClient("GitHub", server.url, {}, (), Clock()) as client:

        def ask(url: str, check: Any, *, limit: str) -> Reply:
            answer = client.get_json(url, check, etag=None, limit=limit)
            return Reply(answer.value or {}, answer.next_url)

        found = Counter(each.id for each in GitHub(server.url).search(Query(None, None), selection, ask))
    wanted = {h.id for h in hosted if "2016-02-01" <= h.created_at[:10] <= "2021-06-30" and h.stars >= 3}
    assert set(found) == wanted
    assert max(found.values()) == 1
    assert all(request.status == 200 for request in server.log)


@pytest.mark.parametrize("kind", KINDS)
def test_repositories_are_selected(kind: str, tmp_path: Path) -> None:
    wanted = {"o/fits": {}, "o/apache": {"license": "Apache-2.0"}, "o/last-day": {"created_at": "2021-12-09T23:59:59Z"}}
    others: dict[str, dict[str, Any]] = {
        "o/gpl": {"license": "GPL-3.0"},
        "o/no-license": {"license": None},
        "o/other-language": {"language": "Ruby"},
        "o/fork": {"is_fork": True},
        "o/archived": {"is_archived": True},
        "o/few-stars": {"stars": 4},
        "o/many-stars": {"stars": 101},
        "o/too-old": {"created_at": "2018-12-31T23:59:59Z"},
        "o/too-new": {"created_at": "2021-12-10T00:00:00Z"},
        "o/not-pushed": {"pushed_at": "2020-01-01T00:00:00Z"},
        "O/Opted-Out": {},
        "gone/any": {},
    }
    hosted = [Hosted(n, name, {"a.py": code(n)}, **more) for n, (name, more) in enumerate({**wanted, **others}.items())]
    opt_out = tmp_path / "opt-out.txt"
    opt_out.write_text("# owners who asked\n\nGone/*  # all of it\n", encoding="utf-8")
    selection = Selection(
        created=("2019-01-01", "2021-12-09"),
        pushed=("2020-06-01", "2021-12-09"),
        main_languages=("JavaScript", "Python"),
        licenses=("Apache-2.0", "MIT"),
        min_stars=5,
        max_stars=100,
        is_archived=False,
        opt_out=("o/opted-out",),
        opt_out_file=opt_out,
    )
    with forge_server(hosted) as server:
        assert set(fetch(forge_of(server, tmp_path, selection, kind))) == set(wanted)
        few = replace(selection, max_repositories=2)
        assert len(fetch(forge_of(server, tmp_path / "few", few, kind))) == 2
        assert all(file.stars == 5 for file in files_of(forge_of(server, tmp_path, selection, kind)))


def test_gitlab_is_listed_in_pages(tmp_path: Path) -> None:
    hosted = [Hosted(n, f"group/sub/r{n}", {"a.py": code(n)}, stars=n) for n in range(1, 251)]
    with forge_server(hosted) as server:
        forge = forge_of(server, tmp_path, replace(ALL, min_stars=245), "gitlab")
        assert set(fetch(forge)) == {f"group/sub/r{n}" for n in range(245, 251)}
        assert len(server.requests("pagination=keyset")) == 3
        assert {file.revision for file in files_of(forge)} == {each.commit for each in hosted[244:]}


def test_a_listing_that_repeats_itself_is_refused(server: ForgeServer, tmp_path: Path) -> None:
    forge = forge_of(server, tmp_path, service="gitlab")
    page = b'[{"id": 1, "path_with_namespace": "o/r", "star_count": 1, "created_at": "2020-01-01"}]'

    def repeat(handler: Any) -> None:
        handler.send(page, headers={"Link": f'<{server.url}{handler.path}>; rel="next"'})

    server.faults["pagination=keyset"] = [repeat] * 3
    with pytest.raises(ForgeError, match="order of their ids"):
        fetch(forge)


def test_entries_of_another_form_are_ignored(
    server: ForgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = b'{"id": 9, "path_with_namespace": "o/r", "star_count": 1, "created_at": "2020-01-01"}'
    names = (b'"../etc"', b'"a/../b"', b'"no-owner"', b"17", b'"a/b c"', b'"a/b\\n"')
    bad = [good.replace(b'"o/r"', name).replace(b"9", str(n).encode(), 1) for n, name in enumerate(names)]
    bad += [b"1", b"[]", b'{"id": "x"}', good.replace(b"9", b"-9"), good.replace(b"9", b"9" * 30)]
    server.faults["pagination=keyset"] = [send_bytes(b"[" + b",".join([*bad, good]) + b"]")]
    assert fetch(forge_of(server, tmp_path, service="gitlab")) == {"o/r": "not found (HTTP 404)"}
    assert f"{len(bad)} entries of the listing" in capsys.readouterr().err


# Corpora


def test_only_archives_are_named_by_the_state(server: ForgeServer, tmp_path: Path) -> None:
    """The state may come from somebody else. A path in it is neither read nor removed."""
    forge = forge_of(server, tmp_path)
    fetch(forge)
    victim = tmp_path / "victim.tar.gz"
    victim.write_bytes(b"mine")
    with sqlite3.connect(tmp_path / "forge" / "state.sqlite") as state:
        state.execute("UPDATE repositories SET file = ? WHERE id = 2", (str(victim),))
    state.close()
    selection = replace(ALL, opt_out=("owner2/*",))
    for changed in (forge, forge_of(server, tmp_path, selection)):
        with pytest.raises(InvalidFileError, match="no archive"):
            list(changed.units(tmp_path / "scratch"))
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", KINDS)
def test_corpus_of_archives_equals_that_of_local_folders(kind: Any, tmp_path: Path) -> None:
    repositories = {
        "one": {"LICENSE": MIT_TEXT, "z.py": code(1), "src/A.py": code(2), ".hidden/h.py": code(3), "b.txt": "no code"},
        "two": {
            ".gitignore": "*_pb2.py\n/gen/\n",
            "package.json": '{"license": "Apache-2.0"}',
            "a_pb2.py": code(4),
            "gen/g.py": code(5),
            "kept/.gitignore": "!*_pb2.py\n",
            "kept/c_pb2.py": code(6),
            "vendor/v.go": code(7),
            "lib/node_modules/deep/x.js": code(8),
            "inner/pyproject.toml": '[project]\nlicense = {file = "TERMS"}\n',
            "inner/TERMS": MIT_TEXT,
            "inner/below/i.py": code(9),
            "gpl/COPYING": "GNU GENERAL PUBLIC LICENSE\n",
            "gpl/j.py": code(10),
            "é.py": "# é\n" + code(11),
        },
        "three": {"only.py": code(12), "bad.py": "x = '\udce9'\n", "long.py": "x = 1  # " + "y" * MAX_FILE_BYTES},
    }
    local = tmp_path / "local"
    for name, files in repositories.items():
        for path, text in files.items():
            (local / name / path).parent.mkdir(parents=True, exist_ok=True)
            (local / name / path).write_bytes(text.encode("utf-8", "surrogateescape"))
    licenses = {"one": "MIT", "two": None, "three": None}
    hosted = [Hosted(n, f"o/{name}", repositories[name], license=licenses[name]) for n, name in enumerate(licenses)]
    with forge_server(hosted) as server:
        forge = forge_of(server, tmp_path, service=kind)
        manifests, texts = [], []
        sources: tuple[Source, ...] = (LocalRepositories(folder=local), forge)
        for k, source in enumerate(sources):
            config = CorpusConfig(sources=(source,), steps=(), validation_fraction=0)
            manifests.append(build_corpus(config, tmp_path / f"corpus{k}"))
            documents = read_documents(tmp_path / f"corpus{k}", "train")
            texts.append(
                sorted((d.repository.removeprefix("o/"), d.path, d.language, d.license, d.text) for d in documents)
            )
        assert texts[0] == texts[1]
        assert {f"{name}/{path}": license for name, path, _, license, _ in texts[1]} == {
            "one/z.py": "MIT",
            "one/src/A.py": "MIT",
            "two/kept/c_pb2.py": "Apache-2.0",
            "two/inner/below/i.py": "MIT",
            "two/gpl/j.py": "unknown",
            "two/é.py": "Apache-2.0",
            "three/only.py": "unknown",
        }
        reasons = [{reason: each["documents"] for reason, each in m["dropped"].items()} for m in manifests]
        assert reasons[0] == reasons[1]
        assert reasons[0][VENDORED_REASON] == 2
        assert manifests[0]["read"] == manifests[1]["read"]
        n_requests = len(server.log)
        found = files_of(forge)
    assert len(server.log) == n_requests
    assert {file.source for file in found} == {kind}
    assert {(file.repository, file.revision) for file in found} == {(each.name, each.commit) for each in hosted}


def test_a_repository_that_is_not_delivered_is_counted(server: ForgeServer, tmp_path: Path) -> None:
    server.faults = {"name1/git/ref": [refuse(404)], "name2/tarball": [refuse(451)]}
    forge = forge_of(server, tmp_path)
    fetch(forge)
    manifest = build_corpus(CorpusConfig(sources=(forge,), steps=(), validation_fraction=0), tmp_path / "corpus")
    assert {reason: each["examples"] for reason, each in manifest["dropped"].items()} == {
        "not found (HTTP 404)": ["owner1/name1@-/."],
        "blocked for legal reasons (HTTP 451)": ["owner2/name2@-/."],
    }
    assert manifest["kept"]["documents"] == 1


# Hostile servers


@pytest.mark.parametrize(
    "fault",
    [
        drop_connection,
        send_html,
        refuse(500),
        refuse(503, {"Retry-After": "2"}),
        send_bytes(b""),
        lambda handler: handler.send(b"", status=304),
    ],
    ids=["dropped", "html", "500", "503", "empty", "304"],
)
@pytest.mark.parametrize("request_", ["/search/", "name2/git/ref", "codeload/owner2"])
def test_a_failure_that_passes_is_tried_again(fault: Fault, request_: str, server: ForgeServer, tmp_path: Path) -> None:
    server.faults = {request_: [fault, fault]}
    clock = FakeClock()
    assert set(fetch(forge_of(server, tmp_path), clock).values()) == {"fetched"}
    assert len(clock.slept) == 2
    assert 0.5 <= clock.slept[0] <= 2 and clock.slept[1] >= 1
    assert len(list((tmp_path / "forge" / "archives").iterdir())) == 3


@pytest.mark.parametrize(
    ("fault", "reason", "n_requests"),
    [
        (refuse(404), "not found (HTTP 404)", 1),
        (refuse(451), "blocked for legal reasons (HTTP 451)", 1),
        (refuse(403), "forbidden (HTTP 403)", 1),
        (refuse(500), "HTTP 500", 5),
        (drop_connection, "connection lost", 5),
        (send_html, "damaged or truncated file", 5),
        (send_bytes(make_archive({"x/a.py": "x"})[:-5]), "damaged or truncated file", 5),
        (send_bytes(make_archive({"x/a.py": "x"}), 90), "damaged or truncated file", 5),
        (send_bytes(make_archive({"x/a.py": "x"}), 9_000), "connection lost", 5),
        (send_bytes(b"x", 10**12), "over 1,000,000 bytes", 1),
        (never_end, "over 1,000,000 bytes", 1),
        (redirect("http://127.0.0.1:9/elsewhere"), "redirected to another host", 1),
        (redirect("file:///etc/passwd"), "redirected to another host", 1),
        (redirect("http://[::1"), "connection lost", 5),
        (redirect("/codeload/owner2/name2/legacy.tar.gz/0"), "redirected too often", 5),
    ],
)
def test_a_failure_that_stays_counts_and_the_others_are_fetched(
    fault: Fault,
    reason: str,
    n_requests: int,
    server: ForgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forge_http, "MAX_ARCHIVE_BYTES", 1_000_000)
    server.faults = {"codeload/owner2": [fault] * 9}
    forge = forge_of(server, tmp_path)
    assert fetch(forge) == {"owner1/name1": "fetched", "owner2/name2": reason, "owner3/name3": "fetched"}
    assert 9 - len(server.faults["codeload/owner2"]) == n_requests
    assert len(list((tmp_path / "forge" / "archives").iterdir())) == 2
    n_before = len(server.log)
    assert fetch(forge)["owner2/name2"] == reason
    assert len(server.log) == n_before
    server.faults.clear()
    assert set(fetch(forge, refresh=True).values()) == {"fetched"}


@pytest.mark.parametrize("fault", [refuse(404), refuse(401), refuse(422), send_html, refuse(500), never_end])
def test_a_listing_that_fails_stops_the_fetch(
    fault: Fault, server: ForgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forge_http, "MAX_JSON_BYTES", 1_000_000)
    server.faults = {"/search/": [fault] * 9}
    with pytest.raises(ForgeError):
        fetch(forge_of(server, tmp_path))
    server.faults.clear()
    assert len(fetch(forge_of(server, tmp_path))) == 3


def test_a_server_that_is_down_is_named(tmp_path: Path) -> None:
    with forge_server([]) as server:
        pass
    with pytest.raises(ForgeError, match=r"127\.0\.0\.1 cannot be reached"):
        fetch(forge_of(server, tmp_path))


def test_an_answer_that_takes_too_long_is_given_up(server: ForgeServer, tmp_path: Path) -> None:
    clock = FakeClock()

    def pass_hours(handler: Any) -> None:
        handler.begin(200, {"Content-Length": "3"})
        handler.wfile.flush()
        time.sleep(0.2)  # the client has read the header by then
        clock.time += 10_000
        handler.wfile.write(b"abc")

    server.faults = {"codeload/owner2": [pass_hours] * 5}
    assert fetch(forge_of(server, tmp_path), clock)["owner2/name2"] == "an answer that took over 3600 s"


# Rate limits


@pytest.mark.parametrize(
    ("request_", "status", "headers", "message", "seconds"),
    [
        ("/search/", 429, {"Retry-After": "30"}, "slow down", 30),
        ("name2/git/ref", 403, {"Retry-After": "17"}, "slow down", 17),
        (
            "codeload/owner2",
            403,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1600000900"},
            "API rate limit exceeded",
            901,
        ),
        ("/search/", 429, {"RateLimit-Remaining": "0", "RateLimit-Reset": "1600000070"}, "Retry later", 71),
        ("name2/git/ref", 429, {"Retry-After": email.utils.formatdate(1_600_000_045, usegmt=True)}, "later", 45),
        ("codeload/owner2", 429, {}, "no header", 60),
        ("/search/", 403, {}, "You have exceeded a secondary rate limit", 60),
        (
            "name2/git/ref",
            403,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1500000000"},
            "the clocks differ",
            1,
        ),
        ("codeload/owner2", 429, {"Retry-After": "soon"}, "no number", 60),
        ("/search/", 429, {"Retry-After": "0"}, "at once", 1),
    ],
)
def test_rate_limits_are_waited_for(
    request_: str,
    status: int,
    headers: dict[str, str],
    message: str,
    seconds: float,
    server: ForgeServer,
    tmp_path: Path,
) -> None:
    server.faults = {request_: [refuse(status, headers, message)]}
    clock = FakeClock()
    assert set(fetch(forge_of(server, tmp_path), clock).values()) == {"fetched"}
    assert clock.slept == [pytest.approx(seconds)]


def test_no_request_is_made_after_the_last_one_that_is_allowed(server: ForgeServer, tmp_path: Path) -> None:
    """The header comes with a good answer. The limit of the search does not hold for other requests."""
    clock = FakeClock()

    def last(path: str, reset: int) -> Fault:
        def send(handler: Any) -> None:
            headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(1_600_000_000 + reset)}
            commit = server.named("owner1/name1").commit
            handler.send({"object": {"sha": commit}} if "git/ref" in path else results, headers=headers)

        return send

    names = [{"id": n, "full_name": f"owner{n}/name{n}"} for n in (1, 2, 3)]
    rest = {
        "fork": False,
        "archived": False,
        "stargazers_count": 5,
        "created_at": "2020-05-01",
        "default_branch": "main",
    }
    results = {"total_count": 3, "incomplete_results": False, "items": [name | rest for name in names]}
    server.faults = {"/search/": [last("search", 50)], "name1/git/ref": [last("git/ref", 300)]}
    assert set(fetch(forge_of(server, tmp_path), clock).values()) == {"fetched"}
    assert clock.slept == [301]
    assert all(request.status in (200, 302) for request in server.log)


@pytest.mark.parametrize(
    "fault", [refuse(429, {"Retry-After": "999999999999"}), refuse(429, {"Retry-After": "1"})], ids=["long", "often"]
)
def test_endless_rate_limits_stop_the_fetch_and_it_continues(fault: Fault, server: ForgeServer, tmp_path: Path) -> None:
    server.faults = {"codeload/owner2": [fault] * 50}
    with pytest.raises(ForgeError, match="to continue"):
        fetch(forge_of(server, tmp_path))
    assert len(server.requests("codeload/owner1")) == 1
    server.faults.clear()
    assert set(fetch(forge_of(server, tmp_path)).values()) == {"fetched"}
    assert len(server.requests("codeload/owner1")) == 1


# Tokens and hosts


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_is_sent_to_the_forge_only_and_kept_nowhere(
    kind: str,
    server: ForgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"{kind.upper()}_TOKEN", TOKEN + "\n")
    with forge_server(server.repositories) as other:
        target = f"{other.url}/codeload/owner2/name2/legacy.tar.gz/0"
        host = other.url.removeprefix("http://")
        part = "name2/tarball" if kind == "github" else "projects/2/repository/archive"
        server.faults = {part: [redirect(target)], "1/repository": [refuse(500)], "name1/git": [refuse(500)]}
        forge = forge_of(server, tmp_path, service=kind, download_hosts=(host,))
        assert set(fetch(forge).values()) == {"fetched"}
    header = "Authorization" if kind == "github" else "PRIVATE-TOKEN"
    assert {request.headers[header] for request in server.log} == {f"Bearer {TOKEN}" if kind == "github" else TOKEN}
    assert other.log and not any(TOKEN in str(request.headers) for request in other.log)
    server.faults = {"": [refuse(401, message=TOKEN)]}
    with pytest.raises(ForgeError, match="does not accept the token") as refused:
        fetch(forge, refresh=True)
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    output = capsys.readouterr()
    assert TOKEN not in output.out + output.err + str(refused.value) + repr(forge) + str(forge.fingerprint())


def test_a_token_that_is_none_is_not_shown(
    server: ForgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", f"{TOKEN}\nX-Header: injected")
    with pytest.raises(ConfigError, match="GITHUB_TOKEN is no token") as refused:
        fetch(forge_of(server, tmp_path))
    assert TOKEN not in str(refused.value)
    assert not server.log


def test_a_listing_does_not_leave_the_host(server: ForgeServer, tmp_path: Path) -> None:
    with forge_server(server.repositories) as other:
        forge = forge_of(server, tmp_path, download_hosts=(other.url.removeprefix("http://"),))
        server.faults = {"/search/": [redirect(f"{other.url}/search/repositories")]}
        with pytest.raises(ForgeError, match="another host"):
            fetch(forge)
    assert not other.log


def test_a_renamed_repository_is_followed(server: ForgeServer, tmp_path: Path) -> None:
    server.faults = {"repos/owner2/name2/git": [redirect("/repos/owner3/name3/git/ref/heads/main")]}
    assert set(fetch(forge_of(server, tmp_path)).values()) == {"fetched"}


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "https://user:password@example.com", "ftp://example.com", "https://", "https://a b", "x"],
)
def test_unsafe_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="url is"):
        Forge(service="github", url=url, folder=tmp_path, selection=ALL)


# The state


def test_a_refresh_fetches_only_what_has_changed(server: ForgeServer, tmp_path: Path) -> None:
    forge = forge_of(server, tmp_path)
    fetch(forge)
    before = forge.fingerprint()
    server.log.clear()
    fetch(forge, refresh=True)
    assert Counter(request.status for request in server.log) == {304: 4}
    assert forge.fingerprint() == before
    server.named("owner2/name2").files["a.py"] = code(22)
    server.faults = {"name3/git": [refuse(451)], "name1/git": [refuse(500)] * 5}
    server.log.clear()
    assert fetch(forge, refresh=True) == {
        "owner1/name1": "fetched",
        "owner2/name2": "fetched",
        "owner3/name3": "blocked for legal reasons (HTTP 451)",
    }
    assert len(server.requests("codeload")) == 1
    assert forge.fingerprint() != before
    kept = {path.name for path in (tmp_path / "forge" / "archives").iterdir()}
    assert kept == {f"{n}-{server.numbered(str(n)).commit}.tar.gz" for n in (1, 2)}
    assert [file.read() for file in files_of(forge)[:2]] == [code(1).encode(), code(22).encode()]


def test_an_archive_of_an_owner_who_opts_out_is_removed(server: ForgeServer, tmp_path: Path) -> None:
    fetch(forge_of(server, tmp_path))
    n_before = len(server.log)
    forge = forge_of(server, tmp_path, replace(ALL, opt_out=("OWNER2/*",)))
    assert set(fetch(forge)) == {"owner1/name1", "owner3/name3"}
    assert len(server.log) == n_before
    assert not list((tmp_path / "forge" / "archives").glob("2-*"))
    assert {file.repository for file in files_of(forge)} == {"owner1/name1", "owner3/name3"}
    assert set(fetch(forge_of(server, tmp_path)).values()) == {"fetched"}
    assert len(server.log) == n_before + 2


def test_an_archive_that_was_removed_is_fetched_again(server: ForgeServer, tmp_path: Path) -> None:
    forge = forge_of(server, tmp_path)
    fetch(forge)
    next((tmp_path / "forge" / "archives").glob("2-*")).unlink()
    fetch(forge)
    assert len(server.requests("codeload/owner2")) == 2
    assert len(server.requests("codeload/owner1")) == 1


def wait_for_file(folder: Path, pattern: str) -> None:
    for _ in range(200):
        if list(folder.glob(pattern)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {folder}")


@pytest.mark.process
def test_a_fetch_that_was_killed_continues(tmp_path: Path) -> None:
    """SIGKILL while the second page of the listing is sent, and while the third archive is."""
    hosted = [Hosted(n, f"o/r{n}", {"a.py": code(n)}, stars=500 - n) for n in range(120)]
    program = str(Path(__file__).parent / "programs" / "fetch_repositories.py")
    with forge_server(hosted) as server:
        command = [sys.executable, program, server.url, str(tmp_path / "forge")]
        finished: list[str] = []
        for part in ("page=2", "codeload/o/r2/"):
            server.faults = {part: [stall]}
            server.stalled.clear()
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=program_environment())
            try:
                assert server.stalled.wait(60)
                if "codeload" in part:
                    wait_for_file(tmp_path / "forge" / "archives", ".2-*")
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
            paths = [request.path for request in server.log if part not in request.path]
            finished += [path for path in paths if "tarball/" not in path]
            assert len(set(finished)) == len(finished)
            server.log.clear()
        assert {part for part in ("codeload/o/r0/", "codeload/o/r1/") if any(part in path for path in finished)}
        assert list((tmp_path / "forge" / "archives").glob(".2-*"))
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env=program_environment()
        )
        assert done.returncode == 0, done.stderr
        again = {request.path for request in server.log} & set(finished)
        assert not again
        assert len(server.requests("/search/")) == 0
        assert len(server.requests("codeload/")) == 118
    assert len(list((tmp_path / "forge" / "archives").iterdir())) == 120


def test_a_folder_has_one_forge_and_one_process(server: ForgeServer, tmp_path: Path) -> None:
    forge = forge_of(server, tmp_path)
    fetch(forge)
    with Fetcher("github", server.url, forge.folder, ALL, ()), pytest.raises(ForgeError, match="in use"):
        fetch(forge)
    with forge_server([]) as other, pytest.raises(ConfigError, match="use another folder"):
        fetch(replace(forge, url=other.url))


def test_damaged_state_is_named(server: ForgeServer, tmp_path: Path) -> None:
    forge = forge_of(server, tmp_path)
    fetch(forge)
    state = tmp_path / "forge" / "state.sqlite"
    with sqlite3.connect(state) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CorruptFileError, match="another version"):
        fetch(forge)
    state.write_bytes(b"not a database" * 100)
    with pytest.raises(CorruptFileError, match="is damaged"):
        fetch(forge)


# Selections


@pytest.mark.parametrize(
    "wrong",
    [
        {"created": ("2021-01-01", "2020-01-01")},
        {"created": ("2021-01-01", "today")},
        {"created": ("20210101", "20211231")},
        {"pushed": ("2021-02-30", "2021-12-09")},
        {"main_languages": ("COBOL",)},
        {"min_stars": 5, "max_stars": 4},
        {"min_stars": -1},
        {"max_repositories": 0},
    ],
)
def test_selections_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(ALL, **wrong)


def test_opt_out_lists_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(MissingFileError):
        replace(ALL, opt_out_file=path).read_opt_out()
    for line in ("owner", "*/name", "owner/**", "https://github.com/o/n x"):
        path.write_text(line + "\n", encoding="utf-8")
        with pytest.raises(CodekilnError, match="is not a repository"):
            replace(ALL, opt_out_file=path).read_opt_out()
    path.write_text("https://gitlab.com/Group/Below/name.git\ngit@github.com:o/n.git\n", encoding="utf-8")
    assert replace(ALL, opt_out_file=path).read_opt_out().entries == {"group/below/name", "o/n"}


def test_opt_out_of_a_group_holds_for_all_below() -> None:
    opt_out = replace(ALL, opt_out=("a/b/*", "c/d")).read_opt_out()
    names = ("a/b/c", "A/B/c/d", "a/bc/d", "a/x", "c/d", "c/d/e", "c/dd")
    assert [name for name in names if name in opt_out] == ["a/b/c", "A/B/c/d", "c/d"]


def test_a_selection_without_repositories_is_named(tmp_path: Path) -> None:
    with forge_server([]) as server, pytest.raises(ConfigError, match="no repository of http"):
        list(forge_of(server, tmp_path).units(tmp_path))


def test_recipe_of_the_documentation_is_complete() -> None:
    """It is built without a request."""
    page = (Path(__file__).parent.parent / "docs" / "corpus.md").read_text(encoding="utf-8")
    section = page.split("## Repositories from GitHub and GitLab\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(block, "corpus.md", "exec"), namespace)  # noqa: S102
    record = json.loads(json.dumps(to_record(namespace["forges"](Path("cache")))))
    assert [source["folder"] for source in record["corpus"]["sources"]] == ["cache/github", "cache/gitlab"]
    assert record["corpus"]["sources"][0]["selection"]["licenses"] == [
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "MIT",
    ]


# Hostile archives


def unit_of(path: Path, license: str | None = "MIT") -> ArchiveUnit:
    archive = Archive(path, path.stat().st_size, "github", "o/r", "0" * 40, license, 1, ("Python",))
    return ArchiveUnit((archive,))


def listed(path: Path) -> dict[str, str | None]:
    return {file.path: file.problem for file in unit_of(path).files()}


def write_members(path: Path, *members: tuple[str, bytes, dict[str, Any]], compress: str = "w:gz") -> Path:
    with tarfile.open(path, compress, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for name, data, fields in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            for field_, value in fields.items():
                setattr(entry, field_, value)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_members_that_are_no_files_of_the_repository_are_not_read(tmp_path: Path) -> None:
    link = {"linkname": "/etc/passwd", "size": 0}
    names = (
        "/etc/a.py",
        "r/../../b.py",
        "r/./c.py",
        "../d.py",
        "r//e.py",
        "r/" + "x" * 2000 + ".py",
        "r/" * 200 + "f.py",
    )
    path = write_members(
        tmp_path / "a.tar.gz",
        ("r/first.py", b"first = 1\n", {}),
        ("r/sym.py", b"", link | {"type": tarfile.SYMTYPE}),
        ("r/hard.py", b"", link | {"type": tarfile.LNKTYPE}),
        ("r/fifo.py", b"", {"type": tarfile.FIFOTYPE}),
        ("r/device.py", b"", {"type": tarfile.CHRTYPE}),
        *((name, b"bad = 1\n", {}) for name in names),
        ("r/first.py", b"second = 2\n", {}),
        ("r/\udce9.py", b"name = 1\n", {}),
        ("r/large.py", b"x" * (MAX_FILE_BYTES + 1), {}),
        ("r/last.py", b"last = 1\n", {}),
    )
    files = list(unit_of(path).files())
    assert Counter(file.problem for file in files) == {
        None: 4,
        tarballs.BAD_PATH: len(names),
        tarballs.REPEATED: 1,
    }
    assert [file.path for file in files if file.problem is None] == ["first.py", "\udce9.py", "large.py", "last.py"]
    assert [file.size for file in files if file.path == "large.py"] == [MAX_FILE_BYTES + 1]
    assert [file.read() for file in files if file.path in ("first.py", "last.py") and file.problem is None] == [
        b"first = 1\n",
        b"last = 1\n",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tar.gz"]


def test_members_of_unknown_kinds_are_no_reason_to_stop(tmp_path: Path) -> None:
    """Wherever they say that they are. Only those that may be code are counted."""
    unknown = {"type": b"Z"}
    path = write_members(
        tmp_path / "a.tar.gz",
        ("r/a.py", b"a = 1\n", {}),
        *((name, b"", unknown) for name in ("r/../e", "r/.git/cfg", "r/b.bin", "r/node_modules/x.py", "r/c.py")),
        ("r/node_modules/y.py", b"", unknown),
    )
    assert [(file.path, file.problem) for file in unit_of(path).files()] == [
        ("a.py", None),
        ("r/../e", tarballs.BAD_PATH),
        ("node_modules", VENDORED_REASON),
        ("c.py", members.UNKNOWN_MEMBER),
    ]


def test_archives_that_expand_too_far_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FREE_BYTES", 10_000_000)
    path = write_members(
        tmp_path / "a.tar.gz",
        ("r/a.py", b"a = 1\n", {}),
        ("r/bomb.bin", bytes(20_000_000), {}),
        ("r/b.py", b"b = 1\n", {}),
    )
    assert listed(path) == {".": streams.BOMB}
    monkeypatch.setattr(streams, "MAX_RATIO", 10**6)
    assert listed(path) == {"a.py": None, "b.py": None}
    monkeypatch.setattr(tarballs, "MAX_EXPANDED_BYTES", 15_000_000)
    assert listed(path) == {".": streams.TOO_LONG}


def test_large_headers_are_not_read_into_memory(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar.gz", ("r/a.py", b"", {"pax_headers": {"comment": "x" * 5_000_000}}))
    assert listed(path) == {"a.py": members.UNKNOWN_MEMBER}


def test_declarations_that_fill_the_memory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarballs, "MAX_DECLARED_BYTES", 100_000)
    members: list[tuple[str, bytes, dict[str, Any]]] = [(f"r/{n}/LICENSE", b"x" * 10_000, {}) for n in range(20)]
    assert listed(write_members(tmp_path / "a.tar.gz", *members)) == {".": tarballs.TOO_MANY}


@pytest.mark.parametrize("seed", range(40))
def test_damaged_archives_never_fail(seed: int, tmp_path: Path) -> None:
    """Random bytes of the tar, or of the compressed file, are changed, or it is cut."""
    rng = random.Random(seed)
    members: list[tuple[str, bytes, dict[str, Any]]] = [
        (f"r/{'d/' * (n % 3)}f{n}.py", rng.randbytes(n * 40), {}) for n in range(20)
    ]
    plain = write_members(
        tmp_path / "a.tar", *members, ("r/" + "l" * 300 + ".py", b"long", {}), compress="w"
    ).read_bytes()
    data = bytearray(plain)
    kind = seed % 4
    if kind == 0:
        del data[rng.randrange(len(plain.rstrip(b"\0"))) :]
    elif kind == 1:
        for _ in range(5):
            data[rng.randrange(len(data) // 512) * 512 + 124 + rng.randrange(32)] = rng.randrange(256)
    compressed = bytearray(gzip.compress(bytes(data)))
    if kind == 2:
        del compressed[rng.randrange(len(compressed)) :]
    elif kind == 3:
        compressed[rng.randrange(len(compressed))] ^= 255
    path = tmp_path / "a.tar.gz"
    path.write_bytes(compressed)
    files = list(unit_of(path).files())
    assert all(len(file.read()) == file.size for file in files if file.problem is None)
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        names = {name.removeprefix("r/") for name in tar.getnames()}
    if kind == 0:
        assert files[-1].problem == streams.DAMAGED
    assert all(file.path in names for file in files if file.problem is None) or kind in (1, 3)


@pytest.mark.parametrize("size", [b"-0000000777\0", b"\xff" * 12, b"77777777777\0", b"99999999999\0"])
def test_wrong_sizes_in_headers_do_not_loop(size: bytes, tmp_path: Path) -> None:
    plain = bytearray(write_members(tmp_path / "a.tar", ("r/a.bin", b"x" * 600, {}), compress="w").read_bytes())
    plain[124:136] = size
    plain[148:156] = b" " * 8
    plain[148:156] = f"{sum(plain[:512]):06o}\0 ".encode()
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(plain)))
    assert set(listed(path)) == {"."}


def test_the_same_files_are_listed_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(make_archive({f"r/{n % 7}/f{n}.py": code(n) for n in range(50)}))
    unit = unit_of(path)
    first = list(unit.files())
    assert first == list(unit.files())
    with tarfile.open(path) as tar:
        assert [f"r/{file.path}" for file in first] == [member.name for member in tar if member.isfile()]


def test_an_archive_that_is_gone_is_named(tmp_path: Path) -> None:
    unit = unit_of(write_members(tmp_path / "a.tar.gz"))
    (tmp_path / "a.tar.gz").unlink()
    with pytest.raises(MissingFileError, match=r"a\.tar\.gz was removed"):
        list(unit.files())


@pytest.mark.parametrize(
    ("key", "expected"),
    [("mit", "MIT"), ("bsd-3-clause", "BSD-3-Clause"), ("GPL-3.0", "GPL-3.0-only"), ("NOASSERTION", "unknown")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_license_of_the_forge_is_an_spdx_id(kind: str, key: str, expected: str, tmp_path: Path) -> None:
    with forge_server([Hosted(1, "o/r", {"a.py": code(1)}, license=key)]) as server:
        assert [file.license for file in files_of(forge_of(server, tmp_path, service=kind))] == [expected]


def test_small_archives_share_a_work_unit(server: ForgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge = forge_of(server, tmp_path)
    fetch(forge)
    assert [len(unit.archives) for unit in forge.units(forge.folder) if isinstance(unit, ArchiveUnit)] == [3]
    monkeypatch.setattr("codekiln.corpus.sources.forge.UNIT_BYTES", 300)
    units = list(forge.units(forge.folder))
    assert [len(unit.archives) for unit in units if isinstance(unit, ArchiveUnit)] == [2, 1]
    assert sum(unit.n_bytes for unit in units) == sum(p.stat().st_size for p in forge.folder.glob("archives/*"))


def test_local_licenses_are_read_as_before(tmp_path: Path) -> None:
    """A name with a NUL is no file."""
    write(tmp_path, {"r/pyproject.toml": '[project]\nlicense = {file = "a\\u0000b"}\n', "r/a.py": "a = 1\n"})
    assert [file.license for file in LocalRepositories(folder=tmp_path).files()] == ["unknown"]
