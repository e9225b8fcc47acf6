"""From samples and verdicts to results: what counts, what is compared, and how much is in memory."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from codekiln.evaluate.comparison import compare_results
from codekiln.evaluate.evaluation import ProblemSet, Task
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.evaluate.problems.mbpp import DescribedProgramProblem
from codekiln.evaluate.problems.mtpb import TurnsProblem
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.problems.return_types import ReturnTypeProblem
from codekiln.evaluate.problems.text import TextProblem
from codekiln.evaluate.programs import Status, Verdict
from codekiln.evaluate.results import benchmark_results
from codekiln.evaluate.samples import JudgedSample, RecordFile, Sample
from codekiln.evaluate.settings import Settings
from codekiln.files import JsonObject
from codekiln.report.evaluation_page import write_evaluation_page

SETTINGS = Settings(preset="test", temperatures=(0.5,))


def program(k: int) -> DescribedProgramProblem:
    return DescribedProgramProblem(
        task_id=f"p/{k}", prompt="", reference="", setup="", tests="assert f()", cpu_seconds=1
    )


def type_problem(k: int) -> ReturnTypeProblem:
    return ReturnTypeProblem(task_id=f"t/{k}", prompt="def f() -> ", suffix=":\n", reference="int")


def sample(task_id: str, number: int = 0, answer: str = "", error: str = "") -> Sample:
    answers = () if error else (answer,)
    return Sample(benchmark="b", task_id=task_id, temperature=0.5, number=number, answers=answers, error=error)


def verdict(task_id: str, number: int, status: Status) -> JudgedSample:
    return JudgedSample.of(("b", task_id, 0.5, number), Verdict(status=status), "limits")


def results(problems: list[Problem], samples: list[Sample], verdicts: list[JudgedSample]) -> JsonObject:
    return benchmark_results(problems, samples, verdicts, SETTINGS, clean=None)


def value_of(found: JsonObject, metric: str) -> float:
    value: float = found["metrics"][metric]["interval"]["value"]
    return value


def test_a_sample_without_an_answer_is_wrong_and_counted() -> None:
    samples = [sample("p/0", 0), sample("p/0", 1, error="too long"), sample("p/1", 0, error="too long")]
    found = results([program(0), program(1)], samples, [verdict("p/0", 0, "passed")])
    assert value_of(found, "pass@1") == 0.25  # one of two, and none of one
    assert found["counts"]["unanswered"] == 2 and found["counts"]["verdicts"] == {"passed": 1}
    hole = HoleProblem(
        task_id="h", group="h", prompt="", suffix="", reference="  ", unit="span", max_new_tokens=1
    )  # an empty answer would be right
    found = results([hole], [sample("h", 0, error="too long"), sample("h", 1, "")], [])
    assert value_of(found, "exact_match") == 0.5
    found = results([type_problem(0)], [sample("t/0", error="too long")], [])
    assert found["scores"] == {"predicted": {"t/0": 0.0}, "correct": {"t/0": 0.0}}


def test_bits_per_byte_divides_by_the_bytes_of_scored_tokens() -> None:
    texts = [TextProblem(task_id=str(k), group="g", reference="é" * 5) for k in range(3)]
    measured = [
        Sample(
            benchmark="b", task_id="0", temperature=0.5, number=0, answers=(), n_tokens=4, n_bytes=8, logprob=-5.545177
        ),
        Sample(
            benchmark="b", task_id="1", temperature=0.5, number=0, answers=(), n_tokens=5, n_bytes=10, logprob=-6.931472
        ),
        sample("2", error="too long"),
    ]
    found = results(list(texts), measured, [])
    assert value_of(found, "bits_per_byte") == pytest.approx((8 + 10) / (8 + 10), abs=1e-6)
    described = {key: found["metrics"]["bits_per_byte"][key] for key in ("scored_tokens", "scored_bytes", "bytes")}
    assert described == {"scored_tokens": 9, "scored_bytes": 18, "bytes": 20}
    assert found["scores"]["bits_per_byte of a document"] == pytest.approx({"0": 1.0, "1": 1.0}, abs=1e-6)
    assert found["counts"]["unanswered"] == 1 and found["metrics"]["bits_per_byte"]["n_problems"] == 2


def test_pass_rates_precision_recall_and_f1_are_compared() -> None:
    turns = [
        TurnsProblem(task_id=f"{k}/{case}", group=f"g{k}", turns=("a",), expected=1, max_new_tokens=1, checker="fixed")
        for k in range(2)
        for case in range(2)
    ]

    def judged(*statuses: Status) -> JsonObject:
        keys = [(turn.task_id, 0) for turn in turns]
        verdicts = [verdict(*key, status) for key, status in zip(keys, statuses, strict=True)]
        return results(list(turns), [sample(task_id) for task_id, _ in keys], verdicts)

    first, second = judged("passed", "passed", "passed", "failed"), judged("failed", "passed", "failed", "failed")
    found = compare_results({"b": first}, {"b": second})["b"]
    assert found["pass_rate"]["interval"]["value"] == pytest.approx(0.5) and found["pass_rate"]["n_problems"] == 2
    assert found["pass@1"]["n_problems"] == 4

    problems: list[Problem] = [type_problem(k) for k in range(4)]
    first = results(problems, [sample(f"t/{k}", answer=text) for k, text in enumerate(("int", "int", "str", "(("))], [])
    second = results(problems, [sample(f"t/{k}", answer=text) for k, text in enumerate(("int", "str", "((", "(("))], [])
    found = compare_results({"b": first}, {"b": second})["b"]
    assert list(found) == ["f1", "precision", "recall"]
    for metric in ("precision", "recall", "f1"):
        difference = value_of(first, metric) - value_of(second, metric)
        assert found[metric]["interval"]["value"] == pytest.approx(difference)
        assert found[metric]["interval"]["low"] <= difference <= found[metric]["interval"]["high"]
    assert compare_results({"b": first}, {"b": first})["b"]["f1"]["interval"] == {"value": 0, "low": 0, "high": 0}


def test_samples_and_verdicts_are_read_one_at_a_time(tmp_path: Path) -> None:
    """40 MB of samples are read for the results and the page with less than a quarter of that in memory."""
    problems: list[Problem] = [program(k) for k in range(50)]
    filler = "#" * 10_000
    samples = [sample(f"p/{k}", number, "x = '\ud800'\n") for k in range(50) for number in range(80)]
    with (tmp_path / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(each) | {"texts": [filler]}) + "\n" for each in samples)
    with (tmp_path / "verdicts.jsonl").open("w", encoding="utf-8") as file:
        verdicts = (verdict(each.task_id, each.number, "passed" if each.number % 2 else "failed") for each in samples)
        file.writelines(json.dumps(asdict(each)) + "\n" for each in verdicts)
    del samples
    tracemalloc.start()
    try:
        with (
            RecordFile(tmp_path / "samples.jsonl", Sample) as opened,
            RecordFile(tmp_path / "verdicts.jsonl", JudgedSample) as judged,
        ):
            found = benchmark_results(problems, opened, judged, SETTINGS, clean=None)
        settings = {"source": {}, "n_problems": 50, "settings": {}}
        written = {"model": {}, "sandbox": {"levels": [], "mode": "split"}, "benchmarks": {"b": settings | found}}
        (tmp_path / "results.json").write_text(json.dumps(written), encoding="utf-8")
        page = write_evaluation_page(tmp_path, [Task(ProblemSet("b", problems, {}), SETTINGS, None)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000  # of which resampling needs 6
    assert value_of(found, "pass@1") == 0.5 and found["counts"]["samples"] == 4000
    assert page.read_text(encoding="utf-8").count("40 of 80 right") == 50
    assert page.read_text(encoding="utf-8").count("x = &#39;?&#39;") == 250  # a surrogate, which no page can hold


def test_an_incomplete_last_line_is_removed_and_a_second_sample_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"

    def keys() -> Iterator[tuple[str, int]]:
        with RecordFile(path, Sample) as file:
            yield from ((each.task_id, each.number) for each in file)

    with RecordFile(path, Sample) as file:
        file.add([sample("a", 0), sample("a", 1, "é" * 100_000)])
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 70_000, len(whole) - 700_000):
        path.write_bytes(whole[:cut])
        assert list(keys()) == [("a", 0)] and path.read_bytes() == whole[: whole.index(b"\n") + 1]
    path.write_bytes(whole[:20])
    assert list(keys()) == [] and path.read_bytes() == b""
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match=r"line 3: the same sample as in an earlier line"):
        list(keys())
