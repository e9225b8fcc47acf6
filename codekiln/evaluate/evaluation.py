"""An evaluation in a folder: the samples of a model, the verdicts on them, and the results. It resumes where it was killed.

evaluation.json   the model, the settings and the source of each benchmark
samples.jsonl     the answers, in the order in which they were generated
verdicts.jsonl    what their programs did
results.json      the scores
page.html         the same to read; shown/ has its problems, by benchmark
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import codekiln
from codekiln.errors import ConfigError
from codekiln.evaluate.answers import Question, questions
from codekiln.evaluate.judging import Judge
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.programs import Program, Verdict
from codekiln.evaluate.results import benchmark_results
from codekiln.evaluate.samples import JudgedSample, RecordFile, Sample, SampleKey
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.evaluate.settings import Settings
from codekiln.files import JsonObject, first_difference, read_json, to_record, write_json
from codekiln.folders import claim_folder, folder_lock
from codekiln.progress import progress_bar

FORMAT = 1
RECORD, SAMPLES, VERDICTS, RESULTS = "evaluation.json", "samples.jsonl", "verdicts.jsonl", "results.json"


@dataclass(frozen=True)
class ProblemSet:
    """Problems under a name. `source` says where they are from, `clean` which of them the model's corpus does not hold."""

    name: str
    problems: Sequence[Problem]
    source: JsonObject
    clean: frozenset[str] | None = None


class AnswerSource(Protocol):
    """A model that answers the problems of one benchmark with its settings."""

    def samples_per_job(self, problems: Sequence[Problem]) -> int:
        """How many samples of one problem are asked for at once."""

    def answer(self, asked: Iterator[Question]) -> Iterator[tuple[Question, list[Sample]]]:
        """The samples for each question, in any order."""


@dataclass(frozen=True)
class Task:
    """A benchmark and how it is answered. `source` is None if there are only stored samples."""

    benchmark: ProblemSet
    settings: Settings
    source: AnswerSource | None


@dataclass
class Evaluation:
    """An evaluation that runs in `folder`. `model` is a record of the model. `sandbox` makes the sandbox when it is needed.

    `left_out` has the reason for each benchmark that was asked for and cannot be measured.
    """

    folder: Path
    model: JsonObject
    sandbox: Callable[[], Sandbox]
    sandbox_settings: JsonObject
    tasks: Sequence[Task] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def run(self, stored: Iterable[Sample] = ()) -> JsonObject:
        """Generates the missing answers, judges them, and returns the results. `stored` has samples from elsewhere.

        No text of a sample stays in memory. Raises ConfigError if the folder holds an evaluation of another model or with other
        settings, or if another process uses it.
        """
        claim_folder(self.folder, "evaluation")
        with folder_lock(self.folder):
            return self._run(stored)

    def _run(self, stored: Iterable[Sample]) -> JsonObject:
        record = self._agree_on_record()
        with (
            RecordFile(self.folder / SAMPLES, Sample) as samples,
            RecordFile(self.folder / VERDICTS, JudgedSample) as verdicts,
        ):
            samples.add(each for each in stored if each.key not in samples)

            def keep(key: SampleKey, verdict: Verdict, level: str) -> None:
                verdicts.add([JudgedSample.of(key, verdict, level)])

            with Judge(self.sandbox, keep) as judge:
                for task in self.tasks:
                    self._run_task(task, samples, verdicts, judge)
            found = {task.benchmark.name: self._results(task, record, samples, verdicts) for task in self.tasks}
            levels = sorted({each.level for each in verdicts})
        path = self.folder / RESULTS
        before = read_json(path) if path.exists() else {"benchmarks": {}}
        benchmarks = before["benchmarks"] | found
        left_out = {
            name: reason
            for name, reason in {**before.get("left_out", {}), **self.left_out}.items()
            if name not in benchmarks
        }
        results = {
            "format": FORMAT,
            "model": self.model,
            "sandbox": self.sandbox_settings | {"levels": levels},
            "benchmarks": benchmarks,
            "left_out": left_out,
        }
        write_json(path, results)
        return results

    def _results(
        self, task: Task, record: JsonObject, samples: RecordFile[Sample], verdicts: RecordFile[JudgedSample]
    ) -> JsonObject:
        """The results of one benchmark, with its settings."""
        name = task.benchmark.name
        scores = benchmark_results(
            task.benchmark.problems,
            (each for each in samples if each.benchmark == name),
            (each for each in verdicts if each.benchmark == name),
            task.settings,
            clean=task.benchmark.clean,
        )
        return {**record["benchmarks"][name], **scores}

    def _run_task(
        self, task: Task, samples: RecordFile[Sample], verdicts: RecordFile[JudgedSample], judge: Judge
    ) -> None:
        name, problems = task.benchmark.name, task.benchmark.problems
        by_id = {problem.task_id: problem for problem in problems}
        for sample in samples:
            if sample.benchmark == name and sample.task_id in by_id and sample.key not in verdicts:
                _judge(judge, by_id[sample.task_id], sample)
        if task.source is None:
            return
        asked = list(questions(problems, task.settings, task.source.samples_per_job(problems)))
        missing = [each for each in asked if any((name, *key) not in samples for key in each.keys)]
        n_all = sum(each.n for each in asked)
        with progress_bar(f"Evaluate: {name}", n_all) as progress:
            progress.advance(n_all - sum(each.n for each in missing))
            for question, found in task.source.answer(iter(missing)):
                new = [each for each in found if each.key not in samples]
                samples.add(new)
                for sample in new:
                    _judge(judge, question.problem, sample)
                progress.advance(question.n)

    def _agree_on_record(self) -> JsonObject:
        """The record of this evaluation, written before the first sample. Benchmarks may be added to it later."""
        path = self.folder / RECORD
        benchmarks = {
            task.benchmark.name: {
                "source": task.benchmark.source,
                "n_problems": len(task.benchmark.problems),
                "settings": to_record(task.settings),
            }
            for task in self.tasks
        }
        wanted: JsonObject = {
            "format": FORMAT,
            "model": self.model,
            "sandbox": self.sandbox_settings,
            "codekiln": codekiln.__version__,
            "python": platform.python_version(),
            "benchmarks": benchmarks,
        }
        if path.exists():
            found = read_json(path)
            shared = found.get("benchmarks", {}).keys() & benchmarks.keys()
            pairs = [("format", found.get("format"), FORMAT), ("model", found.get("model"), self.model)]
            pairs += [("sandbox", found.get("sandbox"), self.sandbox_settings)]
            pairs += [(f"benchmarks.{name}", found["benchmarks"][name], benchmarks[name]) for name in sorted(shared)]
            for name, old, new in pairs:
                if difference := first_difference(old, new, name):
                    raise ConfigError(
                        f"{self.folder} holds another evaluation ({difference}): choose another folder with --out"
                    )
            if stale := sorted(found.get("benchmarks", {}).keys() & self.left_out.keys()):
                raise ConfigError(
                    f"{self.folder} holds another evaluation, which has results of {stale[0]} ({self.left_out[stale[0]]}): "
                    "choose another folder with --out"
                )
            wanted["benchmarks"] = found["benchmarks"] | benchmarks
        write_json(path, wanted)
        return wanted


def _judge(judge: Judge, problem: Problem, sample: Sample) -> None:
    """Has the program of a sample judged, if it has one."""
    program = program_of(problem, sample)
    if program is not None:
        judge.judge(sample.key, program)


def program_of(problem: Problem, sample: Sample) -> Program | None:
    """The program that judges a sample; None if its text does, or if it was not answered."""
    if sample.error:
        return None
    match problem.kind:
        case "completion":
            return problem.program(sample.answer)
        case "multi-turn":
            return problem.program(sample.answers)
        case _:
            return None
