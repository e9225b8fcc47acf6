"""A page of an evaluation: the scores, and each problem with its prompt, samples and verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codekiln.evaluate.evaluation import RESULTS, SAMPLES, VERDICTS, Task
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.programs import Verdict
from codekiln.evaluate.samples import JudgedSample, RecordFile, Sample, SampleKey
from codekiln.files import JsonObject, read_json
from codekiln.report.charts import write_page

PAGE = "page.html"
MAX_SAMPLES = 5  # of a problem, that are shown
MAX_PROBLEMS = 500  # of a benchmark; the first ones
MAX_CHARACTERS = 2_000  # of a prompt (its end), a suffix and an answer


@dataclass(frozen=True)
class ShownSample:
    """A sample with what became of it: "right", "wrong", or "" if it was not scored."""

    answer: str
    outcome: str
    verdict: str


@dataclass(frozen=True)
class ShownProblem:
    """A problem and its first samples."""

    task_id: str
    prompt: str
    suffix: str
    reference: str
    samples: tuple[ShownSample, ...]
    n_samples: int
    n_right: int


def write_evaluation_page(folder: Path, tasks: Sequence[Task]) -> Path:
    """Writes the page of an evaluation from its files."""
    path = folder / PAGE
    samples, verdicts = _read(folder)
    problems = {task.benchmark.name: list(_shown(task, samples, verdicts)) for task in tasks}
    results = read_json(folder / RESULTS)
    write_page(path, "evaluation.html.jinja", has_charts=False, results=results, problems=problems, limit=MAX_PROBLEMS)
    return path


def _read(folder: Path) -> tuple[dict[str, dict[str, list[Sample]]], dict[SampleKey, Verdict]]:
    """The samples by benchmark and problem, and the verdicts."""
    found: dict[str, dict[str, list[Sample]]] = {}
    with RecordFile(folder / SAMPLES, Sample) as samples, RecordFile(folder / VERDICTS, JudgedSample) as verdicts:
        for sample in samples.records.values():
            found.setdefault(sample.benchmark, {}).setdefault(sample.task_id, []).append(sample)
        return found, {key: each.verdict for key, each in verdicts.records.items()}


def _shown(
    task: Task, samples: Mapping[str, Mapping[str, Sequence[Sample]]], verdicts: Mapping[SampleKey, Verdict]
) -> Iterator[ShownProblem]:
    by_task = samples.get(task.benchmark.name, {})
    for problem in task.benchmark.problems[:MAX_PROBLEMS]:
        if problem.kind == "text":
            continue
        found = sorted(by_task.get(problem.task_id, ()), key=lambda each: each.key)
        shown = [_show(problem, sample, verdicts.get(sample.key)) for sample in found]
        yield ShownProblem(
            task_id=problem.task_id,
            prompt=problem.prompt[-MAX_CHARACTERS:],
            suffix=(problem.suffix or "")[:MAX_CHARACTERS],
            reference=problem.reference[:MAX_CHARACTERS],
            samples=tuple(shown[:MAX_SAMPLES]),
            n_samples=len(shown),
            n_right=sum(each.outcome == "right" for each in shown),
        )


def _show(problem: Problem, sample: Sample, verdict: Verdict | None) -> ShownSample:
    answer = "\n\n".join(sample.answers)[:MAX_CHARACTERS]
    if sample.error:
        return ShownSample(answer, "", sample.error)
    if verdict is not None:
        outcome = "" if verdict.status == "unscored" else "right" if verdict.is_passed else "wrong"
        return ShownSample(answer, outcome, f"{verdict.status} {verdict.error}".strip())
    scores: JsonObject = dict(problem.text_scores(sample.answer))
    outcome = "" if not scores else "right" if all(value == 1 for value in scores.values()) else "wrong"
    return ShownSample(answer, outcome, ", ".join(f"{name} {value:.3g}" for name, value in scores.items()))
