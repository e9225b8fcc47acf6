"""The release: a wheel that works without the checkout, its version, the container file, notices, and shell completion."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import codekiln as package
from tests.command import codekiln
from tests.small import ROOT

PACKAGE = ROOT / "codekiln"
PLAYGROUND = PACKAGE / "serve" / "playground"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network access."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a virtual environment with the wheel. Its dependencies are those of this environment.

    They are on its path, but what this environment has as an editable installation is not.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    command = [sys.executable, "-m", "pip", "--python", str(programs / "python"), *install]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def run(*command: object, cwd: Path, check: bool = True) -> str:
    """The output of a program of another environment, in a folder without a checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment | {"COLUMNS": "200"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def shipped_files() -> set[str]:
    """The files of the package in the checkout, but for the sources of the playground."""
    found = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file()}
    sources = str((PLAYGROUND / "src").relative_to(ROOT))
    return {name for name in found if "__pycache__" not in name and not name.startswith(sources)} - {
        str((PLAYGROUND / "checksums.json").relative_to(ROOT))
    }


@pytest.mark.process
def test_wheel_has_all_files_of_the_package_and_the_licenses(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        script = archive.read("codekiln/serve/playground/playground.js")
        information = f"codekiln-{package.__version__}.dist-info"
        for name in ("LICENSE", "NOTICE"):
            assert archive.read(f"{information}/licenses/{name}") == (ROOT / name).read_bytes()
    assert {name for name in names if not name.startswith(information)} == shipped_files()
    assert script == (PLAYGROUND / "playground.js").read_bytes()
    for needed in (
        "codekiln/evaluate/benchmarks.json", "codekiln/report/templates/report.html.jinja", "codekiln/py.typed",
        "codekiln/serve/playground/playground.js", "codekiln/serve/playground/index.html",
        "codekiln/serve/playground/playground-licenses.txt",
    ):  # fmt: skip
        assert needed in names
    assert wheel.name == f"codekiln-{package.__version__}-py3-none-any.whl"


@pytest.mark.process
def test_wheel_runs_without_the_checkout(installed: Path, small_run: Path, tmp_path: Path) -> None:
    command = installed / "codekiln"
    place = run(installed / "python", "-c", "import codekiln; print(codekiln.__file__)", cwd=tmp_path).strip()
    assert Path(place).is_relative_to(installed.parent)
    assert run(command, "--version", cwd=tmp_path) == f"codekiln {package.__version__}\n"
    assert "kiln-7B" in run(command, "recipes", cwd=tmp_path)
    shutil.copytree(small_run, tmp_path / "run")
    written = run(command, "report", "run", cwd=tmp_path).split()
    assert [Path(name).name for name in written] == ["CARD.md", "report.html"]
    found = json.loads(run(command, "doctor", "--json", cwd=tmp_path))
    assert found["codekiln"] == package.__version__
    assert next(check for check in found["checks"] if check["name"] == "packages")["status"] == "ok"


@pytest.mark.slow
def test_wheel_serves_the_playground_and_completions(installed: Path, small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    with served(installed / "codekiln", tmp_path / "run", tmp_path) as url:
        assert httpx.get(url + "/playground.js").content == (PLAYGROUND / "playground.js").read_bytes()
        assert "playground.js" in httpx.get(url + "/").text
        asked = httpx.post(url + "/v1/completions", json={"prompt": "def f(", "max_tokens": 4}, timeout=60)
        assert asked.json()["choices"][0]["text"]


@contextmanager
def served(command: Path, model: Path, cwd: Path) -> Iterator[str]:
    """The address of `codekiln serve` on a free port of 127.0.0.1."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "serve", model, "--port", "0"],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " on http://127.0.0.1:" in line, (cwd / "log").read_text(encoding="utf-8")
        try:
            yield line.split(" on ")[1].split(" ")[0]
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_version_is_the_same_everywhere() -> None:
    assert codekiln("--version").stdout == f"codekiln {package.__version__}\n"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (?:\[Unreleased\] )?\[?(\d+\.\d+\.\d+)\]?", changelog, flags=re.MULTILINE)
    assert newest is not None and newest[1] == package.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {package.__version__}\n" in citation


def test_notice_has_every_bundled_package() -> None:
    """Those that npm's lock file has, but for the tools that build, and for a package of which the bundle uses nothing."""
    lock = json.loads((PLAYGROUND / "src" / "package-lock.json").read_text(encoding="utf-8"))
    wanted = {
        f"{path.removeprefix('node_modules/')} {entry['version']} ({entry['license']})"
        for path, entry in lock["packages"].items()
        if path and not entry.get("dev")
    }
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    texts = (PLAYGROUND / "playground-licenses.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(\S+ \S+ \(.+\))$", notice, flags=re.MULTILINE))
    assert listed == set(re.findall(r"^(\S+ \S+ \(.+\))$", texts, flags=re.MULTILINE))
    assert listed < wanted and {name.rsplit(" ", 2)[0] for name in wanted - listed} == {"@codemirror/lint"}
    script = (PLAYGROUND / "playground.js").read_text(encoding="utf-8")
    assert (
        "cm-lint" not in script and "cm-tooltip-autocomplete" in script
    )  # classes of that package, and of another one
    for owner in re.findall(r"^Copyright .*$", texts, flags=re.MULTILINE):
        assert owner in notice
    assert " ".join(notice.split()).count("Permission is hereby granted, free of charge") == 1
    assert runpy.run_path(str(ROOT / "docs" / "write_pages.py"))["render_notice"]() == notice


@pytest.mark.process
def test_container_file_passes_the_linter_and_copies_what_exists() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Containerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    (copied,) = re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE)
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied.split():
        assert f"!{name}" in kept
        assert name.startswith("dist/") or (ROOT / name).is_file()
    assert re.search(r"^ENTRYPOINT \[\"codekiln\"\]$", text, flags=re.MULTILINE)
    assert re.search(r"^USER [1-9]\d*$", text, flags=re.MULTILINE)  # not root
    extra = re.search(r"^ARG EXTRAS=(\S+)$", text, flags=re.MULTILINE)
    assert extra is not None and f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.process
def test_bash_completes_commands_options_and_recipes(tmp_path: Path) -> None:
    """The script that `--show-completion` prints, in a real bash."""
    program = tmp_path / "codekiln"
    program.write_text(f"#!{sys.executable}\nfrom codekiln.cli import main\n\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = """
        eval "$(_CODEKILN_COMPLETE=source_bash codekiln)"
        for line in "codekiln fine" "codekiln recipes show incoder" "codekiln serve --por"; do
            COMP_WORDS=($line)
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            "$(complete -p codekiln | sed 's/.*-F \\([^ ]*\\) .*/\\1/')" codekiln
            echo "${COMPREPLY[@]}"
        done
    """
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == ["finetune", "incoder-tiny incoder-1B incoder-6B", "--port"], done.stderr
