"""Threads of Codekiln and of OpenMP."""

import os
import threading

import pytest

from codekiln.cli import SPIN_COUNT, main
from codekiln.threads import run_in_own_thread


def test_work_in_its_own_thread_leaves_no_thread() -> None:
    before = threading.enumerate()
    worker = run_in_own_thread(threading.current_thread)
    assert worker is not threading.current_thread() and threading.enumerate() == before
    with pytest.raises(ZeroDivisionError):
        run_in_own_thread(lambda: 1 / 0)
    assert threading.enumerate() == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_openmp_threads_wait_as_the_user_has_set(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("sys.argv", ["codekiln", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert {name: environment[name] for name in names if name in environment} == expected
