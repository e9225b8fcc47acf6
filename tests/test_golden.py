"""Training gives the losses that were recorded in tests/golden/: a change of names or structure alters no number."""

import json
from pathlib import Path

import pytest

from tests.forked import run_on_ranks
from tests.programs import golden_losses
from tests.small import ROOT

pytestmark = pytest.mark.process

TOLERANCE = 1e-4  # processors add in different orders, and 20 steps amplify the difference


@pytest.mark.parametrize("n_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_losses_equal_the_recorded_ones(n_ranks: int, tmp_path: Path) -> None:
    run_on_ranks(n_ranks, golden_losses.main, tmp_path, tmp_path / "losses.json")
    found = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    golden = json.loads((ROOT / "tests" / "golden" / "losses.json").read_text(encoding="utf-8"))
    wanted = golden["one process" if n_ranks == 1 else "two ranks"]
    assert found.keys() == wanted.keys()
    for case, values in wanted.items():
        for name, numbers in values.items():
            assert found[case][name] == pytest.approx(numbers, rel=TOLERANCE), f"{case}: {name}"
