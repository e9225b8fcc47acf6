"""`codekiln verify`: one flipped bit in any file of a run with a checksum is found, and the file is named."""

import json
import re
import shutil
from pathlib import Path

import pytest

from codekiln.verification import runs_in, verify_run
from tests.command import assert_refused, codekiln

FILES = (
    "corpus/train/part-00000.parquet",
    "corpus/validation/part-00000.parquet",
    "corpus/near-duplicates.parquet",
    "corpus/redactions.parquet",
    "corpus/manifest.json",
    "tokenizer.json",
    "tokens/train/tokens-00000.bin",
    "tokens/validation/offsets-00000.bin",
    "tokens/manifest.json",
    "index/suffixes-00000.bin",
    "index/ranks.bin",
    "index/documents.parquet",
    "index/manifest.json",
    "checkpoints/step-00000016/shard-00001-model-00001-of-00001.safetensors",
    "checkpoints/step-00000020/shard-00001-model-00001-of-00001.safetensors",
    "model/model.safetensors",
    "recall/gate.safetensors",
    "model/config.json",
    "model/tokenizer.json",
)


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run, whose files each test restores."""
    copy = tmp_path_factory.mktemp("verify") / "run"
    shutil.copytree(small_run, copy)
    return copy


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_and_a_missing_file_are_named(name: str, run: Path) -> None:
    path = run / name
    original = path.read_bytes()
    try:
        data = bytearray(original)
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
        assert [(each.path, each.fault) for each in verify_run(run).faults] == [(name, "damaged")]
        path.unlink()
        assert [(each.path, each.fault) for each in verify_run(run).faults] == [(name, "missing")]
    finally:
        path.write_bytes(original)


def test_a_whole_run_has_no_faults_and_says_what_has_no_checksum(run: Path) -> None:
    found = verify_run(run)
    assert found.faults == ()
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")}
    assert names.issuperset(FILES) and len(names) == found.n_files + len(found.unrecorded)
    assert not set(FILES) & set(found.unrecorded) and "metrics.jsonl" in found.unrecorded
    assert found.n_bytes == sum((run / name).stat().st_size for name in names - set(found.unrecorded))


def test_the_weights_of_a_run_without_an_evaluation_are_verified(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for stage in ("evaluation", "functions", "recall"):
        (copy / "stages" / f"{stage}.json").unlink(missing_ok=True)
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert ("model/model.safetensors", "damaged") in [(each.path, each.fault) for each in verify_run(copy).faults]


@pytest.mark.parametrize("name", ["recipe.json", "stages/tokens.json", "checkpoints/step-00000016/state.json"])
def test_a_record_that_cannot_be_read_is_named(name: str, run: Path) -> None:
    original = (run / name).read_bytes()
    try:
        (run / name).write_bytes(original[: len(original) // 2])
        assert [(each.path, each.fault) for each in verify_run(run).faults] == [(name, "damaged")]
        digit = re.search(rb"[0-8]", original)
        assert digit is not None
        changed = original[: digit.start()] + b"%d" % (int(digit.group()) + 1) + original[digit.end() :]
        (run / name).write_bytes(changed)
        assert [(each.path, each.fault) for each in verify_run(run).faults] == [(name, "damaged")]
    finally:
        (run / name).write_bytes(original)


def test_the_command_names_each_fault_in_all_runs_of_a_staged_run(run: Path, tmp_path: Path) -> None:
    for stage in ("1-first", "2-second"):
        shutil.copytree(run, tmp_path / "staged" / stage)
    done = codekiln("verify", tmp_path / "staged")
    assert done.returncode == 0 and done.stdout.count("0 are missing or damaged") == 2, done.stdout
    weights = tmp_path / "staged" / "2-second" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (tmp_path / "staged" / "1-first" / "checkpoints" / "step-00000020" / "state.json").unlink()
    done = codekiln("verify", tmp_path / "staged")
    assert done.returncode == 1
    assert f"{weights}: damaged" in done.stdout and "step-00000020/state.json: missing" in done.stdout
    found = json.loads(codekiln("verify", tmp_path / "staged", "--json").stdout)
    assert [len(each["faults"]) for each in found.values()] == [1, 1]
    assert runs_in(run) == [run]
    assert_refused(codekiln("verify", tmp_path), "is no run", "recipe.json")
