"""Scores of the samples of one benchmark."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np

from codekiln.evaluate.metrics import (
    SampleCounts,
    best_pass_at_k,
    count_statuses,
    group_pass_rates,
    mean_interval,
    pass_at_k,
    pass_at_k_scores,
    precision_recall,
    ratio_interval,
)
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.programs import Status
from codekiln.evaluate.samples import JudgedSample, Sample
from codekiln.evaluate.settings import Settings
from codekiln.files import JsonObject

BITS_PER_NAT = 1 / np.log(2)
_Value = TypeVar("_Value")
TextScores = dict[str, list[float]]  # of one problem, by name, one for each sample


@dataclass(frozen=True)
class _Likelihood:
    """The bits of a text, and the tokens and bytes that have them."""

    bits: float
    n_tokens: int
    n_bytes: int


@dataclass
class _Outcomes:
    """What became of the samples of a benchmark. Their texts are not kept.

    `statuses` counts verdicts, and unanswered samples as failed, by temperature and problem.
    """

    counts: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)  # problems with a sample
    statuses: dict[float, dict[str, Counter[Status]]] = field(default_factory=dict)
    text_scores: dict[float, dict[str, TextScores]] = field(default_factory=dict)
    likelihoods: dict[str, _Likelihood] = field(default_factory=dict)

    def add_sample(self, problem: Problem, sample: Sample) -> None:
        self.answered.add(problem.task_id)
        self.counts["samples"] += 1
        self.counts["unanswered"] += bool(sample.error)
        self.counts["cut_prompts"] += sample.n_cut_tokens > 0
        self.counts["tokens"] += sample.n_tokens
        if problem.kind == "text":
            if sample.logprob is not None and sample.n_bytes:
                bits = -sample.logprob * float(BITS_PER_NAT)
                self.likelihoods[problem.task_id] = _Likelihood(bits, sample.n_tokens, sample.n_bytes)
            return
        if sample.error and has_program(problem):
            self._add_status(sample.temperature, problem.task_id, "failed")
        scores = problem.text_scores("" if sample.error else sample.answer)
        for name, value in scores.items():
            by_task = self.text_scores.setdefault(sample.temperature, {}).setdefault(problem.task_id, {})
            by_task.setdefault(name, []).append(0.0 if sample.error else float(value))

    def add_verdict(self, judged: JudgedSample) -> None:
        self.verdicts[judged.verdict.status] += 1
        self.counts["judged_together"] += bool(judged.verdict.fallback)
        self._add_status(judged.temperature, judged.task_id, judged.verdict.status)

    def of(self, task_ids: Collection[str]) -> "_Outcomes":
        """The scores of some of the problems."""
        return _Outcomes(
            statuses={temperature: _only(found, task_ids) for temperature, found in self.statuses.items()},
            text_scores={temperature: _only(found, task_ids) for temperature, found in self.text_scores.items()},
            likelihoods=_only(self.likelihoods, task_ids),
        )

    def sample_counts(self) -> dict[float, dict[str, SampleCounts]]:
        """Of each temperature and problem, how many samples passed."""
        return {
            temperature: {task_id: count_statuses(each) for task_id, each in by_task.items()}
            for temperature, by_task in self.statuses.items()
            if by_task
        }

    def _add_status(self, temperature: float, task_id: str, status: Status) -> None:
        self.statuses.setdefault(temperature, {}).setdefault(task_id, Counter())[status] += 1


def has_program(problem: Problem) -> bool:
    """Whether programs judge the answers to a problem."""
    match problem.kind:
        case "completion":
            return problem.program("") is not None
        case "multi-turn":
            return True
        case _:
            return False


def benchmark_results(
    problems: Sequence[Problem],
    samples: Iterable[Sample],
    verdicts: Iterable[JudgedSample],
    settings: Settings,
    *,
    clean: frozenset[str] | None,
) -> JsonObject:
    """The counts of samples, and the metrics with their intervals. All samples and verdicts are of this benchmark.

    "clean" has the metrics of the problems of which the corpus of the model has no copy. "scores" has the score of each
    problem, for paired differences. "groups" are the units of the bootstrap where these are not the problems. A sample without
    an answer is wrong; a text that was not measured has no bits, and is only counted.
    """
    by_id = {problem.task_id: problem for problem in problems}
    found = _Outcomes()
    for sample in samples:
        if sample.task_id in by_id:
            found.add_sample(by_id[sample.task_id], sample)
    for judged in verdicts:
        if judged.task_id in by_id:
            found.add_verdict(judged)
    metrics = _metrics(problems, found, settings)
    result: JsonObject = {
        "counts": {
            "samples": found.counts["samples"],
            "problems_without_samples": len(by_id.keys() - found.answered),
            "unanswered": found.counts["unanswered"],
            "cut_prompts": found.counts["cut_prompts"],
            "tokens": found.counts["tokens"],
            "verdicts": dict(sorted(found.verdicts.items())),
            # Tests that cannot be separated from the program are judged with it in one process.
            "judged_together": found.counts["judged_together"],
        },
        "metrics": metrics,
        "scores": _scores(problems, found, settings, metrics),
        "groups": {problem.task_id: problem.group for problem in problems if problem.group != problem.task_id},
    }
    if clean is not None:
        kept = [problem for problem in problems if problem.task_id in clean]
        result["clean"] = {
            "problems": len(kept),
            "metrics": _metrics(kept, found.of({problem.task_id for problem in kept}), settings),
        }
    return result


def _metrics(problems: Sequence[Problem], found: _Outcomes, settings: Settings) -> JsonObject:
    """Metrics by name. pass@k is the best of all temperatures; the others are given for each, as `name at T`."""
    groups = {problem.task_id: problem.group for problem in problems}
    metrics: JsonObject = {}
    counts = found.sample_counts()
    for k in settings.ks if counts else ():
        if len(counts) == 1:
            metrics[f"pass@{k}"] = asdict(pass_at_k(next(iter(counts.values())), k, groups, seed=settings.seed))
        else:
            best = best_pass_at_k(counts, k, groups, seed=settings.seed)
            metrics[f"pass@{k}"] = asdict(best.result) | {"temperature": best.temperature}
    if counts and _has_turns(problems):
        for temperature, by_task in sorted(counts.items()):
            rates = np.array(list(group_pass_rates(by_task, groups).values()))
            label = f" at {temperature:g}" if len(counts) > 1 else ""
            interval = mean_interval(rates, seed=settings.seed) if len(rates) else None
            metrics[f"pass_rate{label}"] = {"interval": interval, "n_problems": len(rates)}
    for temperature, scores in sorted(found.text_scores.items()):
        label = f" at {temperature:g}" if len(found.text_scores) > 1 else ""
        names = sorted({name for each in scores.values() for name in each})
        columns = {
            name: {task_id: float(np.mean(each[name])) for task_id, each in scores.items() if name in each}
            for name in names
        }
        if {"predicted", "correct"} <= columns.keys():
            ids = list(columns["predicted"])
            predicted, correct = (np.array([columns[name][each] for each in ids]) for name in ("predicted", "correct"))
            rates_found = precision_recall(predicted, correct, [groups[each] for each in ids], seed=settings.seed)
            for name in ("precision", "recall", "f1"):
                metrics[name + label] = {"interval": getattr(rates_found, name), "n_problems": len(ids)}
            continue
        for name, values in columns.items():
            interval = mean_interval(
                np.array(list(values.values())), [groups[each] for each in values], seed=settings.seed
            )
            metrics[name + label] = {"interval": interval, "n_problems": len(values)}
    if found.likelihoods:
        metrics["bits_per_byte"] = _bits_per_byte(problems, found.likelihoods, settings.seed)
    return metrics


def _bits_per_byte(problems: Sequence[Problem], likelihoods: Mapping[str, _Likelihood], seed: int) -> JsonObject:
    """Bits divided by the bytes of the tokens that have them, so that models with and without a BOS can be compared."""
    scored = [problem for problem in problems if problem.task_id in likelihoods]
    found = [likelihoods[problem.task_id] for problem in scored]
    bits, n_bytes = np.array([each.bits for each in found]), np.array([each.n_bytes for each in found], float)
    n_all = sum(len(problem.reference.encode()) for problem in scored)
    return {
        "interval": ratio_interval(bits, n_bytes, [problem.group for problem in scored], seed=seed),
        "n_problems": len(scored),
        "scored_tokens": sum(each.n_tokens for each in found),
        "scored_bytes": sum(each.n_bytes for each in found),
        "bytes": n_all,
    }


def _scores(problems: Sequence[Problem], found: _Outcomes, settings: Settings, metrics: JsonObject) -> JsonObject:
    """The score of each problem by the name of the metric: pass@k at the best temperature, the others at the first one.

    The pass rates are those of groups.
    """
    counts, first = found.sample_counts(), settings.temperatures[0]
    scores: JsonObject = {}
    for k in settings.ks if counts else ():
        only = next(iter(counts))  # the best temperature is given if there are several
        scores[f"pass@{k}"] = pass_at_k_scores(counts[metrics[f"pass@{k}"].get("temperature", only)], k)
    if first in counts and _has_turns(problems):
        scores["pass_rate"] = group_pass_rates(counts[first], {each.task_id: each.group for each in problems})
    for task_id, by_name in found.text_scores.get(first, {}).items():
        for name, values in by_name.items():
            scores.setdefault(name, {})[task_id] = float(np.mean(values))
    for task_id, each in found.likelihoods.items():
        scores.setdefault("bits_per_byte of a document", {})[task_id] = each.bits / each.n_bytes
    return scores


def _has_turns(problems: Sequence[Problem]) -> bool:
    return all(problem.kind == "multi-turn" for problem in problems)


def _only(values: Mapping[str, _Value], task_ids: Collection[str]) -> dict[str, _Value]:
    return {task_id: value for task_id, value in values.items() if task_id in task_ids}
