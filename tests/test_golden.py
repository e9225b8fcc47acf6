"""Training gives the losses that were recorded in tests/golden/: a change of names or structure alters no number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "tests" / "programs" / "golden_losses.py"
TOLERANCE = 1e-4  # processors add in different orders, and 20 steps amplify the difference


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_losses_equal_the_recorded_ones(n_ranks: int, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)] if n_ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(PROGRAM), str(tmp_path), str(tmp_path / "losses.json")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    golden = json.loads((ROOT / "tests" / "golden" / "losses.json").read_text(encoding="utf-8"))
    wanted = golden["one process" if n_ranks == 1 else "two ranks"]
    assert found.keys() == wanted.keys()
    for case, values in wanted.items():
        for name, numbers in values.items():
            assert found[case][name] == pytest.approx(numbers, rel=TOLERANCE), f"{case}: {name}"
