"""The documentation: its examples run, its links lead somewhere, and it names commands and options that exist."""

import re
from pathlib import Path

import pytest
import typer

from codekiln.cli import app
from tests.small import ROOT, run_program

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = [
    line.removeprefix("## ").strip()
    for line in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("## ")
]


@pytest.mark.process
@pytest.mark.parametrize("section", SECTIONS)
def test_examples_of_extending_run(section: str) -> None:
    run_program("run_blocks.py", ROOT / "docs" / "extending.md", section)


def test_extending_has_the_five_examples() -> None:
    for topic in ("filter", "objective", "schedule", "model family", "recipe"):
        assert any(topic in section.lower() for section in SECTIONS), topic


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    """Every `codekiln COMMAND ... --option` in a code block or in backticks is a command with that option."""
    root = typer.main.get_command(app)
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(?:    |```)?(.*codekiln .*)$", text, flags=re.MULTILINE)
    for line in lines:
        match = re.search(r"(?:^|[ /])codekiln ([a-z]+)(.*)", line.split("  #")[0])
        if match is None or not re.search(r"(^|\s|-m )(\S*/)?codekiln [a-z]+", line) or "pip install" in line:
            continue
        name, rest = match.groups()
        if name not in root.commands:  # type: ignore[attr-defined]
            assert not line.strip().startswith("codekiln "), f"unknown command: {line}"
            continue
        command = root.commands[name]  # type: ignore[attr-defined]
        words = rest.split()
        while hasattr(command, "commands") and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", rest.split("|")[0]):
            assert option in known | {"--help"}, f"{option} is not an option of codekiln {name}: {line}"
