"""Runs generators that wait for jobs of the engine, many at the same time."""

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from codekiln.generate.complete import Completer, Job

T = TypeVar("T")
# Yields jobs that it waits for, and returns its result. When all of the jobs are finished, `next` continues it.
Work = Generator[list[Job], None, T]
MAX_OPEN = 64  # generators whose jobs are in the engine or wait for it


def run_all(completer: Completer, works: Iterable[Work[T]]) -> Iterator[tuple[int, T]]:
    """The number of each generator and its result, as soon as it has ended. Generators are taken when they can begin.

    If a generator raises an exception, or the caller stops early, all jobs are cancelled.
    """
    numbered = enumerate(works)
    waiting: dict[int, tuple[Work[T], list[Job]]] = {}
    try:
        while True:
            ready = [(number, work) for number, (work, jobs) in waiting.items() if all(job.is_finished for job in jobs)]
            for number, _ in ready:
                del waiting[number]
            ready += itertools.islice(numbered, MAX_OPEN - len(waiting) - len(ready))
            for number, work in ready:
                try:
                    waiting[number] = (work, next(work))
                except StopIteration as end:
                    yield number, end.value
            if not waiting and not ready:
                return
            if waiting:
                completer.step()
    finally:
        for _, jobs in waiting.values():
            for job in jobs:
                completer.cancel(job)
