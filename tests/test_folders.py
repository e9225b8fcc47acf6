"""Output never replaces or removes what Codekiln did not write, and never goes through links."""

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from codekiln.convert.models import export_model, import_model
from codekiln.errors import ConfigError, OutputExistsError
from codekiln.folders import MARK, atomic_folder, claim_folder, clear_folder, remove_folder
from codekiln.pipeline import build, build_stages
from codekiln.recipe import StagedRecipe
from codekiln.report.compare import read_runs, write_comparison
from codekiln.tokenizer.bpe import Tokenizer, save_tokenizer
from codekiln.train.compile_cache import use_private_compile_cache
from tests.command import codekiln, codekiln_process
from tests.small import EAGER, ROOT, program, small_recipe, with_train, write_tree


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def write_project(folder: Path) -> Path:
    """A project of the user whose files have the names of files of a run."""
    for name in (
        "corpus/__init__.py",
        "model/config.json",
        "tokenizer.json",
        "CARD.md",
        "metrics.jsonl",
        "config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")
    return folder


def test_project_of_the_user_is_not_used_as_a_run(tmp_path: Path) -> None:
    code, project = write_tree(tmp_path / "code"), write_project(tmp_path / "project")
    before = contents(project)
    with pytest.raises(OutputExistsError, match=r"project .*CARD\.md, config\.json, corpus"):
        build(small_recipe(code), project, EAGER)
    with pytest.raises(OutputExistsError, match="project"):
        build_stages(StagedRecipe(name="two", recipes=(small_recipe(code),)), project, EAGER)
    assert contents(project) == before


@pytest.mark.parametrize("out", ["code", "code/run", "."])
def test_output_and_code_do_not_contain_each_other(out: str, tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="code"):
        build(small_recipe(code), tmp_path / out, EAGER)
    assert contents(tmp_path) == before


@pytest.mark.process
def test_empty_path_is_refused(small_run: Path, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    before = contents(project)
    for arguments in (
        ("demo", "--out", ""),
        ("demo", "--out", "run", "--code", ""),
        ("finetune", "", "--code", "x", "--out", "y"),
        ("import", small_run / "model", "--out", ""),
        ("import", "", "--out", "y"),
        ("export", small_run, "--to", "hf", "--out", " "),
        ("tokenizer", "export", small_run, "--out", ""),
        ("compare", small_run, "--out", ""),
        ("complete", "", "x"),
    ):
        with contextlib.chdir(project):
            done = codekiln(*arguments)
        assert done.returncode == 2, done.stderr
        assert "empty" in done.stderr
    assert contents(project) == before


@pytest.mark.process
@pytest.mark.parametrize(
    "write",
    [
        lambda run, out: import_model(run / "model", out),
        lambda run, out: export_model(run / "model", out, "hf"),
        lambda run, out: save_tokenizer(out, Tokenizer.load(run / "tokenizer.json")),
    ],
)
def test_output_folder_replaces_its_own_kind_only(
    write: Callable[[Path, Path], object], small_run: Path, tmp_path: Path
) -> None:
    project = write_project(tmp_path / "project")
    before = contents(project)
    with pytest.raises(OutputExistsError, match="project"):
        write(small_run, project)
    assert contents(project) == before

    (tmp_path / "empty").mkdir()
    write(small_run, tmp_path / "empty")
    first = contents(tmp_path / "empty")
    write(small_run, tmp_path / "empty")
    assert contents(tmp_path / "empty") == first

    (tmp_path / "empty" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match=r"notes\.txt"):
        write(small_run, tmp_path / "empty")
    assert contents(tmp_path / "empty") == first | {"notes.txt": b"mine"}

    with pytest.raises(OutputExistsError, match="a run of Codekiln"):
        write(small_run, shutil.copytree(small_run, tmp_path / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(OutputExistsError, match="symbolic link"):
        write(small_run, tmp_path / "link")


def test_output_file_replaces_only_codekilns_files_unless_forced(small_run: Path, tmp_path: Path) -> None:
    runs = read_runs([small_run])

    def write(path: Path, *, force: bool = False) -> None:
        if path.suffix == ".html":
            write_comparison(runs, path, force=force)
        else:
            export_model(small_run / "model", path, "gguf", force=force)

    for name in ("page.html", "model.gguf"):
        path = tmp_path / name
        path.write_bytes(b"GGUF mine")
        with pytest.raises(OutputExistsError, match=name):
            write(path)
        assert path.read_bytes() == b"GGUF mine"
        write(path, force=True)
        size = path.stat().st_size
        write(path)
        assert path.stat().st_size == size > 10_000
        path.unlink()
        (tmp_path / "target").write_bytes(b"mine")
        path.symlink_to(tmp_path / "target")
        with pytest.raises(OutputExistsError, match="symbolic link"):
            write(path, force=True)
        assert (tmp_path / "target").read_bytes() == b"mine"


@pytest.mark.process
@pytest.mark.parametrize(
    "name", ["corpus", "model", "checkpoints", "tokens/train", "tokenizer.json", ".lock", "tensorboard"]
)
def test_link_inside_a_run_is_refused(name: str, small_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    elsewhere = write_project(tmp_path / "elsewhere")
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere / "tokenizer.json" if "." in name else elsewhere)
    before = contents(elsewhere)
    with pytest.raises(OutputExistsError, match=f"{name} .*symbolic link"):
        build(small_recipe(small_run.parent / "code"), run, EAGER)
    assert contents(elsewhere) == before


@pytest.mark.process
def test_file_of_the_user_inside_a_run_is_kept(small_run: Path, tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    run, recipe = tmp_path / "run", with_train(small_recipe(code, total_tokens=10_240), keep_every=0)
    build(recipe, run, EAGER, stop_after="corpus")
    (run / "corpus" / "notes.txt").write_text("mine", encoding="utf-8")
    (run / "corpus" / "manifest.json").unlink()
    with pytest.raises(OutputExistsError, match=r"corpus .*notes\.txt"):
        build(recipe, run, EAGER, stop_after="corpus")
    assert (run / "corpus" / "train" / "part-00000.parquet").is_file()
    (run / "corpus" / "notes.txt").rename(run / "notes.txt")
    for step in ("00000001", "00000002"):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"step-{step}" / "notes.txt").write_text("mine", encoding="utf-8")
    build(recipe, run, EAGER, stop_after="train")
    assert (run / "notes.txt").is_file()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002", "step-00000008", "step-00000010"]
    assert contents(run / "checkpoints" / "step-00000002") == {"notes.txt": b"mine"}


def test_removing_and_clearing_touch_listed_files_only(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "step", "checkpoint") as temp_path:
        (temp_path / "state.json").write_text("{}", encoding="utf-8")
    (tmp_path / "step" / "notes.txt").write_text("mine", encoding="utf-8")
    remove_folder(tmp_path / "step", "model")
    assert set(contents(tmp_path / "step")) == {MARK, "notes.txt", "state.json"}
    remove_folder(tmp_path / "step", "checkpoint")
    assert set(contents(tmp_path / "step")) == {MARK, "notes.txt"}
    claim_folder(tmp_path / "corpus", "corpus")
    (tmp_path / "corpus" / "part-0.parquet").write_text("x", encoding="utf-8")
    clear_folder(tmp_path / "corpus", "corpus", ["part-*.parquet"])
    assert set(contents(tmp_path / "corpus")) == {MARK}
    (tmp_path / "corpus" / MARK).write_text("[", encoding="utf-8")
    with pytest.raises(OutputExistsError, match=MARK):
        claim_folder(tmp_path / "corpus", "corpus")


@pytest.mark.slow
def test_compiled_code_is_never_read_from_a_run(tmp_path: Path) -> None:
    """The cache of torch.compile is unpickled, so it must belong to the user and never come with a run."""
    cache = tmp_path / "cache" / "codekiln" / "compiled"
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    options = ("--compile", "--total-tokens", 2048, "--stop-after", "train")
    command = program("build_small.py", write_tree(tmp_path / "code"), tmp_path / "run", *options)
    done = subprocess.run(
        command,
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(cache.iterdir()) and stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert not list((tmp_path / "run").rglob("*.so")) and not (tmp_path / "run" / "compiled").exists()


def test_compile_cache_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "open" / "cache"))
    use_private_compile_cache()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="open"):
        use_private_compile_cache()
    (tmp_path / "open").chmod(0o1777)
    use_private_compile_cache()
    (tmp_path / "open" / "cache").chmod(0o722)
    with pytest.raises(ConfigError, match="--no-compile"):
        use_private_compile_cache()


@pytest.mark.process
def test_code_in_the_current_folder_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise SystemExit('a stranger\\'s code ran')", encoding="utf-8")
    done = codekiln_process("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
