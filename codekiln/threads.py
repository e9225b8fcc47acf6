"""Work in threads."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def run_in_own_thread(work: Callable[[], Result]) -> Result:
    """The result of work(), which runs in a thread that ends with it. Ctrl-C does not wait for the thread.

    OpenMP keeps a team of threads for each thread that has used it. As long as all teams together are not larger than the
    machine, their threads stay awake between short pieces of work; else each piece waits until they wake up. So what is done
    once, before another thread does the same kind of work again and again, leaves no team behind.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


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
