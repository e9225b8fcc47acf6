"""The thread that runs the engine, and the requests of asyncio tasks to it."""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from codekiln.errors import CodekilnError
from codekiln.generate.complete import AnyRequest, Completer, CompletionChunk, CompletionParams, Job


class Generation:
    """The chunks of one job, for any number of readers, each from the first chunk on.

    The job is cancelled when its last reader leaves before the end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.job: Job | None = None  # of the worker's thread only
        self.n_readers = 0
        self.is_cancelled = False
        self._chunks: list[CompletionChunk] = []
        self._failure: Exception | None = None
        self._is_finished = False
        self._news = asyncio.Event()

    @property
    def is_finished(self) -> bool:
        """Whether there are no more chunks."""
        return self._is_finished

    def put(self, chunks: Sequence[CompletionChunk], *, is_last: bool) -> None:
        """Adds chunks for all readers."""
        self._chunks += chunks
        self._is_finished = is_last
        self._news.set()

    def fail(self, failure: Exception) -> None:
        """Makes all readers raise an exception."""
        self._failure, self._is_finished = failure, True
        self._news.set()

    async def read(self) -> AsyncGenerator[CompletionChunk, None]:
        """All chunks, as they come."""
        at = 0
        while True:
            while at < len(self._chunks):
                yield self._chunks[at]
                at += 1
            if self._failure is not None:
                raise self._failure
            if self._is_finished:
                return
            self._news.clear()
            await self._news.wait()


class EngineWorker:
    """Runs a completer in a thread of its own. Its methods are for one asyncio event loop."""

    def __init__(self, completer: Completer) -> None:
        self._completer = completer
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._generations: dict[Job, Generation] = {}  # of the thread only
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step."""
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def submit(self, prompt: AnyRequest, params: CompletionParams) -> Generation:
        """Starts to complete a prompt."""
        generation = Generation(asyncio.get_running_loop())

        def begin() -> None:
            if generation.is_cancelled:
                return
            try:
                job = self._completer.submit(prompt, params)
            except CodekilnError as failure:
                _post(generation.loop, partial(generation.fail, failure))
                return
            generation.job = job
            self._generations[job] = generation

        self._commands.put(begin)
        return generation

    def cancel(self, generation: Generation) -> None:
        """Ends a generation before the next step."""
        generation.is_cancelled = True

        def end() -> None:
            if generation.job is not None and self._generations.pop(generation.job, None) is not None:
                self._completer.cancel(generation.job)

        self._commands.put(end)

    def _run(self) -> None:
        while True:
            is_idle = not self._generations
            try:
                while True:
                    command = self._commands.get(block=is_idle)
                    if command is None:
                        return
                    command()
                    is_idle = False
            except queue.Empty:
                pass
            try:
                self._step()
            except Exception as failure:  # a bug: those who wait get an error, and the server continues
                logging.getLogger("codekiln.serve").exception("the engine failed")
                self._fail_all(failure)

    def _step(self) -> None:
        """One step of the engine. Its chunks are given to their readers."""
        chunks: dict[Job, list[CompletionChunk]] = {}
        for job, chunk in self._completer.step():
            chunks.setdefault(job, []).append(chunk)
        for job, found in chunks.items():
            generation = self._generations.get(job)
            if generation is None:
                continue
            if job.is_finished:
                del self._generations[job]
            _post(generation.loop, partial(generation.put, found, is_last=job.is_finished))

    def _fail_all(self, failure: Exception) -> None:
        for job, generation in self._generations.items():
            self._completer.cancel(job)
            _post(generation.loop, partial(generation.fail, failure))
        self._generations.clear()


def _post(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
        loop.call_soon_threadsafe(function)
