"""Training: shards, objectives, the loader, the optimizers, and runs that are killed."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from codekiln.corpus.documents import SCHEMA, read_documents, write_parts
from codekiln.files import write_json
from codekiln.metrics_log import MetricsLog, bits_per_byte, read_metrics
from codekiln.model.configs import KilnConfig
from codekiln.model.transformer import Transformer
from codekiln.progress import sparkline
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.checkpoint import Checkpointer, checkpoint_state_dict, list_checkpoints
from codekiln.train.config import AdamWConfig, MuonConfig, RuntimeConfig, TrainConfig
from codekiln.train.flops import measure_peak_flops
from codekiln.train.loader import Batch, BatchLoader
from codekiln.train.loop import _skip_reason, _validation_batches, train
from codekiln.train.objectives import (
    CausalMasking,
    Chunk,
    FillInTheMiddle,
    NextToken,
    Objective,
    SpmInfill,
    encode_around,
)
from codekiln.train.optimizer import OptimizerGroup, orthogonalize
from codekiln.train.parallel import SINGLE_PROCESS, World
from codekiln.train.prepare import TokenShards, open_token_shards, prepare_shards
from codekiln.train.schedules import WSD, Schedule, WarmupCosine, WarmupPolynomial
from tests.small import SPELLED, write_tree

TIMED = ("seconds", "tokens_per_second", "matmul_efficiency")


@pytest.fixture(scope="module")
def shards(small_run: Path) -> TokenShards:
    return open_token_shards(small_run / "tokens", "train")


@pytest.fixture(scope="module")
def run_tokenizer(small_run: Path) -> Tokenizer:
    return Tokenizer.load(small_run / "tokenizer.json")


def ids_of(tokenizer: Tokenizer, text: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(tokenizer.encode(text), np.int64)


def loader_of(shards: TokenShards, tokenizer: Tokenizer, objective: Objective, **changes: Any) -> BatchLoader:
    return BatchLoader(shards, tokenizer, objective, **({"context_length": 64, "rows": 4, "seed": 1} | changes))


def test_shards_hold_every_document_in_order(small_run: Path, shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    documents = list(read_documents(small_run / "corpus", "train"))
    lengths = shards.lengths()
    assert shards.n_documents == len(documents)
    for n, document in enumerate(documents):
        ids = shards.slice(n, 0, int(lengths[n]))
        assert run_tokenizer.decode_bytes(ids.tolist()) == document.text.encode()
        assert run_tokenizer.special_ids.isdisjoint(ids.tolist())
    assert any(SPELLED in document.text for document in documents)


def test_shards_are_the_same_bytes_for_any_number_of_workers_and_after_a_kill(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many parts, with one and three threads of the encoder, one and four shards at once, and killed when the third stands."""
    monkeypatch.setattr("codekiln.corpus.documents.PART_BYTES", 1)
    texts = [document.text for document in read_documents(small_run / "corpus", "train")] * 3
    rows = [dict.fromkeys(SCHEMA.names, "x") | {"text": text} for text in texts]
    batches = (pa.RecordBatch.from_pylist(rows[k : k + 5], SCHEMA) for k in range(0, len(rows), 5))
    parts = write_parts(tmp_path / "corpus" / "train", batches)
    assert len(parts) > 8
    entry = {"documents": len(rows), "text_bytes": sum(len(text.encode()) for text in texts), "parts": parts}
    write_json(tmp_path / "corpus" / "manifest.json", {"splits": {"train": entry}})
    program = """
import os, signal, sys
from pathlib import Path
from codekiln.train import prepare
corpus, tokenizer, folder, at_once, killed_after = sys.argv[1:]
prepare.N_SHARDS_AT_ONCE = int(at_once)
write = prepare._write_shard
def write_and_die(corpus, split, k, *others):
    write(corpus, split, k, *others)
    if k == int(killed_after):
        os.kill(os.getpid(), signal.SIGKILL)
prepare._write_shard = write_and_die
prepare.prepare_shards(Path(corpus), Path(tokenizer), Path(folder))
"""

    def prepared(name: str, *, threads: int, at_once: int, killed_after: int = -1) -> list[bytes]:
        sources = (tmp_path / "corpus", small_run / "tokenizer.json", tmp_path / name)
        command = [sys.executable, "-c", program, *map(str, (*sources, at_once, killed_after))]
        done = subprocess.run(command, env=os.environ | {"RAYON_NUM_THREADS": str(threads)}, check=False)
        assert done.returncode == (0 if killed_after < 0 else -signal.SIGKILL)
        return [file.read_bytes() for file in sorted((tmp_path / name).rglob("*.*"))]

    wanted = prepared("one", threads=1, at_once=1)
    assert len(wanted) == 3 * len(parts) + 1
    assert prepared("many", threads=3, at_once=4) == wanted
    assert prepared("killed", threads=2, at_once=2, killed_after=2) != wanted
    assert prepared("killed", threads=2, at_once=2) == wanted


def test_whole_shards_are_kept_and_stale_ones_made_again(small_run: Path, tmp_path: Path) -> None:
    arguments = (small_run / "corpus", small_run / "tokenizer.json", tmp_path / "tokens")
    first = prepare_shards(*arguments)
    tokens = tmp_path / "tokens" / "train" / "tokens-00000.bin"
    before = tokens.stat().st_mtime_ns
    (tmp_path / "tokens" / "manifest.json").unlink()
    assert prepare_shards(*arguments) == first
    assert tokens.stat().st_mtime_ns == before
    note = tmp_path / "tokens" / "train" / "shard-00000.json"
    note.write_text(note.read_text(encoding="utf-8").replace(first["tokenizer"], "0" * 64), encoding="utf-8")
    assert prepare_shards(*arguments) == first
    assert tokens.stat().st_mtime_ns != before


def test_a_corrupt_shard_is_named(small_run: Path, tmp_path: Path) -> None:
    prepare_shards(small_run / "corpus", small_run / "tokenizer.json", tmp_path)
    tokens = tmp_path / "train" / "tokens-00000.bin"
    data = bytearray(tokens.read_bytes())
    data[7] ^= 1
    tokens.write_bytes(data)
    with pytest.raises(ValueError, match=r"tokens-00000\.bin is corrupt, its SHA-256"):
        open_token_shards(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="holds no finished token shards"):
        open_token_shards(tmp_path / "none", "train")


@given(st.text(alphabet="ab \n\té日😀_()=", min_size=1, max_size=80), st.data())
@settings(max_examples=300)
def test_a_hole_splits_a_text_as_its_three_parts_alone_are_encoded(
    tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    raw = text.encode()
    start = data.draw(st.integers(0, len(raw)))
    stop = data.draw(st.integers(start, len(raw)))
    cut = encode_around(raw, (start, stop), tokenizer)
    parts = [tokenizer.decode(ids) for ids in cut]
    assert "".join(parts) == text
    assert cut == [tokenizer.encode(part) for part in parts]
    assert abs(len(parts[0].encode()) - start) < 4 and abs(len(parts[0].encode() + parts[1].encode()) - stop) < 4


def test_a_hole_in_a_piece_that_begins_inside_a_character_loses_no_byte(tokenizer: Tokenizer) -> None:
    raw = "日本 x".encode()[1:]
    parts = [tokenizer.decode_bytes(ids) for ids in encode_around(raw, (5, 6), tokenizer)]
    assert parts == [raw[:5], raw[5:6], raw[6:]]


def test_the_mixture_keeps_its_shares_and_its_text(tokenizer: Tokenizer) -> None:
    objective = SpmInfill(fim_rate=0.7)
    text = "def f(x):\n    y = x + 1\n\n    return y\n\n\nprint(f(3))\n" * 3
    ids = ids_of(tokenizer, text)
    n_holes = 0
    for seed in range(400):
        piece = Chunk(ids, is_start=False, is_end=False)
        layout = objective(piece, tokenizer, np.random.default_rng(seed))
        assert layout == objective(piece, tokenizer, np.random.default_rng(seed))
        assert len(layout.ids) <= len(ids) + objective.max_added_tokens
        if tokenizer.fim_middle in layout.ids:
            n_holes += 1
            suffix_at, middle_at = layout.ids.index(tokenizer.fim_suffix), layout.ids.index(tokenizer.fim_middle)
            prefix_at = layout.ids.index(tokenizer.fim_prefix)
            assert suffix_at == 0 < prefix_at < middle_at
            right, left = layout.ids[1:prefix_at], layout.ids[prefix_at + 1 : middle_at]
            assert text.startswith(tokenizer.decode([*left, *layout.ids[middle_at:], *right]))
            assert layout.ids[-1] == tokenizer.eos_id
        else:
            assert layout.ids == ids.tolist() and layout.loss_weights == [1.0] * len(ids)
    assert 0.62 < n_holes / 400 < 0.78


def test_documents_without_room_for_a_hole_stay_left_to_right(tokenizer: Tokenizer) -> None:
    always = SpmInfill(fim_rate=1.0, line_rate=1.0)
    layout = always(Chunk(ids_of(tokenizer, "x"), True, True), tokenizer, np.random.default_rng(0))
    assert layout.ids == [tokenizer.eos_id, *tokenizer.encode("x"), tokenizer.eos_id]


@pytest.mark.parametrize("objective", [NextToken(), SpmInfill()], ids=str)
def test_a_batch_is_a_function_of_its_step(shards: TokenShards, run_tokenizer: Tokenizer, objective: Objective) -> None:
    one, other = (loader_of(shards, run_tokenizer, objective) for _ in range(2))
    order = list(range(12))
    random.Random(0).shuffle(order)
    forward = {step: one.batch(step) for step in range(12)}
    for step in order:
        batch = other.batch(step)
        for field in ("ids", "targets", "weights", "documents"):
            assert np.array_equal(getattr(batch, field), getattr(forward[step], field))
    assert not np.array_equal(loader_of(shards, run_tokenizer, objective, seed=2).batch(0).ids, forward[0].ids)


@pytest.mark.parametrize(
    ("objective", "control"),
    [
        (CausalMasking("paper"), INCODER_SPECIAL_TOKENS),
        (CausalMasking("released"), INCODER_SPECIAL_TOKENS),
        (FillInTheMiddle(split="characters"), PSM_SPECIAL_TOKENS),
        (FillInTheMiddle(fim_rate=1.0, split="lines"), PSM_SPECIAL_TOKENS),
    ],
    ids=str,
)
def test_the_papers_objectives_go_through_the_loader_and_are_learned(
    small_run: Path, tmp_path: Path, objective: Objective, control: tuple[str, ...]
) -> None:
    texts = [document.text for document in read_documents(small_run / "corpus", "train")]
    tokenizer = train_tokenizer(TokenizerConfig(256 + 100 + len(control), special_tokens=control), texts)
    tokenizer.save(tmp_path / "tokenizer.json")
    prepare_shards(small_run / "corpus", tmp_path / "tokenizer.json", tmp_path / "tokens")
    shards = open_token_shards(tmp_path / "tokens", "train")
    loaders = [loader_of(shards, tokenizer, objective, context_length=128) for _ in range(2)]
    told = sorted(tokenizer.special_ids - {tokenizer.eos_id, tokenizer.pad_id})
    n_told = 0
    for step in reversed(range(6)):
        batch, again = (loader.batch(step) for loader in loaders)
        assert all(
            np.array_equal(getattr(batch, f), getattr(again, f)) for f in ("ids", "targets", "weights", "documents")
        )
        assert batch.ids.shape == (4, 128) and batch.loss_weights.any(axis=1).all()
        is_told = np.isin(batch.targets, told)
        n_told += int(is_told.sum())
        if isinstance(objective, CausalMasking):  # masks have no weight, what ends one has
            assert not batch.loss_weights[np.isin(batch.targets, told[:-1])].any()
    assert n_told > 6
    train(
        TrainConfig(objective, total_tokens=16_384, global_batch_size=4, save_every=100),
        KilnConfig(1, 32, 2, 1, 16, 64, -(-tokenizer.vocab_size // 64) * 64, 128),
        tokens=tmp_path / "tokens",
        tokenizer=tokenizer,
        run=tmp_path / "run",
        runtime=RuntimeConfig(compile=False),
        inputs={},
    )
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]


def test_left_to_right_an_epoch_holds_each_unit_once(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = loader_of(shards, run_tokenizer, NextToken(), rows=1)
    seen: list[str] = []
    for step in range(loader.sequences_per_epoch):
        batch = loader.batch(step)
        assert batch.document_ids is not None
        for number in range(int(batch.document_ids.max()) + 1):
            here = batch.document_ids[0] == number
            ids, targets = batch.ids[0][here], batch.targets[0][here]
            assert np.array_equal(ids[1:], targets[:-1])
            assert batch.loss_weights[0][here].all()
            seen.append(run_tokenizer.decode([*ids.tolist(), int(targets[-1])]))
        padding = batch.document_ids[0] == -1
        assert not batch.loss_weights[0][padding].any()
    wanted = []
    for document, length in enumerate(shards.lengths().tolist()):
        for start in range(0, length, 63):
            ids_here = shards.slice(document, start, min(start + 63, length))
            if len(ids_here) >= 16:
                wanted.append(run_tokenizer.decode(ids_here.tolist()))
    assert sorted(seen) == sorted(wanted)


def test_end_of_text_stands_where_documents_begin_and_end(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = loader_of(shards, run_tokenizer, NextToken(), rows=1)
    end = run_tokenizer.eos_id
    begins = sum(int((loader.batch(s).ids == end).sum()) for s in range(loader.sequences_per_epoch))
    stop_token_ids = sum(int((loader.batch(s).targets == end).sum()) for s in range(loader.sequences_per_epoch))
    lengths = shards.lengths()
    assert begins == shards.n_documents
    assert stop_token_ids == sum((length - 1) % 63 + 1 >= 16 for length in lengths.tolist())


def test_packing_wastes_little(tokenizer: Tokenizer) -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.2, size=500).astype(np.int64) + 16
    shards = TokenShards((np.zeros(int(lengths.sum()), np.uint16),), (np.cumsum(lengths),))
    loader = loader_of(shards, tokenizer, NextToken(), context_length=256, rows=1)
    documents = [loader.batch(step).document_ids for step in range(loader.sequences_per_epoch)]
    used = [float((row >= 0).mean()) for row in documents if row is not None]
    assert sum(used) / len(used) > 0.95


def test_a_context_too_short_for_its_objective_is_refused(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="context_length is 16: this objective needs at least 29"):
        loader_of(shards, run_tokenizer, SpmInfill(), context_length=16)


def test_the_schedule_at_its_corners() -> None:
    schedule = WSD(warmup_fraction=0.1, decay_fraction=0.5)
    assert [round(schedule(step, 20), 9) for step in (0, 1, 9, 10, 11, 15, 19)] == [0.5, 1.0, 1.0, 1.0, 0.9, 0.5, 0.1]


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_orthogonalization_keeps_directions_and_levels_their_size(shape: tuple[int, int]) -> None:
    matrix = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    found = orthogonalize(matrix)[0]
    levels = torch.linalg.svdvals(found)
    assert levels.min() > 0.5 and levels.max() < 1.4
    # In the basis of the singular vectors what is left beside the diagonal is rounding.
    inside = u.T @ found @ vh.T
    assert (inside - inside.diag().diag()).abs().max() < 1e-4


def test_one_muon_step_by_hand() -> None:
    model = nn.Module()
    model.blocks = nn.Linear(8, 4, bias=False)
    before = model.blocks.weight.detach().clone()
    plan = MuonConfig(schedule=WSD(0.0, 0.0))
    gradient = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    model.blocks.weight.grad = gradient.clone()
    OptimizerGroup(model, plan).step(0, 10)
    ahead = gradient * (1 - 0.95) + 0.95 * (0.05 * gradient)
    expected = before * (1 - 0.02 * 0.1) - 0.02 * orthogonalize(ahead[None])[0]
    assert torch.allclose(model.blocks.weight, expected, atol=1e-6)


def test_optimizer_state_comes_back_by_name() -> None:
    def trained(first: "OptimizerGroup | None") -> tuple[nn.Module, OptimizerGroup]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"blocks": nn.Linear(6, 5), "embedding": nn.Linear(5, 3)})
        optimizers = OptimizerGroup(model, MuonConfig())
        for step in range(2):
            if step == 1 and first is not None:
                state = optimizers.state_dict()
                optimizers = OptimizerGroup(model, MuonConfig())
                optimizers.load_state_dict(state)
            model["embedding"](model["blocks"](torch.ones(2, 6))).square().sum().backward()
            optimizers.step(step, 10)
        return model, optimizers

    straight, optimizers = trained(None)
    resumed, _ = trained(optimizers)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_bits_per_byte_of_a_uniform_guess(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    batches = [loader_of(shards, run_tokenizer, NextToken()).batch(step) for step in range(3)]
    tokens = sum(float(batch.loss_weights.sum()) for batch in batches)
    n_bytes = sum(batch.n_bytes for batch in batches)
    assert bits_per_byte(tokens * np.log(256), n_bytes) == pytest.approx(8 * tokens / n_bytes)


def test_the_log_forgets_what_a_lost_run_wrote(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"ste', encoding="utf-8")
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
    log = MetricsLog(path, step=2)
    log.write({"step": 2, "new": True})
    log.close()
    assert read_metrics(path) == [{"step": 0}, {"step": 1}, {"step": 2, "new": True}]


def test_a_checkpoint_comes_back_and_only_the_last_two_are_kept(tmp_path: Path) -> None:
    def weights(infill: float) -> dict[str, torch.Tensor]:
        return {"a.weight": torch.full((3, 2), infill), "b.weight": torch.full((4,), infill)}

    kept = Checkpointer(tmp_path, SINGLE_PROCESS, {"recipe": "a"})
    for step in (1, 2, 3):
        optimizer_state = {"a.weight.momentum": torch.ones(3, 2), "a.weight.step": torch.tensor(float(step))}
        held = weights(step)
        kept.save(step, checkpoint_state_dict(held, optimizer_state))
        held["a.weight"].zero_()  # what training does next is not in the checkpoint
    with pytest.raises(RuntimeError, match="training failed"), kept:
        raise RuntimeError("training failed")
    # What was written when training failed is there.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    found = weights(0.0)
    step, optimizer_state = kept.load(list_checkpoints(tmp_path)[-1], found)
    assert step == 3 and torch.equal(found["a.weight"], torch.full((3, 2), 3.0))
    assert torch.equal(optimizer_state["a.weight.momentum"], torch.ones(3, 2)) and optimizer_state["a.weight.step"] == 3


def test_checkpoints_that_a_rule_names_stay_for_good(tmp_path: Path) -> None:
    kept = Checkpointer(tmp_path, SINGLE_PROCESS, {}, keep_every=20)
    for step in (10, 20, 30, 40, 50, 55):
        kept.save(step, checkpoint_state_dict({"a.weight": torch.ones(2, 2)}, {}))
    kept.wait()
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == [20, 40, 50, 55]
    (tmp_path / "best").mkdir()
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    kept.save(60, checkpoint_state_dict({"a.weight": torch.ones(2, 2)}, {}))
    kept.wait()
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("step-")} == {"best", "notes.txt"}
    with pytest.raises(ValueError, match="keep_every is 70: it must be a multiple of save_every, 50"):
        TrainConfig(NextToken(), total_tokens=1, keep_every=70)


def test_a_checkpoint_of_another_recipe_or_a_torn_one_is_refused(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(30, 20)}
    kept = Checkpointer(tmp_path, SINGLE_PROCESS, {"train": {"seed": 0}})
    kept.save(1, checkpoint_state_dict(weights, {}))
    kept.wait()
    path = list_checkpoints(tmp_path)[-1]
    with pytest.raises(ValueError, match=r"of another recipe \(train.seed: found 0, wanted 1\)"):
        Checkpointer(tmp_path, SINGLE_PROCESS, {"train": {"seed": 1}}).load(path, weights)
    with pytest.raises(ValueError, match=r"a.weight is \(30, 20\) and must be \(3, 3\); b.weight is missing"):
        kept.load(path, {"a.weight": torch.ones(3, 3), "b.weight": torch.ones(1)})
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is corrupt, \d+ bytes where"):
        kept.load(path, weights)


def test_the_matmul_peak_is_a_rate() -> None:
    assert 1e9 < measure_peak_flops(torch.device("cpu"), torch.float32, size=256, seconds=0.1) < 1e13


def test_the_sparkline_shows_the_course() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert len(sparkline(list(range(100)))) == 24


BUILD = """
import sys, dataclasses
from pathlib import Path
from codekiln.recipe import build
from codekiln.train.loop import Hardware
from tests.small import small_recipe
code, run, compiled = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "compiled"
try:
    build(small_recipe(code, total_tokens=26_000), run, Hardware(compile=compiled))
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_build(code: Path, run: Path, mode: str = "eager") -> subprocess.Popen[bytes]:
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(code), str(run), mode],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish_build(code: Path, run: Path, mode: str = "eager") -> None:
    process = start_build(code, run, mode)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()


def outcome(run: Path) -> tuple[list[dict[str, object]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All that must not depend on where a run was killed: metrics, weights and moments."""
    metrics = [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(run / "metrics.jsonl")]
    last = list_checkpoints(run / "checkpoints")[-1]
    optimizer_state = {
        name: tensor for path in sorted(last.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }
    return metrics, load_file(run / "model" / "model.safetensors"), optimizer_state


def assert_same_outcome(one: Path, other: Path) -> None:
    (metrics, *tensors), (other_metrics, *other_tensors) = outcome(one), outcome(other)
    assert metrics == other_metrics
    for a, b in zip(tensors, other_tensors, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    for stage in ("corpus", "tokenizer", "tokens", "evaluation", "functions"):
        a_record, b_record = (json.loads((run / "stages" / f"{stage}.json").read_text()) for run in (one, other))
        assert a_record["result"] == b_record["result"], stage


def kill_after(process: subprocess.Popen[bytes], run: Path, step: int, number: int) -> None:
    """Sends a signal once the run has logged a step; the moment within the step is random."""
    deadline = time.monotonic() + 120
    while len(read_metrics(run / "metrics.jsonl")) <= step:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.random() * 0.1)
    process.send_signal(number)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    code = write_tree(folder / "code")
    finish_build(code, folder / "run")
    return code, folder / "run"


def test_a_run_killed_at_random_steps_ends_like_one_that_ran_through(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    code, run = undisturbed
    killed = tmp_path / "killed"
    rng = random.Random()
    for step in sorted(rng.sample(range(1, 22), 2)):
        process = start_build(code, killed)
        kill_after(process, killed, step, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    finish_build(code, killed)
    assert_same_outcome(run, killed)


def test_ctrl_c_saves_the_step_under_way_and_the_run_goes_on(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    code, run = undisturbed
    stopped = tmp_path / "stopped"
    process = start_build(code, stopped)
    kill_after(process, stopped, 5, signal.SIGINT)
    assert process.returncode == 130
    last = list_checkpoints(stopped / "checkpoints")[-1]
    assert last.name == f"step-{read_metrics(stopped / 'metrics.jsonl')[-1]['step'] + 1:08}"
    finish_build(code, stopped)
    assert_same_outcome(run, stopped)


@pytest.mark.parametrize("seconds", [2.5, 6.0])
def test_a_run_killed_at_any_moment_ends_like_one_that_ran_through(
    undisturbed: tuple[Path, Path], tmp_path: Path, seconds: float
) -> None:
    code, run = undisturbed
    killed = tmp_path / "killed"
    process = start_build(code, killed)
    try:
        process.communicate(timeout=seconds * (0.7 + 0.6 * random.random()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    finish_build(code, killed)
    assert_same_outcome(run, killed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_killed_and_resumed_ends_like_one_that_ran_through(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    finish_build(code, tmp_path / "run", "compiled")
    process = start_build(code, tmp_path / "killed", "compiled")
    kill_after(process, tmp_path / "killed", 6, signal.SIGKILL)
    finish_build(code, tmp_path / "killed", "compiled")
    assert_same_outcome(tmp_path / "run", tmp_path / "killed")


@pytest.mark.parametrize(
    ("spoiled", "told"), [(7, "^weights are not finite after step 7"), (6, "at step 7, and weights are")]
)
def test_weights_that_are_not_finite_stop_with_the_last_good_checkpoint(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: int, told: str
) -> None:
    """An update spoils them, just before a checkpoint or between two."""
    kept = OptimizerGroup.step

    def step(self: OptimizerGroup, number: int, n_steps: int) -> float:
        factor = kept(self, number, n_steps)
        if number == spoiled:
            weight = self._optimizers[0].param_groups[0]["params"][0]
            weight.detach()[0, 0] = np.inf
        return factor

    monkeypatch.setattr(OptimizerGroup, "step", step)
    with pytest.raises(ValueError, match=rf"{told}.*: lower the learning rate .* checkpoint is .*step-00000006$"):
        trained(small_run, tmp_path, save_every=2)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert last.name == "step-00000006"
    assert all(tensor.isfinite().all() for path in last.glob("*.safetensors") for tensor in load_file(path).values())


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(small_run: Path, tmp_path: Path) -> None:
    """A real failing write: from the third checkpoint on the process may write no file over 100,000 bytes."""
    program = """
import resource, signal, sys
from pathlib import Path
from codekiln.model.configs import KilnConfig
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.checkpoint import Checkpoints
from codekiln.train.loop import Hardware, TrainConfig, train
from codekiln.train.objectives import NextToken
save = Checkpoints.save
def limited(self, step, state):
    self.wait()
    if step == 6:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    save(self, step, state)
Checkpoints.save = limited
source, run = map(Path, sys.argv[1:])
plan = TrainConfig(NextToken(), total_tokens=4096, global_batch_size=4, save_every=2)
try:
    train(plan, KilnConfig(1, 32, 2, 1, 16, 64, 384, 64), tokens=source / "tokens",
          tokenizer=Tokenizer.load(source / "tokenizer.json"), run=run, hardware=Hardware(compile=False), inputs={})
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(small_run), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(
        f"no room on the disk to write {tmp_path / 'list_checkpoints' / 'step-00000006'}: free some"
    )
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000002", "step-00000004"]
    rows = trained(small_run, tmp_path, save_every=2)  # goes on from there
    straight = trained(small_run, tmp_path / "straight", save_every=2)
    assert [row["loss"] for row in rows] == [row["loss"] for row in straight]


def test_shards_are_written_beside_each_other(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts than threads, each tiny, so that some are being written whenever another one is finished."""
    monkeypatch.setattr("codekiln.corpus.documents.PART_BYTES", 1)
    monkeypatch.setattr("codekiln.train.prepare.N_SHARDS_AT_ONCE", 4)
    batches = [
        pa.RecordBatch.from_pylist([dataclasses.asdict(document)], SCHEMA)
        for document in list(read_documents(small_run / "corpus", "train")) * 6
    ]
    parts = write_parts(tmp_path / "corpus" / "train", iter(batches))
    entry = {"documents": len(batches), "text_bytes": 0, "parts": parts}
    write_json(tmp_path / "corpus" / "manifest.json", {"splits": {"train": entry}})
    manifest = prepare_shards(tmp_path / "corpus", small_run / "tokenizer.json", tmp_path / "tokens")
    assert len(manifest["splits"]["train"]["shards"]) == len(parts) > 40
    assert open_token_shards(tmp_path / "tokens", "train").n_documents == len(batches)


def test_joined_rows_are_those_of_codegen_s_code(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    """Against the plain rule: an end of text behind every document, whole rows, and a buffer of what is left."""
    T, end = 80, run_tokenizer.eos_id
    loader = loader_of(shards, run_tokenizer, NextToken(), context_length=T, rows=1, packing="concat")
    order = np.random.default_rng((1, 0)).permutation(shards.n_documents)
    lengths = shards.lengths()
    wanted: list[list[int]] = []
    carry: list[int] = []
    for document in order.tolist():
        text = [*shards.slice(document, 0, int(lengths[document])).tolist(), end]
        for start in range(0, len(text), T):
            part = text[start : start + T]
            if len(part) == T:
                wanted.append(part)
            elif len(part) >= 64:
                carry += part
            while len(carry) >= T:
                wanted.append(carry[:T])
                carry = carry[T:]
    assert loader.sequences_per_epoch == len(wanted) > 5
    batches = [loader.batch(step) for step in range(len(wanted))]
    found = [[*batch.ids[0, : T - 1].tolist(), int(batch.targets[0, T - 2])] for batch in batches]
    assert sorted(found) == sorted(wanted)
    for batch in batches:
        assert np.array_equal(batch.ids[0, 1 : T - 1], batch.targets[0, : T - 2])
        assert batch.loss_weights[0].tolist() == [1.0] * (T - 1) + [0.0]
        assert batch.document_ids is None  # they see each other


def test_parts_of_a_batch_are_its_rows(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = loader_of(shards, run_tokenizer, SpmInfill(), context_length=96)
    whole = loader.batch(3)
    parts = [loader.batch(3, (k, 2)) for k in range(2)]
    for field in ("ids", "targets", "weights", "documents"):
        assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))
    assert sum(part.n_bytes for part in parts) == whole.n_bytes
    assert set(loader.documents(3)) <= set(range(shards.n_documents))


def test_documents_that_run_on_are_learned_left_to_right_only() -> None:
    with pytest.raises(ValueError, match=r"train.packing is joined and the objective SpmInfill"):
        TrainConfig(SpmInfill(), total_tokens=1, global_batch_size=1, packing="concat")


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        # CodeGen's natural-language stage: 3,000 up, a half cosine over 300,000 to a tenth, flat to 350,000 (SPEC: 0.55 at
        # the middle of the cosine).
        (
            WarmupCosine(3000, 300_000, 0.1),
            {0: 0.0, 1500: 0.5, 3000: 1.0, 153_000: 0.55, 303_000: 0.1, 349_999: 0.1},
        ),
        # 350M-Multi: from 1.8e-4 to 3e-5 within 147,000.
        (WarmupCosine(3000, 147_000, 3.0e-5 / 1.8e-4), {3000: 1.0, 76_500: (1 + 1 / 6) / 2, 150_000: 1 / 6}),
        (WarmupCosine(10, None, 0.0), {10: 1.0, 175_005: 0.5, 349_999: 2.2e-11}),
        (WarmupPolynomial(1500, 1.0), {0: 0.0, 750: 0.5, 1500: 1.0, 175_750: 0.5, 349_999: 1 / 348_500, 350_000: 0.0}),
        (WarmupPolynomial(1500, 2.0), {1500: 1.0, 175_750: 0.25}),
    ],
    ids=str,
)
def test_published_schedules_at_their_corners(schedule: Schedule, corners: dict[int, float]) -> None:
    assert {step: schedule(step, 350_000) for step in corners} == pytest.approx(corners, abs=1e-9)


def test_one_adamw_step_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plan = AdamWConfig(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, schedule=WarmupCosine(0, None, 0.1))
    gradients = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    for name, weight in model.named_parameters():
        weight.grad = gradients[name].clone()
    OptimizerGroup(model, plan).step(0, 100)
    for name, weight in model.named_parameters():
        g = gradients[name]
        # At the first step both moments are corrected to the gradient and its square.
        decayed = before[name] * (1 - 0.1 * 0.1) if name == "weight" else before[name]
        assert torch.allclose(weight, decayed - 0.1 * g / (g.abs() + 1e-8), atol=1e-6)


def trained(small_run: Path, run: Path, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of a short training on the small run's tokens."""
    plan = TrainConfig(NextToken(), **({"total_tokens": 4096, "global_batch_size": 4, "save_every": 100} | changes))
    train(
        plan,
        KilnConfig(1, 32, 2, 1, 16, 64, 384, 64),
        tokens=small_run / "tokens",
        tokenizer=Tokenizer.load(small_run / "tokenizer.json"),
        run=run,
        runtime=RuntimeConfig(compile=False),
        inputs={},
    )
    return read_metrics(run / "metrics.jsonl")


def test_the_z_loss_keeps_the_softmax_normalizer_small(small_run: Path, tmp_path: Path) -> None:
    plan = AdamWConfig(lr=3e-3, schedule=WarmupCosine(2))
    with_it = trained(small_run, tmp_path / "with", z_loss=0.1, optimizer=plan, total_tokens=16_384)
    without = trained(small_run, tmp_path / "without", optimizer=plan, total_tokens=16_384)
    # At the start all logits are near 0, so the normalizer is near ln 384.
    assert with_it[0]["z_loss"] == pytest.approx(np.log(384) ** 2, rel=0.02)
    assert with_it[-1]["z_loss"] < 0.7 * with_it[0]["z_loss"]
    assert with_it[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-6) and "z_loss" not in without[0]


def test_a_bad_batch_is_left_out_and_recorded(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight in one batch's loss is infinite."""
    kept = BatchLoader.batch

    def spoiled(self: BatchLoader, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        batch = kept(self, step, part)
        if step == 30 and self._rows == 4:
            batch.loss_weights[0, 0] = np.inf
        return batch

    monkeypatch.setattr(BatchLoader, "batch", spoiled)
    plan = AdamWConfig(lr=1e-3, schedule=WarmupCosine(2))
    rows = trained(small_run, tmp_path, optimizer=plan, total_tokens=64 * 4 * 40)
    skipped = [row for row in rows if "skipped" in row]
    assert [row["step"] for row in skipped] == [30]
    assert "the loss is" in skipped[0]["skipped"] and skipped[0]["lr_scale"] == 0.0
    assert skipped[0]["documents"] and all(isinstance(number, int) for number in skipped[0]["documents"])
    assert np.isfinite(rows[-1]["loss"]) and rows[-1]["loss"] < rows[0]["loss"]


def test_a_spike_is_left_out_and_many_bad_batches_end_the_run(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = trained(small_run, tmp_path / "spikes", max_grad_norm_ratio=1.1, total_tokens=64 * 4 * 40)
    skipped = [row for row in rows if "times the usual" in row.get("skipped", "")]
    assert skipped and all(row["step"] >= 20 and row["lr_scale"] == 0.0 for row in skipped)
    kept = BatchLoader.batch

    def spoiled(self: BatchLoader, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        batch = kept(self, step, part)
        if step >= 10 and self._rows == 4:
            batch.loss_weights[0, 0] = np.nan
        return batch

    monkeypatch.setattr(BatchLoader, "batch", spoiled)
    with pytest.raises(ValueError, match=r"the loss is nan .* at step 29, and 20 batches in a row were bad: lower"):
        trained(small_run, tmp_path / "bad", total_tokens=64 * 4 * 40, save_every=5)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_same_rows_are_validated_whatever_the_ranks(small_run: Path, size: int, rows: int) -> None:
    plan = TrainConfig(NextToken(), total_tokens=1, eval_sequences=7)
    tokenizer = Tokenizer.load(small_run / "tokenizer.json")

    def found(rows: int, size: int) -> tuple[set[tuple[int, ...]], int, set[int]]:
        seen, n_bytes, n_batches = set(), 0, set()
        for rank in range(size):
            mesh: Any = {"data": Mesh(size, rank)}
            batches = _validation_batches(plan, 32, small_run / "tokens", tokenizer, rows, World(rank, size, mesh=mesh))
            n_batches.add(len(batches))
            for batch in batches:
                assert batch.ids.shape == (rows, 32)
                n_bytes += batch.n_bytes
                seen |= {
                    tuple(row)
                    for row, weights in zip(batch.ids.tolist(), batch.loss_weights, strict=True)
                    if weights.any()
                }
        return seen, n_bytes, n_batches

    seen, n_bytes, n_batches = found(rows, size)
    assert len(seen) == 7 and len(n_batches) == 1
    assert (seen, n_bytes) == found(1, 1)[:2]


@dataclasses.dataclass
class Mesh:
    """As much of an axis of a device mesh as says who reads what."""

    n: int
    rank: int

    def size(self) -> int:
        return self.n

    def get_local_rank(self) -> int:
        return self.rank


def test_a_spike_is_told_from_what_is_usual() -> None:
    usual = [1.0, 1.1, 0.9] * 10
    assert _skip_reason(2.0, 20.0, usual, 30.0) is None
    assert _skip_reason(2.0, 40.0, usual, 30.0) == "the gradient's norm is 40, 40 times the usual"
    assert _skip_reason(2.0, 40.0, usual[:10], 30.0) is None  # too few to know
    assert _skip_reason(float("nan"), 1.0, usual, 30.0) == "the loss is nan and the gradient's norm 1.0"


def test_blocks_computed_anew_give_the_same_gradients(tokenizer: Tokenizer) -> None:
    model = Transformer(KilnConfig(2, 32, 2, 1, 16, 64, 384, 64))
    ids = torch.randint(0, 384, (2, 20))
    tensors = (ids, ids.roll(-1, 1), torch.ones(2, 20), torch.zeros(2, 20, dtype=torch.long))
    gradients = []
    for activation_checkpointing in (False, True):
        model.activation_checkpointing = activation_checkpointing
        model.zero_grad()
        model.loss_sums(*tensors)[0].backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)
