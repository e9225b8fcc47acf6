"""Progress of long work: bars on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

SPARKS = "▁▂▃▄▅▆▇█"
PLAIN_LINE_SECONDS = 10.0


class ProgressTask:
    """Progress of one task. `advance` may be called from any thread."""

    def __init__(self, title: str, total: int, done: int, bar: Progress | None) -> None:
        self.title, self.total, self.done, self._bar = title, total, done, bar
        self._begun: float | None = None  # when the first unit had ended: compiling may be in it
        self._printed = time.monotonic()
        self._done_before, self._note = done, ""
        self._id = bar.add_task(title, total=total, completed=done, note="") if bar else None

    def advance(self, n: int = 1, *, note: str = "") -> None:
        """Adds `n` finished units; `note` is shown next to the bar."""
        self.done += n
        if self._bar is not None and self._id is not None:
            self._note = note or self._note
            self._bar.update(self._id, completed=self.done, note=self._note)
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._done_before = now, self.done
        if now - self._printed >= PLAIN_LINE_SECONDS:
            self._printed = now
            n_timed = self.done - self._done_before
            left = (self.total - self.done) * (now - self._begun) / n_timed if n_timed else None
            shown = "" if left is None else f"{_format_duration(left)} left"
            print_line(f"{self.title}: {self.done:,}/{self.total:,}  {shown}  {note}".rstrip())


def is_terminal() -> bool:
    """Whether standard error is a terminal, so that bars are drawn."""
    return Console(stderr=True).is_terminal


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, done: int = 0) -> Iterator[ProgressTask]:
    """A bar for `total` units of work, of which `done` were finished before, with the estimated time left."""
    if not is_terminal():
        print_line(f"{title}: {done:,}/{total:,}" if done else f"{title} …")
        yield ProgressTask(title, total, done, None)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        Remaining(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # what is printed to a file or a pipe must go there
    ) as bar:
        yield ProgressTask(title, total, done, bar)


def sparkline(values: list[float], width: int = 24) -> str:
    """`values` as a line of at most `width` characters, each the mean of its part."""
    if not values:
        return ""
    width = min(width, len(values))
    shares = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_line(line: str) -> None:
    """Prints a line on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
