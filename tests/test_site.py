"""The documentation site: a strict build, without dead links, which loads nothing from other hosts."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.small import ROOT

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A warning, such as a link without a target, is an error. No other host can be reached."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


class _Page(HTMLParser):
    """Ids, links, and what the browser loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name, value in attrs if name in ("id", "name") and value}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        elif tag in ("script", "img", "iframe", "link"):
            self.loaded += [str(found[name]) for name in ("src", "href") if found.get(name)]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    return {path: _Page(path) for path in site.rglob("*.html")}


def test_pages_load_nothing_from_other_hosts(pages: dict[Path, _Page]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            assert "://" not in address and not address.startswith("//"), f"{path.name}: {address}"


def test_links_and_anchors_have_targets(site: Path, pages: dict[Path, _Page]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            target, _, anchor = link.partition("#")
            if "://" in link or target.startswith("mailto:"):
                continue
            found = (path.parent / target).resolve() if target else path
            assert found.exists(), f"{path.relative_to(site)}: {link}"
            if anchor and found in pages:
                assert anchor in pages[found].ids, f"{path.relative_to(site)}: {link}"


def test_every_page_is_reachable_from_the_first(site: Path, pages: dict[Path, _Page]) -> None:
    seen, waiting = set[Path](), [site / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        waiting += [
            found
            for link in pages[path].links
            if "://" not in link and (found := (path.parent / link.partition("#")[0]).resolve()) in pages
        ]
    assert set(pages) - seen == {site / "404.html"}


def test_markdown_is_rendered(pages: dict[Path, _Page]) -> None:
    """Lists, tables and blocks that this Markdown reads differently from GitHub's would be left as text."""
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<p>(?:- |\| |\d\. )|```", text), path.name


def test_api_pages_have_the_docstrings(site: Path) -> None:
    from codekiln.generate.complete import Completer

    text = (site / "api" / "generate.html").read_text(encoding="utf-8")
    assert 'id="codekiln.generate.complete.Completer.complete"' in text
    assert str(Completer.complete.__doc__).split(".")[0].split("`")[0].strip() in text


def test_api_pages_have_nothing_but_docstrings() -> None:
    for path in (ROOT / "docs" / "api").glob("*.md"):
        if path.name != "index.md":
            lines = path.read_text(encoding="utf-8").split("\n")
            for line in filter(None, lines):
                assert re.match(r"# \w+$|## codekiln\.|::: codekiln\.|    options:|      heading_level:", line), line


def test_newcomers_read_the_guides_first() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    assert [next(iter(each)) for each in nav] == ["Home", "How to", "Reference", "API", "Background", "Project"]
