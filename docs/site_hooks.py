"""Hooks of the documentation site: pages from the root of the repository, and links that lead out of the site."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_LINK = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)+[^)#\s]+|[^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are in the root of the repository."""
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links of the site. A file that is no page keeps its name only."""
    folder = ROOT if page.file.src_uri in ROOT_PAGES else (ROOT / "docs" / page.file.src_uri).parent
    to_docs = "../" * page.file.src_uri.count("/")

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match.groups(default="")
        path = (folder / target).resolve()
        if path.parent == ROOT and path.name in ROOT_PAGES:
            return f"[{text}]({to_docs}{path.name}{anchor})"
        if not path.is_relative_to(ROOT) or not path.exists():
            return match.group(0)  # the strict build reports it
        if path.is_relative_to(ROOT / "docs"):
            return f"[{text}]({to_docs}{path.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        return text if text.startswith("`") else f"`{text}`"

    return _LINK.sub(replace, markdown)
