"""The samples and verdicts of an evaluation, in files of one JSON object per line that are written as they come."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TextIO, TypeVar

from codekiln.errors import InvalidFileError
from codekiln.evaluate.benchmark_files import Row, iter_rows
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.programs import Verdict
from codekiln.evaluate.settings import KS, Settings
from codekiln.files import shorten

SampleKey = tuple[str, str, float, int]  # benchmark, task, temperature, number
_BLOCK_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An answer to a problem. `number` counts the samples of a problem at one temperature.

    `answers` are the truncated answers of each turn, or the only one, and `texts` what the model generated: for each turn, each
    hole, or the only one. `n_tokens` were generated; a server that counts them for several samples together gives each an equal
    part. `n_cut_tokens` of the prompt did not fit the context. Of a text that is only measured, `n_tokens` and their `n_bytes`
    have the log-probability `logprob`. A sample with an `error` has no answer, because its prompt was refused: it is wrong.
    """

    benchmark: str
    task_id: str
    temperature: float
    number: int
    answers: tuple[str, ...]
    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    n_tokens: int = 0
    n_bytes: int = 0
    logprob: float | None = None
    n_cut_tokens: int = 0
    error: str = ""

    @property
    def key(self) -> SampleKey:
        """What names it among all samples of an evaluation."""
        return (self.benchmark, self.task_id, self.temperature, self.number)

    @property
    def answer(self) -> str:
        """The only answer, or the one to the last turn."""
        return self.answers[-1]


@dataclass(frozen=True, kw_only=True)
class JudgedSample:
    """The verdict on the program of a sample, and the level of the sandbox in which it ran."""

    benchmark: str
    task_id: str
    temperature: float
    number: int
    verdict: Verdict
    level: str

    @classmethod
    def of(cls, key: SampleKey, verdict: Verdict, level: str) -> "JudgedSample":
        """The verdict on the sample with a key."""
        benchmark, task_id, temperature, number = key
        return cls(
            benchmark=benchmark, task_id=task_id, temperature=temperature, number=number, verdict=verdict, level=level
        )

    @property
    def key(self) -> SampleKey:
        """That of its sample."""
        return (self.benchmark, self.task_id, self.temperature, self.number)


Record = TypeVar("Record", Sample, JudgedSample)


class RecordFile(Generic[Record]):
    """A file of samples or verdicts, which is read one line at a time. Only the keys are in memory.

    Opening it checks what is there; a line that a killed process left incomplete is removed. Raises InvalidFileError that
    names a line that cannot be read, or that is there twice.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self._path = path
        self._kind: type[Record] = kind
        self._numbers: dict[tuple[str, str, float], set[int]] = {}
        if path.exists():
            remove_incomplete_line(path)
            for number, record in enumerate(read_records(path, kind), start=1):
                if record.key in self:
                    raise InvalidFileError(
                        f"{path}, line {number}: the same sample as in an earlier line ({record.key})"
                    )
                self._remember(record.key)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def __contains__(self, key: SampleKey) -> bool:
        return key[3] in self._numbers.get(key[:3], ())

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of the file."""
        return read_records(self._path, self._kind)

    def add(self, records: Iterable[Record]) -> None:
        """Appends records, which are on the disk when this returns unless the machine loses power."""
        for record in records:
            self._remember(record.key)
            self._file.write(json.dumps(asdict(record), ensure_ascii=True) + "\n")
        self._file.flush()

    def _remember(self, key: SampleKey) -> None:
        benchmark, task_id, temperature, number = key
        task = (sys.intern(benchmark), sys.intern(task_id), temperature)
        self._numbers.setdefault(task, set()).add(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read_records(path: Path, kind: type[Record]) -> Iterator[Record]:
    """The samples or verdicts in a file. Raises InvalidFileError that names a line that cannot be read."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _parse(path, number, line, kind)


def remove_incomplete_line(path: Path) -> None:
    """Removes the end of a file after its last line end."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found != -1:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _parse(path: Path, number: int, line: bytes, kind: type[Record]) -> Record:
    try:
        make: Callable[..., Record] = kind
        found: dict[str, Any] = json.loads(line)
        if kind is JudgedSample:
            found["verdict"] = Verdict(**found["verdict"])
        return make(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidFileError(
            f"{path}, line {number} is damaged ({shorten(str(error))}): remove the line, or the whole file"
        ) from None


class StoredSamples:
    """Samples from elsewhere: a JSON object per line, with "task_id" and "completion", as the official harnesses have them.

    Completions are judged as they are. Problems with several turns have "completions", a list with one for each turn. The file
    is checked first, and read again for each iteration. Raises InvalidFileError that names the line, for an unknown task, a
    missing field or a line that is not JSON.
    """

    def __init__(self, path: Path, benchmark: str, problems: Sequence[Problem]) -> None:
        self._path, self._benchmark = path, benchmark
        self._by_id = {problem.task_id: problem for problem in problems}
        counts = Counter(sample.task_id for sample in self)
        if not counts:
            raise InvalidFileError(f"{path} has no samples")
        most = max(counts.values())
        # Nothing is known of how they were generated but how many there are of a problem.
        self.settings = Settings(preset="stored samples", ks=tuple(k for k in KS if k <= most))

    def __iter__(self) -> Iterator[Sample]:
        counts: Counter[str] = Counter()
        for row in iter_rows(self._path):
            task_id, answers = self._read(row)
            yield Sample(
                benchmark=self._benchmark,
                task_id=task_id,
                temperature=0.0,
                number=counts[task_id],
                answers=answers,
                texts=answers,
            )
            counts[task_id] += 1

    def _read(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """The task and the answers in a row."""
        task_id = row.text("task_id")
        if (problem := self._by_id.get(task_id)) is None:
            example = next(iter(self._by_id), "")
            raise InvalidFileError(
                f"{row.where}: {self._benchmark} has no problem {task_id!r} (its ids are like {example!r})"
            )
        if problem.kind != "multi-turn":
            return problem.task_id, (row.text("completion"),)
        answers = row.texts("completions")
        if len(answers) != problem.n_turns:
            raise InvalidFileError(
                f"{row.where}: {task_id} has {problem.n_turns} turns, and {len(answers)} completions"
            )
        return problem.task_id, answers
