"""Recipes and run directories: records, stages that do nothing twice, refusals, the card and the report."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codekiln.files import TEMPORARY, atomic_write, first_difference, require_free_space, write_json
from codekiln.folders import MARK, claim_folder
from codekiln.overrides import apply_overrides
from codekiln.pipeline import build
from codekiln.recipe import to_record
from codekiln.recipes import get_recipe
from codekiln.recipes.demo import demo
from codekiln.report.card import summarize_results, write_card, write_report
from codekiln.runs import read_stage_record
from codekiln.train.config import MuonConfig, RuntimeConfig
from tests.small import small_recipe, with_train, write_tree

STAGES = ("corpus", "tokenizer", "tokens", "train", "evaluation", "functions")


def code_of(run: Path) -> Path:
    return run.parent / "code"


def test_a_finished_run_is_left_as_it_is(small_run: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in small_run.rglob("*") if path.is_file() and path.name != ".lock"}
    build(small_recipe(code_of(small_run)), small_run, RuntimeConfig(compile=False))
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert {path for path in small_run.rglob("*") if path.is_file() and path.name != ".lock"} == files.keys()


def test_another_recipe_is_refused_by_its_field(small_run: Path) -> None:
    recipe = small_recipe(code_of(small_run))
    with pytest.raises(ValueError, match=r"made by another recipe \(train.seed: found 0, wanted 7\)"):
        build(with_train(recipe, seed=7), small_run, RuntimeConfig(compile=False))
    with pytest.raises(ValueError, match=r"\(model.d_ff: found 128, wanted 64\)"):
        build(apply_overrides(recipe, ["model.d_ff=64"]), small_run, RuntimeConfig(compile=False))


def test_a_stage_of_another_recipe_is_refused(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    record = read_stage_record(run, "corpus")
    record["inputs"]["seed"] = 9
    write_json(run / "stages" / "corpus.json", record)
    with pytest.raises(ValueError, match=r"holds the stage corpus of another recipe \(seed: found 9, wanted 0\)"):
        build(small_recipe(code_of(small_run)), run, RuntimeConfig(compile=False))


def test_what_is_removed_is_made_again_and_equal(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    for removed in ("corpus", "tokens", "model"):
        shutil.rmtree(run / removed)
    (run / "tokenizer.json").unlink()
    build(small_recipe(code_of(small_run)), run, RuntimeConfig(compile=False))
    for path in (
        "corpus/train/part-00000.parquet",
        "tokens/train/tokens-00000.bin",
        "model/model.safetensors",
        "tokenizer.json",
    ):
        assert (run / path).read_bytes() == (small_run / path).read_bytes(), path


def test_two_processes_do_not_work_in_one_run(small_run: Path, tmp_path: Path) -> None:
    claim_folder(tmp_path, "run")
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is at work in"):
            build(small_recipe(code_of(small_run)), tmp_path, RuntimeConfig(compile=False))


def test_the_record_is_plain_json_and_names_every_object(small_run: Path) -> None:
    record = json.loads((small_run / "recipe.json").read_text(encoding="utf-8"))
    assert record == to_record(small_recipe(code_of(small_run)))
    assert record["train"]["objective"]["kind"] == "SpmInfill"
    assert record["corpus"]["rules"][0] == {"kind": "MeanLineLength", "limit": 100}


def test_settings_change_the_recipe_and_unknown_ones_are_refused() -> None:
    recipe = apply_overrides(demo(), ["train.total_tokens=5", "train.optimizer.muon_lr=1", "corpus.seed=3"])
    assert isinstance(recipe.train.optimizer, MuonConfig)
    assert (recipe.train.total_tokens, recipe.train.optimizer.muon_lr, recipe.corpus.seed) == (5, 1.0, 3)
    for setting, told in {
        "train.total_token=5": "unknown; known here are objective, total_tokens",
        "train": "write it as field=value",
        "train.seed=many": "must be of type int",
        "name.first=x": "it has no fields of its own",
        "train.context_length=abc": "must be of type int",
        "train.lora=1": "it is not set like this",
        "init_from=/tmp": "it is not set like this",
        "train.packing=packed": "train.packing=packed: known are apart, joined",
        "train.objective.min_prefix_fraction=1.0": "min_prefix_fraction is 1.0: it must be from 0 to below 1",
        "train.seed=-1": "must not be negative",
        "train.epochs=3": "set one of them, the other to 0",
        "model.n_kv_heads=3": "heads cannot share 3 key heads",
        "tokenizer.vocab_size=100": "need at least",
        "model.vocab_size=64": "the model has 64 rows for",
    }.items():
        with pytest.raises(ValueError, match=told):
            apply_overrides(demo(), [setting])
    with pytest.raises(ValueError, match=r"no recipe is called 'demon': known are codegen-16B, .*, demo, incoder-1B"):
        get_recipe("demon")


def test_vocabularies_change_together() -> None:
    recipe = apply_overrides(demo(), ["tokenizer.vocab_size=8192", "model.vocab_size=8192"])
    assert recipe.model.vocab_size == 8192


def test_the_first_difference_is_named_by_its_path() -> None:
    assert first_difference({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}) == "a.b[1].c: found 2, wanted 3"
    assert first_difference({"a": 1}, {}) == "a: found 1, wanted null"
    assert first_difference({"a": [1]}, {"a": [1]}) is None


def test_the_card_has_the_lines_of_published_cards(small_run: Path) -> None:
    card = write_card(small_run).read_text(encoding="utf-8")
    for line in (
        "Publisher", "Architecture", "Model size", "Resources", "De-duplication", "Filters", "Technology", "Optimizer",
        "Betas", "Eps", "Batch size", "Context window", "Gradient accumulation", "Warm-up", "Learning rate",
        "Weight decay", "Schedule", "Precision", "Initialization", "Strategy", "Tokens and steps", "Hardware", "Time",
        "Licences", "Carbon and cost",
    ):  # fmt: skip
        assert f"| {line} |" in card
    trained = read_stage_record(small_run, "train")["result"]
    assert f"{trained['parameters']:,} parameters" in card and f"{trained['tokens']:,} tokens" in card
    assert (
        f"{trained['validation_bits_per_byte']:.3f} bits a byte"
        in summarize_results(small_run)["Validation, left to right"]
    )


def test_the_report_is_one_file_that_loads_nothing_and_escapes_the_corpus(small_run: Path, tmp_path: Path) -> None:
    page = write_report(small_run).read_text(encoding="utf-8")
    assert "<script src" not in page and "<link" not in page
    for title in ("Loss", "Validation", "Corpus, by reason", "Licences", "Token lengths", "Infilling on held-out code"):
        assert title in page

    hostile = tmp_path / "run"
    shutil.copytree(small_run, hostile)
    record = read_stage_record(hostile, "functions")
    record["result"]["functions"][0]["infill"] = "<script>alert(1)</script>"
    write_json(hostile / "stages" / "functions.json", record)
    page = write_report(hostile).read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page


def test_a_card_of_an_unfinished_run_is_refused(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run" / "stages" / "train.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no finished stage train"):
        write_card(tmp_path / "run")


def test_nothing_held_out_is_said_and_not_measured(tmp_path: Path) -> None:
    recipe = apply_overrides(
        small_recipe(write_tree(tmp_path / "code")), ["corpus.validation_fraction=0", "train.total_tokens=2048"]
    )
    build(recipe, tmp_path / "run", RuntimeConfig(compile=False))
    write_card(tmp_path / "run")
    write_report(tmp_path / "run")
    assert set(summarize_results(tmp_path / "run").values()) == {
        "not measured: nothing is held out",
    }


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temp_path:
        temp_path.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_killed_write_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from codekiln.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as draft:\n"
        "    draft.mkdir(); (draft / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "step"
    with atomic_write(folder) as temp_path:
        temp_path.mkdir()
        (temp_path / "whole").write_text("x", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in folder.iterdir()] == ["whole"]
    with atomic_write(folder) as temp_path:
        temp_path.mkdir()
        (temp_path / "new").write_text("x", encoding="utf-8")
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_disk_without_room_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    """A real failing write: the process may write no file over 1,000 bytes, which fails like a full disk does."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    program = (
        "import sys; from pathlib import Path; from codekiln.files import replacing\n"
        "try:\n"
        "    with replacing(Path(sys.argv[1])) as draft:\n"
        "        draft.write_bytes(b'x' * 5000)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(path)], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"no room on the disk to write {path}: free some space, then run again\n"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"MB free and this run needs about 1000000000000 MB") as refusal:
        require_free_space(tmp_path / "not" / "yet", 10**18)
    assert refusal.value.errno == errno.ENOSPC
    recipe = apply_overrides(demo(), [f"min_free_bytes={10**18}"])
    with pytest.raises(OSError, match="name another folder with --out"):
        build(recipe, tmp_path / "run", RuntimeConfig())
    assert {p.name for p in (tmp_path / "run").iterdir()} == {MARK, ".lock"}


def test_no_draft_is_left_in_a_finished_run(small_run: Path) -> None:
    assert not [path for path in small_run.rglob("*") if path.name.endswith(TEMPORARY) or path.name == ".scratch"]
    assert {path.stem for path in (small_run / "stages").iterdir()} == set(STAGES)
    assert os.access(small_run / "report.html", os.R_OK)
