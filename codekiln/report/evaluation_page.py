"""A page of an evaluation: the scores, and each problem with its prompt, samples and verdicts.

`shown/BENCHMARK.json` keeps what the page shows of the problems of a benchmark, so that a later command with other benchmarks
shows them, too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from codekiln.evaluate.evaluation import RESULTS, SAMPLES, VERDICTS, Task
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.results import has_program
from codekiln.evaluate.samples import JudgedSample, Sample, read_records
from codekiln.files import JsonObject, read_json, write_json
from codekiln.report.charts import write_page

PAGE, SHOWN = "page.html", "shown"
MAX_SAMPLES = 5  # of a problem, that are shown
MAX_PROBLEMS = 500  # of a benchmark; the first ones
MAX_CHARACTERS = 2_000  # of a prompt (its end), a suffix, an answer and an error


@dataclass
class ShownSample:
    """A sample with what became of it: "right", "wrong", or "" if it was not scored."""

    answer: str
    outcome: str
    verdict: str


@dataclass
class _ShownProblem:
    """A problem with its first samples, by temperature and number."""

    problem: Problem
    has_program: bool
    n_samples: int = 0
    n_right: int = 0
    first: dict[tuple[float, int], ShownSample] = field(default_factory=dict)

    def add_sample(self, sample: Sample) -> None:
        shown = _show(self.problem, sample)
        self.n_samples += 1
        self.n_right += shown.outcome == "right" and not self.has_program
        if self.has_program and not sample.error:
            shown.outcome = shown.verdict = ""
        self.first[sample.temperature, sample.number] = shown
        if len(self.first) > MAX_SAMPLES:
            del self.first[max(self.first)]

    def add_verdict(self, judged: JudgedSample) -> None:
        verdict = judged.verdict
        self.n_right += verdict.is_passed
        if shown := self.first.get((judged.temperature, judged.number)):
            shown.outcome = "" if verdict.status == "unscored" else "right" if verdict.is_passed else "wrong"
            shown.verdict = _beginning(f"{verdict.status} {verdict.error}".strip())

    def record(self) -> JsonObject:
        """What the page shows."""
        return {
            "task_id": self.problem.task_id,
            "prompt": self.problem.prompt[-MAX_CHARACTERS:],
            "suffix": (self.problem.suffix or "")[:MAX_CHARACTERS],
            "reference": self.problem.reference[:MAX_CHARACTERS],
            "n_samples": self.n_samples,
            "n_right": self.n_right,
            "samples": [asdict(self.first[key]) for key in sorted(self.first)],
        }


def write_evaluation_page(folder: Path, tasks: Sequence[Task]) -> Path:
    """Writes the page of an evaluation from its files. `tasks` are the benchmarks whose samples may have changed."""
    for task in tasks:
        name = task.benchmark.name
        write_json(folder / SHOWN / f"{name}.json", {"problems": _shown_problems(folder, task)})
    results = read_json(folder / RESULTS)
    files = {name: folder / SHOWN / f"{name}.json" for name in results["benchmarks"]}
    problems = {name: read_json(path)["problems"] for name, path in files.items() if path.is_file()}
    path = folder / PAGE
    write_page(path, "evaluation.html.jinja", has_charts=False, results=results, problems=problems, limit=MAX_PROBLEMS)
    return path


def _shown_problems(folder: Path, task: Task) -> list[JsonObject]:
    """The first problems of a benchmark. The samples and verdicts are read one at a time."""
    problems = [problem for problem in task.benchmark.problems[:MAX_PROBLEMS] if problem.kind != "text"]
    shown = {problem.task_id: _ShownProblem(problem, has_program(problem)) for problem in problems}
    for sample in read_records(folder / SAMPLES, Sample):
        if sample.benchmark == task.benchmark.name and sample.task_id in shown:
            shown[sample.task_id].add_sample(sample)
    for judged in read_records(folder / VERDICTS, JudgedSample):
        if judged.benchmark == task.benchmark.name and judged.task_id in shown:
            shown[judged.task_id].add_verdict(judged)
    return [each.record() for each in shown.values()]


def _show(problem: Problem, sample: Sample) -> ShownSample:
    """A sample, with what its text scores."""
    answer = _beginning("\n\n".join(sample.answers))
    if sample.error:
        return ShownSample(answer, "wrong", _beginning(sample.error))
    scores = problem.text_scores(sample.answer)
    outcome = "" if not scores else "right" if all(value == 1 for value in scores.values()) else "wrong"
    return ShownSample(answer, outcome, ", ".join(f"{name} {value:.3g}" for name, value in scores.items()))


def _beginning(text: str) -> str:
    """The beginning of a text. JSON may hold surrogates, which a page cannot: they become question marks."""
    return text[:MAX_CHARACTERS].encode(errors="replace").decode()
