"""The choice of the precision of weights: measured, kept, and measured again for other files."""

import os
from pathlib import Path

import pytest
import torch

from codekiln.generate import precision
from codekiln.generate.complete import Completer
from codekiln.generate.precision import choose_precision
from codekiln.model.huggingface import load_model
from codekiln.model.make_decoder import make_decoder
from codekiln.tokenizer.bpe import Tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codekiln" / "precision"


def test_the_fastest_precision_that_agrees_is_chosen(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is small and little trained, so int8 agrees on fewer than 99% of tokens."""
    model, tokenizer = load_model(small_run / "model"), Tokenizer.load(small_run / "tokenizer.json")
    found = []
    for number, limit in enumerate((1.01, 0.0)):
        monkeypatch.setattr(precision, "MIN_AGREEMENT", limit)
        found.append(choose_precision(model, tokenizer, small_run / "model"))
        assert len(list((Path(os.environ["XDG_CACHE_HOME"]) / "codekiln" / "precision").glob("*.json"))) == number + 1
    assert [choice.precision for choice in found] == ["float32", "int8"]
    assert found[0].agreement == found[1].agreement and 0.9 < (found[1].agreement or 0) <= 1


def test_agreement_is_the_fraction_of_equal_predictions(small_run: Path) -> None:
    """Counted again with the transformer that training uses, one sequence after the other."""
    model, tokenizer = load_model(small_run / "model"), Tokenizer.load(small_run / "tokenizer.json")
    sequences = list(precision.held_out_sequences(tokenizer, model.config.context_length))
    assert precision.SAMPLE_TOKENS <= sum(map(len, sequences)) < precision.SAMPLE_TOKENS + precision.SEQUENCE_TOKENS
    with torch.inference_mode():
        expected = torch.cat([model(torch.tensor([ids]))[0].argmax(-1) for ids in sequences])
    exact = make_decoder(model, "float32")
    assert precision.measure_agreement(exact, sequences, expected) > 0.998
    assert 0.9 < precision.measure_agreement(make_decoder(model, "int8"), sequences, expected) < 1


def test_a_kept_choice_is_used_until_a_file_changes(small_run: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (small_run / "model").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    first = Completer.load(folder, "auto")
    [kept] = cache.iterdir()
    kept.write_text('{"precision": "int8", "int8_agreement": 0.5}', encoding="utf-8")
    assert (Completer.load(folder, "auto").precision, Completer.load(folder, "auto").agreement) == ("int8", 0.5)
    kept.write_text('{"precision": "none"}', encoding="utf-8")  # damaged: measured again
    assert Completer.load(folder, "auto").precision == first.precision
    os.utime(folder / "model.safetensors", (1, 1))
    Completer.load(folder, "auto")
    assert len(list(cache.iterdir())) == 2
