"""The samples and verdicts of an evaluation, in files of one JSON object per line that are written as they come."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TextIO, TypeVar

from codekiln.errors import InvalidFileError
from codekiln.evaluate.benchmark_files import read_rows
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.programs import Verdict
from codekiln.evaluate.settings import KS, Settings
from codekiln.files import shorten

SampleKey = tuple[str, str, float, int]  # benchmark, task, temperature, number


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An answer to a problem. `number` counts the samples of a problem at one temperature.

    `answers` are the truncated answers of each turn, or the only one, and `texts` what the model generated: for each turn, each
    hole, or the only one. `n_cut_tokens` of the prompt did not fit the context. A sample with an `error` was not answered, and
    is neither right nor wrong.
    """

    benchmark: str
    task_id: str
    temperature: float
    number: int
    answers: tuple[str, ...]
    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    n_tokens: int = 0
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
    """A file of samples or verdicts. Opening it reads what is there; a line that a killed process left incomplete is removed.

    Raises InvalidFileError that names a line that cannot be read, or that is there twice.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.records: dict[SampleKey, Record] = {}
        if path.exists():
            data = path.read_bytes()
            complete = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(complete.splitlines(), start=1):
                record = _parse(path, number, line, kind)
                if record.key in self.records:
                    raise InvalidFileError(
                        f"{path}, line {number}: the same sample as in an earlier line ({record.key})"
                    )
                self.records[record.key] = record
            if len(complete) < len(data):
                with path.open("r+b") as file:
                    file.truncate(len(complete))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def add(self, records: Iterable[Record]) -> None:
        """Appends records, which are on the disk when this returns unless the machine loses power."""
        lines = []
        for record in records:
            self.records[record.key] = record
            lines.append(json.dumps(asdict(record), ensure_ascii=True) + "\n")
        self._file.write("".join(lines))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


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


def stored_settings(samples: Sequence[Sample]) -> Settings:
    """The settings of samples from elsewhere: nothing is known of them but how many there are of a problem."""
    most = max(Counter(sample.task_id for sample in samples).values())
    return Settings(preset="stored samples", ks=tuple(k for k in KS if k <= most))


def read_samples(path: Path, benchmark: str, problems: Sequence[Problem]) -> list[Sample]:
    """Samples from elsewhere: a JSON object per line, with "task_id" and "completion", as the official harnesses have them.

    Completions are judged as they are. Problems with several turns have "completions", a list with one for each turn. Raises
    InvalidFileError that names the line, for an unknown task, a missing field or a line that is not JSON.
    """
    by_id = {problem.task_id: problem for problem in problems}
    counts: Counter[str] = Counter()
    found: list[Sample] = []
    for row in read_rows(path):
        task_id = row.text("task_id")
        if (problem := by_id.get(task_id)) is None:
            example = problems[0].task_id if problems else ""
            raise InvalidFileError(
                f"{row.where}: {benchmark} has no problem {task_id!r} (its ids are like {example!r})"
            )
        if problem.kind == "multi-turn":
            answers = row.texts("completions")
            if len(answers) != problem.n_turns:
                raise InvalidFileError(
                    f"{row.where}: {task_id} has {problem.n_turns} turns, and {len(answers)} completions"
                )
        else:
            answers = (row.text("completion"),)
        sample = Sample(
            benchmark=benchmark,
            task_id=task_id,
            temperature=0.0,
            number=counts[task_id],
            answers=answers,
            texts=answers,
        )
        counts[task_id] += 1
        found.append(sample)
    if not found:
        raise InvalidFileError(f"{path} has no samples")
    return found
