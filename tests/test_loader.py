"""Batches: a pure function of the step, packing, concatenation, ranks, and the papers' objectives in batches."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codekiln.corpus.documents import read_documents
from codekiln.metrics_log import read_metrics
from codekiln.model.configs import KilnConfig
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import TrainConfig
from codekiln.train.loader import BatchLoader
from codekiln.train.loop import train
from codekiln.train.objectives import CausalMasking, FillInTheMiddle, NextToken, Objective, SpmInfill
from codekiln.train.prepare import TokenShards, open_token_shards, prepare_shards
from tests.small import EAGER

ARRAYS = ("ids", "targets", "loss_weights", "document_ids")


def loader_of(shards: TokenShards, tokenizer: Tokenizer, objective: Objective, **changes: Any) -> BatchLoader:
    options: dict[str, Any] = {"context_length": 64, "batch_size": 4, "seed": 1} | changes
    return BatchLoader(shards, tokenizer, objective, **options)


@pytest.mark.parametrize("objective", [NextToken(), SpmInfill()], ids=str)
def test_batch_is_a_function_of_its_step(shards: TokenShards, run_tokenizer: Tokenizer, objective: Objective) -> None:
    first, second = (loader_of(shards, run_tokenizer, objective) for _ in range(2))
    order = list(range(12))
    random.Random(0).shuffle(order)
    in_order = {step: first.batch(step) for step in range(12)}
    for step in order:
        batch = second.batch(step)
        for name in ARRAYS:
            assert np.array_equal(getattr(batch, name), getattr(in_order[step], name))
    assert not np.array_equal(loader_of(shards, run_tokenizer, objective, seed=2).batch(0).ids, in_order[0].ids)


@pytest.mark.process
@pytest.mark.parametrize(
    ("objective", "special_tokens"),
    [
        pytest.param(CausalMasking(sampling="paper"), INCODER_SPECIAL_TOKENS, id="causal masking, paper"),
        pytest.param(CausalMasking(sampling="released"), INCODER_SPECIAL_TOKENS, id="causal masking, released"),
        pytest.param(FillInTheMiddle(split="characters"), PSM_SPECIAL_TOKENS, id="fill in the middle, characters"),
        pytest.param(FillInTheMiddle(fim_rate=1.0, split="lines"), PSM_SPECIAL_TOKENS, id="fill in the middle, lines"),
    ],
)
def test_objectives_of_the_papers_are_loaded_and_learned(
    small_run: Path, tmp_path: Path, objective: Objective, special_tokens: tuple[str, ...]
) -> None:
    texts = [document.text for document in read_documents(small_run / "corpus", "train")]
    config = TokenizerConfig(vocab_size=256 + 100 + len(special_tokens), special_tokens=special_tokens)
    tokenizer = train_tokenizer(config, texts)
    tokenizer.save(tmp_path / "tokenizer.json")
    prepare_shards(small_run / "corpus", tmp_path / "tokenizer.json", tmp_path / "tokens")
    shards = open_token_shards(tmp_path / "tokens", "train")
    loaders = [loader_of(shards, tokenizer, objective, context_length=128) for _ in range(2)]
    sentinels = sorted(tokenizer.special_ids - {tokenizer.eos_id, tokenizer.pad_id})
    n_sentinels = 0
    for step in reversed(range(6)):
        batch, again = (loader.batch(step) for loader in loaders)
        assert all(np.array_equal(getattr(batch, name), getattr(again, name)) for name in ARRAYS)
        assert batch.ids.shape == (4, 128) and batch.loss_weights.any(axis=1).all()
        n_sentinels += int(np.isin(batch.targets, sentinels).sum())
        if isinstance(objective, CausalMasking):  # masks have no loss weight; the end of a mask, the last id, has one
            assert not batch.loss_weights[np.isin(batch.targets, sentinels[:-1])].any()
    assert n_sentinels > 6
    train(
        TrainConfig(objective=objective, total_tokens=16_384, global_batch_size=4, save_every=100),
        KilnConfig(
            n_layers=1,
            d_model=32,
            n_heads=2,
            n_kv_heads=1,
            d_head=16,
            d_ff=64,
            vocab_size=-(-tokenizer.vocab_size // 64) * 64,
            context_length=128,
        ),
        tokens=tmp_path / "tokens",
        tokenizer=tokenizer,
        run=tmp_path / "run",
        runtime=EAGER,
        inputs={},
    )
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]


def test_epoch_holds_each_chunk_once(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = loader_of(shards, run_tokenizer, NextToken(), batch_size=1)
    found: list[str] = []
    for step in range(loader.sequences_per_epoch):
        batch = loader.batch(step)
        assert batch.document_ids is not None
        for number in range(int(batch.document_ids.max()) + 1):
            is_here = batch.document_ids[0] == number
            ids, targets = batch.ids[0][is_here], batch.targets[0][is_here]
            assert np.array_equal(ids[1:], targets[:-1])
            assert batch.loss_weights[0][is_here].all()
            found.append(run_tokenizer.decode([*ids.tolist(), int(targets[-1])]))
        is_padding = batch.document_ids[0] == -1
        assert not batch.loss_weights[0][is_padding].any()
    expected = []
    for document, length in enumerate(shards.lengths().tolist()):
        for start in range(0, length, 63):
            ids = shards.slice(document, start, min(start + 63, length))
            if len(ids) >= 16:
                expected.append(run_tokenizer.decode(ids.tolist()))
    assert sorted(found) == sorted(expected)


def test_end_of_text_is_where_documents_begin_and_end(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = loader_of(shards, run_tokenizer, NextToken(), batch_size=1)
    end = run_tokenizer.eos_id
    n_begins = sum(int((loader.batch(step).ids == end).sum()) for step in range(loader.sequences_per_epoch))
    n_ends = sum(int((loader.batch(step).targets == end).sum()) for step in range(loader.sequences_per_epoch))
    assert n_begins == shards.n_documents
    assert n_ends == sum((length - 1) % 63 + 1 >= 16 for length in shards.lengths().tolist())


def test_packing_fills_95_percent_of_the_positions(tokenizer: Tokenizer) -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.2, size=500).astype(np.int64) + 16
    shards = TokenShards((np.zeros(int(lengths.sum()), np.uint16),), (np.cumsum(lengths),))
    loader = loader_of(shards, tokenizer, NextToken(), context_length=256, batch_size=1)
    document_ids = [loader.batch(step).document_ids for step in range(loader.sequences_per_epoch)]
    used = [float((row >= 0).mean()) for row in document_ids if row is not None]
    assert sum(used) / len(used) > 0.95


def test_context_too_short_for_its_objective_is_refused(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"context_length is 16\b.* 29\b"):
        loader_of(shards, run_tokenizer, SpmInfill(), context_length=16)


def test_concatenated_sequences_equal_those_of_codegens_code(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    """Compares with the plain algorithm: an end of text after every document, full sequences, and a buffer of the rest."""
    T, end = 80, run_tokenizer.eos_id
    loader = loader_of(shards, run_tokenizer, NextToken(), context_length=T, batch_size=1, packing="concat")
    order = np.random.default_rng((1, 0)).permutation(shards.n_documents)
    lengths = shards.lengths()
    expected: list[list[int]] = []
    buffer: list[int] = []
    for document in order.tolist():
        ids = [*shards.slice(document, 0, int(lengths[document])).tolist(), end]
        for start in range(0, len(ids), T):
            part = ids[start : start + T]
            if len(part) == T:
                expected.append(part)
            elif len(part) >= 64:
                buffer += part
            while len(buffer) >= T:
                expected.append(buffer[:T])
                buffer = buffer[T:]
    assert loader.sequences_per_epoch == len(expected) > 5
    batches = [loader.batch(step) for step in range(len(expected))]
    found = [[*batch.ids[0, : T - 1].tolist(), int(batch.targets[0, T - 2])] for batch in batches]
    assert sorted(found) == sorted(expected)
    for batch in batches:
        assert np.array_equal(batch.ids[0, 1 : T - 1], batch.targets[0, : T - 2])
        assert batch.loss_weights[0].tolist() == [1.0] * (T - 1) + [0.0]
        assert batch.document_ids is None  # documents see each other


def test_parts_of_ranks_make_up_the_batch(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = loader_of(shards, run_tokenizer, SpmInfill(), context_length=96)
    batch = loader.batch(3)
    parts = [loader.batch(3, rank, 2) for rank in range(2)]
    for name in ARRAYS:
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(batch, name))
    assert sum(part.n_bytes for part in parts) == batch.n_bytes
    assert set(loader.documents(3)) <= set(range(shards.n_documents))


def test_concatenated_documents_need_next_token_prediction() -> None:
    with pytest.raises(ValueError, match=r"train\.packing.*SpmInfill"):
        TrainConfig(objective=SpmInfill(), total_tokens=1, global_batch_size=1, packing="concat")
