"""Commands need only the packages that they use: others may be missing, and the import of a package is blocked here."""

import subprocess
from pathlib import Path

import pytest

from tests.small import program, program_environment

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("blocked", "arguments"),
    [
        (
            ("daft", "license_expression", "fastapi"),
            (
                "plan",
                "demo",
                "--gpus",
                "1",
                "--set",
                "train.global_batch_size=1",
                "--set",
                "train.initialization=codekiln",
                "--set",
                "model.n_layers=1",
                "--set",
                "model.attention_layers=[0]",
            ),
        ),
        (("torch", "daft"), ("recipes",)),
        (("torch", "daft"), ("compare", "RUN", "--out", "OUT/comparison.html")),
        (("torch", "daft"), ("report", "COPY")),
        (("codekiln.train", "codekiln.corpus", "codekiln.pipeline", "daft"), ("complete", "RUN", "def f(")),
        (("codekiln.train", "codekiln.corpus", "codekiln.pipeline", "daft"), ("infill", "RUN", "def f(", ")\n")),
        (("torch", "daft", "tokenizers", "pyarrow"), ("--help",)),
    ],
)
def test_a_command_runs_without_packages_that_it_does_not_need(
    blocked: tuple[str, ...], arguments: tuple[str, ...], small_run: Path, tmp_path: Path
) -> None:
    places = {"RUN": str(small_run), "OUT": str(tmp_path), "COPY": str(small_run)}
    words = [places.get(word, word.replace("OUT", str(tmp_path))) for word in arguments]
    done = subprocess.run(
        program("run_without.py", ",".join(blocked), *words),
        cwd=tmp_path,
        env=program_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_serving_needs_no_training_code(small_run: Path, tmp_path: Path) -> None:
    blocked = "codekiln.train,codekiln.corpus,codekiln.pipeline,daft"
    command = program("run_without.py", blocked, "serve", str(small_run), "--port", "0")
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=program_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline()
        server.terminate()
        errors = server.stderr.read()
    assert " on http://127.0.0.1:" in line, errors


def test_a_missing_package_is_named_with_the_extra_that_installs_it(small_run: Path, tmp_path: Path) -> None:
    for blocked, extra, arguments in (
        ("daft", "corpus", ("train", "demo", "--out", "run")),
        ("plotly", "report", ("report", "run")),
        ("fastapi", "serve", ("serve", "run", "--port", "0")),
        ("ctranslate2", "ctranslate2", ("complete", small_run, "x", "--backend", "ctranslate2")),
        ("xllamacpp", "llama-cpp", ("complete", small_run, "x", "--backend", "llama.cpp")),
    ):
        command = program("run_without.py", blocked, *arguments)
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=program_environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert f"{blocked} is not installed: pip install 'codekiln[{extra}]'" in done.stderr
