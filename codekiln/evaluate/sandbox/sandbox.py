"""The sandbox as the evaluator uses it: slots, threads that wait for them, and programs that come one by one."""

import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Literal, Self

from codekiln.errors import ConfigError
from codekiln.evaluate.programs import Program, Verdict
from codekiln.evaluate.sandbox.slot import Level, RefusedError, Slot, SlotSettings

AUTOMATIC: tuple[Level, ...] = ("namespaces", "landlock")
PENDING_PER_SLOT = 4


class Sandbox:
    """Judges programs in `slots` processes at once.

        with Sandbox() as sandbox:
            for index, verdict in sandbox.judge(enumerate(programs)):
                ...

    `level` is how programs are confined: "auto" takes the first of "namespaces" and "landlock" that works here; "limits"
    confines nothing but time, memory and output. `packages` are what programs may import besides the standard library.
    `memory_bytes` is the address space of a program. docs/sandbox.md has what each level promises.
    """

    def __init__(
        self,
        *,
        slots: int | None = None,
        mode: Literal["split", "compat"] = "split",
        level: Level | Literal["auto"] = "auto",
        packages: tuple[str, ...] = ("numpy",),
        memory_bytes: int = 1 << 30,
    ) -> None:
        self.n_slots = slots or os.cpu_count() or 1
        self.mode = mode
        self.wanted_level = level
        self.packages = packages
        self.memory_bytes = memory_bytes
        self._level: Level | None = None
        self._slots: list[Slot] = []
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[tuple[int, Program] | None] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[tuple[int, Verdict] | BaseException] = queue.SimpleQueue()
        self._n_pending = 0
        self._counting = threading.Lock()

    @property
    def level(self) -> Level:
        """The level of all slots."""
        assert self._level is not None, "the sandbox is not open"
        return self._level

    def __enter__(self) -> Self:
        """Starts the slots. Raises ConfigError if the level is not possible here."""
        try:
            first = self._start_first()
            self._slots.append(first)
            self._level = first.settings.level
            self._slots += [Slot(first.settings) for _ in range(self.n_slots - 1)]
        except RefusedError as error:
            self.close()
            raise ConfigError(f"A slot of the sandbox did not start: {error}.") from None
        except BaseException:
            self.close()
            raise
        for slot in self._slots:
            thread = threading.Thread(target=self._work, args=(slot,), name="sandbox", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_first(self) -> Slot:
        if not sys.platform.startswith("linux"):
            raise ConfigError(
                f"The sandbox needs Linux (this is {sys.platform}). Run the evaluation in a Linux machine or container."
            )
        refused = []
        for level in AUTOMATIC if self.wanted_level == "auto" else (self.wanted_level,):
            try:
                return Slot(SlotSettings(level=level, packages=self.packages, memory_bytes=self.memory_bytes))
            except RefusedError as error:
                refused.append(f"{level}: {error}")
        raise ConfigError(
            f"The sandbox cannot confine programs here ({'; '.join(refused)}). It needs Linux 5.13 or newer with user "
            'namespaces or Landlock. Allow one of them, or, if programs may do whatever you may, use the level "limits".'
        )

    def judge(self, programs: Iterable[tuple[int, Program]]) -> Iterator[tuple[int, Verdict]]:
        """Yields (index, verdict) as verdicts come, in any order. Takes programs while others run.

        Read it to its end before another call: verdicts of all submitted programs come from the same queue.
        """
        for index, program in programs:
            self.submit(index, program)
            while self._n_pending >= PENDING_PER_SLOT * self.n_slots or not self._verdicts.empty():
                yield self.collect()
        while self._n_pending:
            yield self.collect()

    def submit(self, index: int, program: Program) -> None:
        """Gives a program to the next free slot. Does not wait."""
        with self._counting:
            self._n_pending += 1
        self._jobs.put((index, program))

    def collect(self) -> tuple[int, Verdict]:
        """Waits for the next verdict of a submitted program. Raises ConfigError if a slot could not start again."""
        assert self._n_pending, "nothing was submitted"
        result = self._verdicts.get()
        with self._counting:
            self._n_pending -= 1
        if isinstance(result, RefusedError):
            raise ConfigError(f"A slot of the sandbox ended and did not start again: {result}.")
        if isinstance(result, BaseException):
            raise result
        return result

    def _work(self, slot: Slot) -> None:
        """The thread of one slot."""
        while (job := self._jobs.get()) is not None:
            index, program = job
            try:
                self._verdicts.put((index, slot.judge(program, split=self.mode == "split")))
            except BaseException as error:
                self._verdicts.put(error)

    def close(self) -> None:
        """Ends all processes of the sandbox, also those that still run programs."""
        while not self._jobs.empty():
            self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for slot in self._slots:
            slot.end()
        for thread in self._threads:
            thread.join()
        for slot in self._slots:
            slot.close()
        self._threads.clear()
        self._slots.clear()
