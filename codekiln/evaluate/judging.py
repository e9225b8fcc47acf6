"""Judges programs in a thread, while the model generates the next ones."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from codekiln.evaluate.programs import Program, Verdict
from codekiln.evaluate.samples import SampleKey
from codekiln.evaluate.sandbox.sandbox import Sandbox

MAX_WAITING = 256  # programs; a model that generates faster than programs run waits for the judge
_POLL_SECONDS = 0.2  # between two checks whether the judge still takes programs


class Judge:
    """A sandbox in a thread of its own, which starts with the first program. `on_verdict` is called there with the key of a
    sample, its verdict, and the level of the sandbox. At most `MAX_WAITING` programs wait for it.

    Leaving the `with` statement waits until all programs are judged. If an exception leaves it, or Ctrl-C ends the wait, it
    waits for the next verdict only. Raises there what the sandbox raised.
    """

    def __init__(self, sandbox: Callable[[], Sandbox], on_verdict: Callable[[SampleKey, Verdict, str], None]) -> None:
        self._sandbox, self._on_verdict = sandbox, on_verdict
        self._programs: queue.Queue[tuple[SampleKey, Program] | None] = queue.Queue(MAX_WAITING)
        self._keys: dict[int, SampleKey] = {}  # of the programs that the sandbox has
        self._failure: BaseException | None = None
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judge")

    def judge(self, key: SampleKey, program: Program) -> None:
        """Adds a program, as soon as fewer than `MAX_WAITING` wait. Raises what the sandbox raised before."""
        if self._thread.ident is None:  # not yet started
            self._thread.start()
        self._put((key, program))
        if self._failure is not None:
            raise self._failure

    def _put(self, item: tuple[SampleKey, Program] | None) -> None:
        """Adds an item when there is room. Does nothing if the thread has ended."""
        while self._thread.is_alive():
            try:
                self._programs.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._is_stopped.set()
        if self._thread.ident is not None:
            try:
                self._put(None)
                self._thread.join()
            except KeyboardInterrupt:
                self._is_stopped.set()
                self._put(None)
                self._thread.join()
                raise
        if error is None and self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            with self._sandbox() as sandbox:
                for index, verdict in sandbox.judge(self._waiting()):
                    self._on_verdict(self._keys.pop(index), verdict, sandbox.level)
                    if self._is_stopped.is_set():
                        break
        except BaseException as failure:  # raised again in the thread that generates
            self._failure = failure

    def _waiting(self) -> Iterator[tuple[int, Program]]:
        numbers = itertools.count()
        while (item := self._programs.get()) is not None and not self._is_stopped.is_set():
            number = next(numbers)
            self._keys[number], program = item
            yield number, program
