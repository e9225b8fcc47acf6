"""Checkpoints: saving, loading, which ones are kept, and what is refused."""

from pathlib import Path

import pytest
import torch

from codekiln.errors import ConfigError, CorruptFileError
from codekiln.files import read_record, write_record
from codekiln.train.checkpoint import Checkpointer, checkpoint_state_dict, list_checkpoints
from codekiln.train.config import TrainConfig
from codekiln.train.objectives import NextToken
from codekiln.train.parallel import SINGLE_PROCESS


def test_checkpoint_is_restored_and_the_last_two_are_kept(tmp_path: Path) -> None:
    def weights(fill: float) -> dict[str, torch.Tensor]:
        return {"a.weight": torch.full((3, 2), fill), "b.weight": torch.full((4,), fill)}

    checkpointer = Checkpointer(tmp_path, SINGLE_PROCESS, {"recipe": "a"})
    for step in (1, 2, 3):
        optimizer_state = {"a.weight.momentum": torch.ones(3, 2), "a.weight.step": torch.tensor(float(step))}
        saved = weights(step)
        checkpointer.save(step, checkpoint_state_dict(saved, optimizer_state), {"norm_history": [0.5, step]})
        saved["a.weight"].zero_()  # later changes are not in the checkpoint
    with pytest.raises(RuntimeError, match="training failed"), checkpointer:
        raise RuntimeError("training failed")
    # The save that was pending when training failed is complete.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    found = weights(0.0)
    loaded = checkpointer.load(list_checkpoints(tmp_path)[-1], found)
    assert loaded.step == 3 and torch.equal(found["a.weight"], torch.full((3, 2), 3.0))
    assert torch.equal(found["b.weight"], torch.full((4,), 3.0))
    assert torch.equal(loaded.optimizer_state["a.weight.momentum"], torch.ones(3, 2))
    assert loaded.optimizer_state["a.weight.step"] == 3
    assert loaded.training_state == {"norm_history": [0.5, 3]}


def test_permanent_checkpoints_and_other_files_are_kept(tmp_path: Path) -> None:
    tensors = checkpoint_state_dict({"a.weight": torch.ones(2, 2)}, {})
    checkpointer = Checkpointer(tmp_path, SINGLE_PROCESS, {}, keep_every=20)
    for step in (10, 20, 30, 40, 50, 55):
        checkpointer.save(step, tensors, {})
    checkpointer.wait()
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [20, 40, 50, 55]
    (tmp_path / "best").mkdir()
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    checkpointer.save(60, tensors, {})
    checkpointer.wait()
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("step-")} == {"best", "notes.txt"}
    with pytest.raises(ValueError, match=r"keep_every is 70\b.*50"):
        TrainConfig(objective=NextToken(), total_tokens=1, keep_every=70)


def test_checkpoint_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(30, 20)}
    checkpointer = Checkpointer(tmp_path, SINGLE_PROCESS, {"train": {"seed": 0}})
    checkpointer.save(1, checkpoint_state_dict(weights, {}), {})
    checkpointer.wait()
    path = list_checkpoints(tmp_path)[-1]
    with pytest.raises(ConfigError, match=r"step-00000001.*train\.seed: found 0, .*1"):
        Checkpointer(tmp_path, SINGLE_PROCESS, {"train": {"seed": 1}}).load(path, weights)
    with pytest.raises(ValueError, match=r"a\.weight.*\(30, 20\).*\(3, 3\).*b\.weight"):
        checkpointer.load(path, {"a.weight": torch.ones(3, 3), "b.weight": torch.ones(1)})
    file = next(path.glob("*.safetensors"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=rf"{file.name}.*{size - 100}.*{size}"):
        checkpointer.load(path, weights)


def test_state_has_a_format_and_damage_is_named(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, SINGLE_PROCESS, {})
    checkpointer.save(1, checkpoint_state_dict({"a.weight": torch.ones(2, 2)}, {}), {})
    checkpointer.wait()
    path = list_checkpoints(tmp_path)[-1]
    state = read_record(path / "state.json")
    assert state["format"] == 1
    for damaged, name in ((state | {"format": 2}, "format"), (state | {"files": []}, "files")):
        write_record(path / "state.json", damaged)
        with pytest.raises(CorruptFileError, match=rf"state\.json.*{name}"):
            checkpointer.load(path, {"a.weight": torch.ones(2, 2)})
    text = (path / "state.json").read_text(encoding="utf-8").replace('"step": 1', '"step": 2')
    (path / "state.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"state\.json.*not the record that was written"):
        checkpointer.load(path, {"a.weight": torch.ones(2, 2)})
