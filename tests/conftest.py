"""Shared by the rooms' tests: a tokenizer and a finished run, each made once."""

from pathlib import Path

import pytest

from codekiln.pipeline import build
from codekiln.report.card import write_card, write_report
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.config import RuntimeConfig
from tests.small import small_recipe, write_tree


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of 384 ids, trained on the small tree."""
    code = write_tree(tmp_path_factory.mktemp("tokenizer") / "code")
    texts = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    return train_tokenizer(TokenizerConfig(vocab_size=384), texts)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small recipe, all stages, with its card and report."""
    folder = tmp_path_factory.mktemp("small")
    run = folder / "run"
    build(small_recipe(write_tree(folder / "code")), run, RuntimeConfig(compile=False))
    write_card(run)
    write_report(run)
    return run
