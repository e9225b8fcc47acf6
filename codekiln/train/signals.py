"""Ctrl-C and SIGTERM during training: they are counted, and acted on after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Preempted(KeyboardInterrupt):
    """The process received SIGTERM, and a checkpoint was saved."""


class SignalCounts:
    """How often SIGINT and SIGTERM arrived."""

    def __init__(self) -> None:
        self.seen = {signal.SIGINT: 0, signal.SIGTERM: 0}

    def counts(self) -> list[float]:
        """[SIGINT, SIGTERM], to be summed over ranks."""
        return [float(count) for count in self.seen.values()]

    def count(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. The second Ctrl-C interrupts at once."""
        received = signal.Signals(number)
        self.seen[received] += 1
        if received == signal.SIGINT and self.seen[received] > 1:
            raise KeyboardInterrupt


@contextmanager
def defer_signals() -> Iterator[SignalCounts]:
    """Within the block, the first Ctrl-C and every SIGTERM are only counted. Has no effect outside of the main thread."""
    signals = SignalCounts()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    previous = {number: signal.signal(number, signals.count) for number in signals.seen}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
