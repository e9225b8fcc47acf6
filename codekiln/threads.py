"""Work in threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def results_in_order(work: Callable[[int], Result], n: int, n_threads: int) -> Iterator[Result]:
    """work(k) for each k below n, in order. If one raises, or the caller gives up, those that wait are not begun."""
    with ThreadPoolExecutor(n_threads) as pool:
        pending = [pool.submit(work, k) for k in range(n)]
        try:
            for future in pending:
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
