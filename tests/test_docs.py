"""The documentation: its examples run, its links lead somewhere, and it names commands and options that exist."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from codekiln.cli import app
from tests.markdown import ALL_BLOCKS, PAGES, Block
from tests.small import ROOT, run_program

SECTIONS = [
    line.removeprefix("## ").strip()
    for line in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("## ")
]
LANGUAGES = {"bash", "python", "text", "json", "yaml", "toml", "lua", "vim"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
OTHERS = {"source", "podman", "vllm", "curl", "cat", "tensorboard", "sbatch", "kubectl", "export", "playwright"}
SHELL_BLOCKS = [block for block in ALL_BLOCKS if block.language == "bash"]


@pytest.mark.process
@pytest.mark.parametrize("section", SECTIONS)
def test_examples_of_extending_run(section: str) -> None:
    run_program("run_blocks.py", ROOT / "docs" / "extending.md", section)


def test_extending_has_an_example_of_each() -> None:
    for topic in ("filter", "objective", "schedule", "model family", "benchmark", "recipe"):
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


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_blocks_have_a_language_and_its_syntax(block: Block) -> None:
    assert block.language in LANGUAGES
    if block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "bash":
        subprocess.run(["/bin/bash", "-n", "-c", block.text], check=True, timeout=10)


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_commands_of_shell_blocks_are_accepted(block: Block) -> None:
    """The command line accepts each command: all options and values, and no argument is missing."""
    for command in block.commands:
        words = shlex.split(command.replace("$'", "'"), comments=True)
        for part in " ".join(shlex.quote(word) if word != "|" else word for word in words).split(" | "):
            _check_command(shlex.split(part))


def _check_command(words: list[str]) -> None:  # noqa: PLR0912 - one case per program
    program, *rest = words
    if program.endswith("python") and rest[:2] != ["-m", "sglang.launch_server"]:
        if rest[:2] == ["-m", "codekiln"]:
            _check_command(rest[1:])
        elif rest[0] != "-m":
            path = next(each for each in (ROOT / rest[0], ROOT / "docs" / "cluster" / rest[0]) if each.is_file())
            source = path.read_text(encoding="utf-8")
            for option in [word for word in rest[1 : (*rest, "--").index("--")] if word.startswith("--")]:
                assert f'"{option}"' in source, f"{option} is not an option of {path.name}"
            if "--" in rest:
                _check_command(["codekiln", "train", *rest[rest.index("--") + 1 :]])
    elif program == "torchrun":
        _check_command(rest[rest.index("codekiln") :])
    elif program == "sbatch":
        script = rest.index("train.sbatch")
        _check_command(["codekiln", "train", *rest[script + 1 :]])
    elif program == "kubectl" and "-f" in rest:
        assert (ROOT / "docs" / "cluster" / rest[rest.index("-f") + 1]).is_file()
    elif program == "codekiln":
        parse_command(rest)
    elif program == "make":
        assert rest[0] in TARGETS
    elif program in ("pip", "pipx", "uv"):
        for extras in re.findall(r"\[([a-z,0-9-]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(EXTRAS), extras
    else:
        assert program in OTHERS or rest[:1] == ["-m"], f"unknown program: {program}"


def parse_command(words: list[str]) -> None:
    """Parses the arguments of `codekiln` without running it. Raises what the command line raises for wrong usage."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"unknown command: {name}"
        command = command.commands[name]
    if words in (["--install-completion"], ["--show-completion"], ["--version"]) or "--help" in words:
        return
    command.make_context("codekiln", words)


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.language == "bash"], ids=str)
def test_blocks_that_are_not_run_have_a_reason(block: Block) -> None:
    assert block.note == "" or re.fullmatch(r"not run: \S.{5,}|run as a server|run against the server", block.note)


@pytest.mark.parametrize(
    "words",
    ["train demo", "train demo --out", "train demo --out x --no-such", "serve x --port many", "recipes shown x"],
)
def test_wrong_commands_are_refused(words: str) -> None:
    with pytest.raises((*typer.BadParameter.__bases__, AssertionError)):  # UsageError, which typer does not export
        parse_command(words.split())
