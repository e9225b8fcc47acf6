"""The metrics log: rows that are kept, damage that is named, and bits per byte."""

import json
from pathlib import Path

import numpy as np
import pytest

from codekiln.errors import InvalidFileError
from codekiln.metrics_log import MetricsLog, MetricsRow, bits_per_byte, read_metrics
from codekiln.progress import sparkline
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.loader import BatchLoader
from codekiln.train.objectives import NextToken
from codekiln.train.prepare import TokenShards


def row(step: int, loss: float = 1.0) -> MetricsRow:
    return {
        "step": step,
        "tokens": 100 * (step + 1),
        "loss": loss,
        "grad_norm": 1.0,
        "lr": 0.1,
        "lr_scale": 1.0,
        "seconds": 0.5,
        "tokens_per_second": 200.0,
        "matmul_efficiency": 0.1,
    }


def write_lines(path: Path, *lines: object, end: str = "\n") -> None:
    path.write_text("\n".join(map(json.dumps, lines)) + end, encoding="utf-8")


def test_rows_of_later_steps_are_removed_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, {"format": 1}, row(0), row(1), row(2), end='\n{"ste')
    assert [found["step"] for found in read_metrics(path)] == [0, 1, 2]
    log = MetricsLog(path, step=2)
    log.write(row(2, loss=7.0))
    log.close()
    assert read_metrics(path) == [row(0), row(1), row(2, loss=7.0)]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0]) == {"format": 1}


def test_log_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for first in ({"format": 2}, row(0), 7):
        write_lines(path, first, row(0))
        with pytest.raises(InvalidFileError, match=r"metrics\.jsonl.*format 1"):
            read_metrics(path)


@pytest.mark.parametrize("damaged", [row(5), {"step": 1}, row(1) | {"loss": "low"}, [], "x"], ids=str)
def test_damaged_line_is_named_by_its_number(damaged: object, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, {"format": 1}, row(0), damaged, row(2))
    with pytest.raises(InvalidFileError, match=r"metrics\.jsonl, line 3\b"):
        read_metrics(path)


def test_bits_per_byte_of_a_uniform_guess(shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    loader = BatchLoader(shards, run_tokenizer, NextToken(), context_length=64, batch_size=4, seed=1)
    batches = [loader.batch(step) for step in range(3)]
    n_tokens = sum(float(batch.loss_weights.sum()) for batch in batches)
    n_bytes = sum(batch.n_bytes for batch in batches)
    assert bits_per_byte(n_tokens * np.log(256), n_bytes) == pytest.approx(8 * n_tokens / n_bytes)


def test_sparkline_shows_the_course_of_the_loss() -> None:
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert len(sparkline(list(range(100)))) == 24
