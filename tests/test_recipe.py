"""Recipes and run directories: records, stages that are skipped, refusals, the card and the report."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from codekiln.arrays import save_arrays
from codekiln.corpus.sources.forge import Forge
from codekiln.corpus.sources.forge_selection import Selection
from codekiln.errors import ConfigError
from codekiln.files import (
    TEMPORARY,
    atomic_write,
    first_difference,
    read_json,
    read_record,
    require_free_space,
    sha256_of,
    to_record,
    write_json,
    write_record,
)
from codekiln.folders import MARK, claim_folder
from codekiln.model.tensors import save_safetensors
from codekiln.overrides import apply_overrides
from codekiln.pipeline import build
from codekiln.recipes import get_recipe
from codekiln.recipes.demo import demo
from codekiln.report.card import summarize_results, write_card, write_report
from codekiln.runs import read_stage_record
from codekiln.train.config import MuonConfig, RuntimeConfig
from tests.small import (
    EAGER,
    program,
    program_environment,
    run_program,
    small_recipe,
    with_train,
    write_tree,
)

STAGES = ("corpus", "tokenizer", "tokens", "index", "train", "evaluation", "recall", "functions")


def code_of(run: Path) -> Path:
    return run.parent / "code"


def test_finished_run_is_not_changed(small_run: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in small_run.rglob("*") if path.is_file() and path.name != ".lock"}
    build(small_recipe(code_of(small_run)), small_run, EAGER)
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert {path for path in small_run.rglob("*") if path.is_file() and path.name != ".lock"} == files.keys()


def test_other_recipe_is_refused_by_its_field(small_run: Path) -> None:
    recipe = small_recipe(code_of(small_run))
    with pytest.raises(ValueError, match=r"train\.seed: found 0, .*7"):
        build(with_train(recipe, seed=7), small_run, EAGER)
    with pytest.raises(ValueError, match=r"model\.d_ff: found 128, .*64"):
        build(apply_overrides(recipe, ["model.d_ff=64"]), small_run, EAGER)


def test_stage_of_another_recipe_is_refused(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    record = read_json(run / "stages" / "corpus.json")
    record["inputs"]["seed"] = 9
    write_record(run / "stages" / "corpus.json", record)
    with pytest.raises(ValueError, match=r"corpus.*seed: found 9, .*0"):
        build(small_recipe(code_of(small_run)), run, EAGER)


@pytest.mark.process
def test_removed_outputs_are_built_again_and_equal(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    for removed in ("corpus", "tokens", "model"):
        shutil.rmtree(run / removed)
    (run / "tokenizer.json").unlink()
    build(small_recipe(code_of(small_run)), run, EAGER)
    for path in (
        "corpus/train/part-00000.parquet",
        "tokens/train/tokens-00000.bin",
        "model/model.safetensors",
        "tokenizer.json",
    ):
        assert (run / path).read_bytes() == (small_run / path).read_bytes(), path


def test_run_in_use_by_another_process_is_refused(small_run: Path, tmp_path: Path) -> None:
    claim_folder(tmp_path, "run")
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process"):
            build(small_recipe(code_of(small_run)), tmp_path, EAGER)


def test_recipe_record_is_plain_json_with_class_names(small_run: Path) -> None:
    record = read_record(small_run / "recipe.json")
    assert record == {"format": 1} | to_record(small_recipe(code_of(small_run)))
    assert record["train"]["objective"]["kind"] == "SpmInfill"
    assert record["corpus"]["steps"][1]["filters"][0] == {"kind": "MeanLineLength", "limit": 100}


def test_overrides_change_the_recipe_and_bad_ones_are_refused() -> None:
    recipe = apply_overrides(demo(), ["train.total_tokens=5", "train.optimizer.muon_lr=1", "corpus.seed=3"])
    assert isinstance(recipe.train.optimizer, MuonConfig)
    assert (recipe.train.total_tokens, recipe.train.optimizer.muon_lr, recipe.corpus.seed) == (5, 1.0, 3)
    for setting, message in {
        "train.total_token=5": r"train\.total_token.*objective, total_tokens",
        "train": r"--set train\b.*field=value",
        "train.seed=many": r"train\.seed=many.*int",
        "name.first=x": r"--set name\b",
        "train.context_length=abc": r"train\.context_length=abc.*int",
        "train.lora=1": r"train\.lora=1",
        "init_from=/tmp": r"init_from=/tmp",
        "train.packing=apart": r"train\.packing=apart.*packed, concat",
        "train.objective.min_prefix_fraction=1.0": r"min_prefix_fraction is 1\.0",
        "train.seed=-1": r"train\.seed is -1",
        "train.epochs=3": r"train\.total_tokens is 4800000.*train\.epochs is 3",
        "model.n_kv_heads=3": r"n_heads is 2.*n_kv_heads is 3",
        "tokenizer.vocab_size=100": r"vocab_size is 100.*261",
        "model.vocab_size=64": r"model\.vocab_size is 64.*2048",
    }.items():
        with pytest.raises(ConfigError, match=message):
            apply_overrides(demo(), [setting])
    with pytest.raises(ConfigError, match=r"'demon'.*codegen-16B, .*demo, incoder-1B"):
        get_recipe("demon")


def test_overrides_are_applied_together() -> None:
    recipe = apply_overrides(demo(), ["tokenizer.vocab_size=8192", "model.vocab_size=8192"])
    assert recipe.model.vocab_size == 8192


def test_first_difference_is_named_by_its_path() -> None:
    assert first_difference({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}) == "a.b[1].c: found 2, wanted 3"
    assert first_difference({"a": 1}, {}) == "a: found 1, wanted null"
    assert first_difference({"a": [1]}, {"a": [1]}) is None


CARD = {  # the fixed form: those of published cards of code models, then what Codekiln adds
    "Model": ["Publisher", "Architecture", "Model size"],
    "Data pre-processing": [
        "Resources", "De-duplication", "Filters", "Steps", "Dropped", "Redacted", "Copyright notices removed",
    ],
    "Tokenizer": ["Technology", "Details"],
    "Hyper-parameters": [
        "Optimizer", "Betas", "Eps", "Batch size", "Context window", "Gradient accumulation", "Gradient clipping", "Warm-up",
        "Learning rate", "Weight decay", "Schedule", "Precision", "Dropout", "Z-loss",
    ],
    "Training": ["Initialization", "Strategy", "Tokens and steps", "Hardware", "Time"],
    "Results": ["Validation, left to right", "Infilling, single-line", "Infilling, span", "Recall"],
    "Corpus and costs": ["Licenses", "Languages", "Held out", "Memorization", "Energy", "Cost"],
}  # fmt: skip


def card_of(run: Path) -> dict[str, dict[str, str]]:
    """The sections of a card with their lines."""
    sections: dict[str, dict[str, str]] = {}
    for part in write_card(run).read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        rows = [line.split(" | ", 1) for line in lines if line.startswith("| ") and line != "| | |"]
        sections[heading] = {name.removeprefix("| "): value.removesuffix(" |") for name, value in rows}
    return sections


def test_card_has_the_lines_of_published_cards(small_run: Path) -> None:
    card = card_of(small_run)
    assert {heading: list(lines) for heading, lines in card.items()} == CARD
    assert all(value for lines in card.values() for value in lines.values())
    trained = read_stage_record(small_run, "train")["result"]
    assert card["Model"]["Model size"].startswith(f"{trained['parameters']:,} parameters")
    assert card["Training"]["Tokens and steps"] == f"{trained['tokens']:,} tokens in {trained['steps']:,} steps"
    bits = f"{trained['validation_bits_per_byte']:.3f} bits per byte"
    assert card["Results"]["Validation, left to right"] == bits
    assert any(bits in result for result in summarize_results(small_run).values())
    assert card["Model"]["Publisher"] == card["Corpus and costs"]["Energy"] == "not recorded"
    # Four sequences of 256 tokens per step, in micro-batches of 2,048 tokens.
    assert card["Hyper-parameters"]["Batch size"] == "1,024 tokens"
    assert card["Hyper-parameters"]["Gradient accumulation"] == "micro-batches per step: 1"
    assert card["Training"]["Initialization"] == "from scratch (initialization: codekiln)"


def test_card_reads_the_records_only(small_run: Path, tmp_path: Path) -> None:
    """Other records make another card: nothing is taken for granted."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    recipe = read_json(run / "recipe.json")
    recipe["corpus"]["steps"] = [
        {"kind": "Filters", "filters": [{"kind": "MaxLineLength", "limit": 77}]},
        {"kind": "ExactDuplicates", "key": "content"},
    ]
    recipe["train"] |= {"dropout": 0.25, "attention_dropout": 0.5, "z_loss": 1e-4, "initialization": "jaxformer"}
    write_record(run / "recipe.json", recipe)
    manifest = read_json(run / "corpus" / "manifest.json")
    manifest["dropped"] = {
        "line too long (characters)": {"step": "Filters", "documents": 3, "bytes": 1, "examples": []},
        "duplicate": {"step": "ExactDuplicates", "documents": 1234, "bytes": 1, "examples": []},
    }
    write_json(run / "corpus" / "manifest.json", manifest)
    for stage, changes in {"train": {"micro_batches_per_step": 16}, "corpus": {}}.items():
        record = read_json(run / "stages" / f"{stage}.json")
        record["result"] |= changes
        if stage == "corpus":
            record["output_sha256"] = sha256_of(run / "corpus" / "manifest.json")
        write_record(run / "stages" / f"{stage}.json", record)
    evaluation = run / "evaluation" / "incoder"
    evaluation.mkdir(parents=True)
    metrics = {
        "pass@1": {"interval": {"value": 0.152, "low": 0.1, "high": 0.2}},
        "bits_per_byte": {"interval": {"value": 1.5, "low": 1.25, "high": 1.75}},
        "pass@10": {"interval": None},
    }
    write_json(evaluation / "results.json", {"format": 1, "benchmarks": {"humaneval": {"metrics": metrics}}})
    card = card_of(run)
    assert card["Data pre-processing"]["De-duplication"] == "exact, by SHA-256 of the content: 1,234 dropped"
    assert card["Data pre-processing"]["Filters"] == "MaxLineLength limit=77: 3 dropped"
    assert card["Hyper-parameters"]["Dropout"] == "0.25; 0.5 of the weights of attention"
    assert card["Hyper-parameters"]["Z-loss"] == "0.0001"
    assert card["Hyper-parameters"]["Gradient accumulation"] == "micro-batches per step: 16"
    assert card["Training"]["Initialization"] == "from scratch (initialization: jaxformer)"
    assert card["Results"]["humaneval (incoder)"] == (
        "pass@1 15.2% [10.0%, 20.0%]; bits_per_byte 1.500 [1.250, 1.750]; pass@10 not recorded"
    )


def test_card_says_what_an_older_version_did_not_record(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    recipe, record = read_json(run / "recipe.json"), read_json(run / "stages" / "train.json")
    for name in ("dropout", "attention_dropout", "initialization"):
        del recipe["train"][name]
    del record["result"]["micro_batches_per_step"]
    write_record(run / "recipe.json", recipe)
    write_record(run / "stages" / "train.json", record)
    card = card_of(run)
    assert card["Hyper-parameters"]["Dropout"] == card["Hyper-parameters"]["Gradient accumulation"] == "not recorded"
    assert card["Training"]["Initialization"] == "from scratch (initialization: not recorded)"


def test_report_loads_nothing_and_escapes_the_corpus(small_run: Path, tmp_path: Path) -> None:
    page = write_report(small_run).read_text(encoding="utf-8")
    assert "<script src" not in page and "<link" not in page
    for title in ("Loss", "Validation", "Dropped files", "Licenses", "Token lengths", "Infilling on held-out code"):
        assert title in page

    hostile = tmp_path / "run"
    shutil.copytree(small_run, hostile)
    record = read_json(hostile / "stages" / "functions.json")
    record["result"]["functions"][0]["infill"] = "<script>alert(1)</script>"
    write_record(hostile / "stages" / "functions.json", record)
    page = write_report(hostile).read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" not in page and "&lt;script&gt;alert(1)" in page


def test_card_of_an_unfinished_run_is_refused(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run" / "stages" / "train.json").unlink()
    with pytest.raises(FileNotFoundError, match="stage train"):
        write_card(tmp_path / "run")


@pytest.mark.process
def test_run_without_validation_documents_is_not_measured(tmp_path: Path) -> None:
    recipe = apply_overrides(
        small_recipe(write_tree(tmp_path / "code")), ["corpus.validation_fraction=0", "train.total_tokens=2048"]
    )
    build(recipe, tmp_path / "run", EAGER)
    write_card(tmp_path / "run")
    write_report(tmp_path / "run")
    results = set(summarize_results(tmp_path / "run").values())
    assert len(results) == 1 and "not measured" in results.pop()


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temp_path:
        temp_path.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_files_of_weights_have_the_mode_of_other_files(tmp_path: Path) -> None:
    """The library of safetensors makes files that only their owner may read: others could not use a run."""
    (tmp_path / "other").touch()
    with atomic_write(tmp_path / "file") as temp_path:
        save_safetensors(temp_path, {"a": torch.zeros(2)})
    with atomic_write(tmp_path / "folder") as temp_path:
        temp_path.mkdir()
        save_safetensors(temp_path / "inside", {"a": torch.zeros(2)})
    save_arrays(tmp_path / "arrays", {"a": np.zeros(2)})
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["arrays", "file", "folder", "other"]


@pytest.mark.process
def test_killed_write_keeps_the_old_folder_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    with atomic_write(folder) as temp_path:
        temp_path.mkdir()
        (temp_path / "whole").write_text("x", encoding="utf-8")
    done = run_program("write_and_die.py", folder, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [p.name for p in folder.iterdir()] == ["whole"]
    with atomic_write(folder) as temp_path:
        temp_path.mkdir()
        (temp_path / "new").write_text("x", encoding="utf-8")
    assert [p.name for p in folder.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


@pytest.mark.process
def test_full_disk_is_reported_and_the_old_file_kept(tmp_path: Path) -> None:
    """A real failing write: the process may write no file over 1,000 bytes, which fails as a full disk does."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        program("write_large_file.py", path),
        preexec_fn=limit,
        env=program_environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(path) in done.stdout and "disk" in done.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_too_little_disk_space_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"MB free.* 1000000000000 MB") as refusal:
        require_free_space(tmp_path / "not" / "yet", 10**18)
    assert refusal.value.errno == errno.ENOSPC
    recipe = apply_overrides(demo(), [f"min_free_bytes={10**18}"])
    with pytest.raises(OSError, match="--out"):
        build(recipe, tmp_path / "run", RuntimeConfig())
    assert {p.name for p in (tmp_path / "run").iterdir()} == {MARK, ".lock"}


def test_finished_run_has_no_temporary_files(small_run: Path) -> None:
    assert not [path for path in small_run.rglob("*") if path.name.endswith(TEMPORARY) or path.name == ".scratch"]
    assert {path.stem for path in (small_run / "stages").iterdir()} == set(STAGES)
    assert os.access(small_run / "report.html", os.R_OK)


def test_the_record_of_a_forge_names_its_class_and_its_service() -> None:
    selection = Selection(created=("2008-01-01", "2021-12-09"))
    forge = Forge(service="gitlab", folder=Path("there"), selection=selection)
    assert to_record(forge)["kind"] == "Forge" and to_record(forge)["service"] == "gitlab"

    @dataclass
    class Wrong:
        kind: str

    with pytest.raises(TypeError, match="Wrong has a field kind"):
        to_record(Wrong("x"))
