"""Files of arrays."""

import gc
import threading
import time
from pathlib import Path

import numpy as np

from codekiln.arrays import load_arrays, map_array, save_arrays, sorted_unique


def test_sorted_unique_values_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    for shape in ((0,), (1,), (1000,), (30, 40)):
        values = generator.integers(0, 50, shape).astype(np.uint64) << np.uint64(58)
        assert np.array_equal(sorted_unique(values), np.unique(values))


def test_arrays_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    arrays = {
        "numbers": np.array([[1, -2], [3, 2**62]]),
        "hashes": np.array([2**64 - 1], np.uint64),
        "is_kept": np.array([True, False]),
        "empty": np.empty(0, np.float64),
        "every second": np.arange(6, dtype=np.uint16)[::2],
    }
    save_arrays(tmp_path / "arrays", arrays)
    loaded = load_arrays(tmp_path / "arrays")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_several_threads_can_load_arrays(tmp_path: Path) -> None:
    """`numpy.load` fails here: "AST constructor recursion depth mismatch"."""
    save_arrays(tmp_path / "arrays", {"numbers": np.arange(10)})
    failures: list[Exception] = []

    def load() -> None:
        try:
            for _ in range(300):
                load_arrays(tmp_path / "arrays")
        except Exception as failure:
            failures.append(failure)

    def switch_threads(_phase: str, _info: object) -> None:
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(switch_threads)
    gc.set_threshold(20)
    try:
        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(switch_threads)
    assert not failures


def test_an_empty_file_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    assert map_array(tmp_path / "empty.bin", np.int32).shape == (0,)
    np.arange(3, dtype=np.int32).tofile(tmp_path / "three.bin")
    np.testing.assert_array_equal(map_array(tmp_path / "three.bin", np.int32), [0, 1, 2])
