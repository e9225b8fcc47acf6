"""Metrics over problems, with 95% intervals by bootstrap.

Groups of problems are resampled, not problems: those that were made from one function are not independent. The interval is that
of percentiles (Efron and Tibshirani 1993, chapter 13). All results depend on the inputs and the seed only.

Samples that could not be scored are counted, and are neither right nor wrong.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from codekiln.evaluate.programs import Status

FloatArray = npt.NDArray[np.float64]
N_RESAMPLES = 5000
_BLOCK_DRAWS = 4_000_000  # draws of groups that are in memory at once
_Z = 1.959964  # of a 95% interval


class Interval(TypedDict):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SampleCounts:
    """The samples of one problem. `n_unscored` of them were not judged; `n_scored` were, and `n_passed` of those passed."""

    n_scored: int
    n_passed: int
    n_unscored: int = 0


@dataclass(frozen=True, kw_only=True)
class PassAtK:
    """The mean pass@k of `n_problems`. Problems with fewer than k scored samples are left out. None without any problem."""

    k: int
    interval: Interval | None
    n_problems: int
    n_left_out: int
    n_unscored: int


@dataclass(frozen=True, kw_only=True)
class BestPassAtK:
    """The best pass@k of several temperatures. `temperatures` are those of all results, `temperature` is the best one's."""

    temperature: float
    temperatures: tuple[float, ...]
    result: PassAtK


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of the first result minus the second one, over the problems that both have."""

    interval: Interval | None
    n_problems: int
    n_left_out: int


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Of answers that may be no predictions: correct ones of the predictions, and of all problems. None without problems."""

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None
    n_problems: int
    n_predictions: int
    n_correct: int


@dataclass(frozen=True)
class Predictions:
    """Whether the answer to each problem is a prediction, and whether it is correct: 0 or 1, or the mean of its samples."""

    predicted: Mapping[str, float]
    correct: Mapping[str, float]


def count_statuses(statuses: Counter[Status]) -> SampleCounts:
    """The counts of one problem's samples, from how many have each status."""
    n_unscored = statuses["unscored"]
    return SampleCounts(n_scored=statuses.total() - n_unscored, n_passed=statuses["passed"], n_unscored=n_unscored)


def pass_at_k_scores(counts: Mapping[str, SampleCounts], k: int) -> dict[str, float]:
    """The unbiased estimate of each problem with at least k scored samples (Chen et al., equation 1):

    1 - C(n - c, k) / C(n, k), the probability that k of n samples, of which c passed, have one that passed.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 (got {k})")
    chosen = {task_id: count for task_id, count in counts.items() if count.n_scored >= k}
    n = np.array([count.n_scored for count in chosen.values()], np.float64)
    wrong = n - np.array([count.n_passed for count in chosen.values()], np.float64)
    failing = np.ones(len(chosen))
    for drawn in range(k):
        failing *= np.maximum(wrong - drawn, 0) / (n - drawn)
    return dict(zip(chosen, (1 - failing).tolist(), strict=True))


def pass_at_k(counts: Mapping[str, SampleCounts], k: int, groups: Mapping[str, str], *, seed: int = 0) -> PassAtK:
    """The mean over problems. `groups` has the group of each task_id."""
    scores = pass_at_k_scores(counts, k)
    return PassAtK(
        k=k,
        interval=_mean_of(scores, groups, seed),
        n_problems=len(scores),
        n_left_out=len(counts) - len(scores),
        n_unscored=sum(count.n_unscored for count in counts.values()),
    )


def group_pass_rates(counts: Mapping[str, SampleCounts], groups: Mapping[str, str]) -> dict[str, float]:
    """The fraction of the scored samples of each group that passed: MTPB's score of a problem, whose cases are a group.

    Groups without scored samples are left out.
    """
    scored: dict[str, int] = {}
    passed: dict[str, int] = {}
    for task_id, count in counts.items():
        group = groups[task_id]
        scored[group] = scored.get(group, 0) + count.n_scored
        passed[group] = passed.get(group, 0) + count.n_passed
    return {group: passed[group] / n for group, n in scored.items() if n}


def best_pass_at_k(
    by_temperature: Mapping[float, Mapping[str, SampleCounts]], k: int, groups: Mapping[str, str], *, seed: int = 0
) -> BestPassAtK:
    """The highest mean pass@k of some temperatures, as CodeGen and Codex report it; the lowest of equally good temperatures.

    The interval is that of the maximum: each resample chooses its own temperature. Problems that a temperature lacks are left
    out for all, so that the same problems are compared.
    """
    if not by_temperature:
        raise ValueError("at least one temperature is needed")
    temperatures = sorted(by_temperature)
    scores = [pass_at_k_scores(by_temperature[temperature], k) for temperature in temperatures]
    shared = [task_id for task_id in scores[0] if all(task_id in found for found in scores)]
    columns = np.array([[found[task_id] for task_id in shared] for found in scores]).reshape(len(scores), len(shared))
    n_all = len({task_id for counts in by_temperature.values() for task_id in counts})
    best, interval = 0, None
    if shared:
        means = columns.mean(1)
        best = int(means.argmax())
        drawn = _resampled_means(columns, [groups[task_id] for task_id in shared], seed).max(0)
        interval = _interval(float(means[best]), drawn)
        if (columns == columns[0, 0]).all():  # nothing or all passed: resampling shows no spread
            interval = mean_interval(columns[best], [groups[task_id] for task_id in shared], seed=seed)
    result = PassAtK(
        k=k,
        interval=interval,
        n_problems=len(shared),
        n_left_out=n_all - len(shared),
        n_unscored=sum(count.n_unscored for counts in by_temperature.values() for count in counts.values()),
    )
    return BestPassAtK(temperature=temperatures[best], temperatures=tuple(temperatures), result=result)


def mean_interval(values: FloatArray, groups: Sequence[str] | None = None, *, seed: int = 0) -> Interval:
    """The mean of one value per problem. Without groups, each problem is its own.

    If all values are 0 or all are 1, resampling shows no spread, and the interval is Wilson's for as many groups.
    """
    value = float(values.mean())
    names = [str(n) for n in range(len(values))] if groups is None else groups
    if (values == values[0]).all() and value in (0.0, 1.0):
        bound = _Z**2 / (len(set(names)) + _Z**2)
        return Interval(value=value, low=max(0.0, value - bound), high=min(1.0, value + bound))
    return _interval(value, _resampled_means(values[None], names, seed)[0])


def ratio_interval(
    parts: FloatArray, wholes: FloatArray, groups: Sequence[str] | None = None, *, seed: int = 0
) -> Interval:
    """The sum of parts divided by the sum of wholes, for example bits per byte."""
    names = [str(n) for n in range(len(parts))] if groups is None else groups
    sums = _resampled_sums(np.stack([parts, wholes]), names, seed)
    return _interval(float(parts.sum() / wholes.sum()), sums[0] / sums[1])


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], groups: Mapping[str, str], *, seed: int = 0
) -> Difference:
    """The difference of two results on the same problems, with the interval of paired resamples.

    Both map task_id to a score: pass@k, an exact match, BLEU. Problems that only one has are left out.
    """
    shared = [task_id for task_id in first if task_id in second]
    values = np.array([first[task_id] - second[task_id] for task_id in shared])
    names = [groups[task_id] for task_id in shared]
    interval = None
    if shared:
        interval = _interval(float(values.mean()), _resampled_means(values[None], names, seed)[0])
    n_all = len(first.keys() | second.keys())
    return Difference(interval=interval, n_problems=len(shared), n_left_out=n_all - len(shared))


def precision_recall(
    predicted: FloatArray, correct: FloatArray, groups: Sequence[str] | None = None, *, seed: int = 0
) -> PrecisionRecall:
    """Both arrays have 0 or 1 per problem; a correct answer is a prediction. An answer that is none, for example a type that
    does not parse, is missing from the precision only (InCoder and TypeWriter). Precision is 0 without predictions."""
    n_problems, n_predictions, n_correct = len(predicted), int(predicted.sum()), int(correct.sum())
    precision = recall = f1 = None
    if n_problems:
        names = [str(n) for n in range(n_problems)] if groups is None else groups
        columns = np.stack([np.ones(n_problems), predicted, correct])
        exact = _rates(columns.sum(1)[:, None])
        drawn = _rates(_resampled_sums(columns, names, seed))
        precision, recall, f1 = (
            _interval(float(value[0]), resampled) for value, resampled in zip(exact, drawn, strict=True)
        )
    return PrecisionRecall(
        precision=precision,
        recall=recall,
        f1=f1,
        n_problems=n_problems,
        n_predictions=n_predictions,
        n_correct=n_correct,
    )


def paired_precision_recall(
    first: Predictions, second: Predictions, groups: Mapping[str, str], *, seed: int = 0
) -> dict[str, Difference]:
    """The differences of precision, recall and F1 of two results on the same problems, with the intervals of paired resamples.

    Problems that only one has are left out.
    """
    shared = [task_id for task_id in first.predicted if task_id in second.predicted]
    n_left_out = len(first.predicted.keys() | second.predicted.keys()) - len(shared)
    names = ("precision", "recall", "f1")
    if not shared:
        return {name: Difference(interval=None, n_problems=0, n_left_out=n_left_out) for name in names}
    columns = np.array(
        [[1.0] * len(shared)]
        + [
            [found[task_id] for task_id in shared]
            for each in (first, second)
            for found in (each.predicted, each.correct)
        ]
    )
    drawn = _resampled_sums(columns, [groups[task_id] for task_id in shared], seed)
    exact, resampled = (
        [a - b for a, b in zip(_rates(sums[[0, 1, 2]]), _rates(sums[[0, 3, 4]]), strict=True)]
        for sums in (columns.sum(1)[:, None], drawn)
    )
    return {
        name: Difference(
            interval=_interval(float(value[0]), differences), n_problems=len(shared), n_left_out=n_left_out
        )
        for name, value, differences in zip(names, exact, resampled, strict=True)
    }


def _rates(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Precision, recall and F1, (resamples,) each, of the sums of problems, predictions and correct ones, (3, resamples)."""
    n_problems, n_predictions, n_correct = sums
    precision = n_correct / np.maximum(n_predictions, 1)
    recall = n_correct / n_problems
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return precision, recall, f1


def _mean_of(scores: Mapping[str, float], groups: Mapping[str, str], seed: int) -> Interval | None:
    if not scores:
        return None
    return mean_interval(np.array(list(scores.values())), [groups[task_id] for task_id in scores], seed=seed)


def _interval(value: float, drawn: FloatArray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Interval(value=value, low=low, high=high)


def _resampled_means(columns: FloatArray, groups: Sequence[str], seed: int) -> FloatArray:
    """The means of each row of values in each resample, (rows, resamples)."""
    sums = _resampled_sums(np.concatenate([columns, np.ones((1, columns.shape[1]))]), groups, seed)
    means: FloatArray = sums[:-1] / sums[-1]
    return means


def _resampled_sums(columns: FloatArray, groups: Sequence[str], seed: int) -> FloatArray:
    """The sums of each row of values (rows, problems) over groups drawn with replacement, (rows, resamples)."""
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(group_of.max()) + 1
    totals = np.stack([np.bincount(group_of, row, n_groups) for row in columns], 1)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_DRAWS // n_groups)
    found = []
    for start in range(0, N_RESAMPLES, block):
        n = min(block, N_RESAMPLES - start)
        drawn = rng.integers(n_groups, size=(n, n_groups)) + np.arange(n)[:, None] * n_groups
        weights = np.bincount(drawn.ravel(), minlength=n * n_groups).reshape(n, n_groups)
        found.append(weights @ totals)
    sums: FloatArray = np.concatenate(found).T
    return sums
