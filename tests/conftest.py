"""Fixtures of several test files: a tokenizer and a finished run, each made once."""

from pathlib import Path

import pytest

from codekiln.pipeline import build
from codekiln.report.card import write_card, write_report
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.prepare import TokenShards, open_token_shards
from tests.small import EAGER, small_recipe, write_tree


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of 384 ids, trained on the small tree."""
    code = write_tree(tmp_path_factory.mktemp("tokenizer") / "code")
    texts = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    return train_tokenizer(TokenizerConfig(vocab_size=384), texts)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small recipe, all stages, with its card and report. Takes about 6 seconds."""
    folder = tmp_path_factory.mktemp("small")
    run = folder / "run"
    build(small_recipe(write_tree(folder / "code")), run, EAGER)
    write_card(run)
    write_report(run)
    return run


@pytest.fixture(scope="session")
def shards(small_run: Path) -> TokenShards:
    """The token shards of the training split of the small run."""
    return open_token_shards(small_run / "tokens", "train")


@pytest.fixture(scope="session")
def run_tokenizer(small_run: Path) -> Tokenizer:
    """The tokenizer of the small run."""
    return Tokenizer.load(small_run / "tokenizer.json")
