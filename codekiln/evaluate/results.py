"""Scores of the samples of one benchmark."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from codekiln.evaluate.metrics import (
    SampleCounts,
    best_pass_at_k,
    count_verdicts,
    group_pass_rates,
    mean_interval,
    pass_at_k,
    pass_at_k_scores,
    precision_recall,
    ratio_interval,
)
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.programs import Verdict
from codekiln.evaluate.samples import Sample, SampleKey
from codekiln.evaluate.settings import Settings
from codekiln.files import JsonObject

BITS_PER_NAT = 1 / np.log(2)


def benchmark_results(
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    verdicts: Mapping[SampleKey, Verdict],
    settings: Settings,
    *,
    clean: frozenset[str] | None,
) -> JsonObject:
    """The counts of samples, and the metrics with their intervals.

    "clean" has the metrics of the problems of which the corpus of the model has no copy. "scores" has the score of each
    problem, for paired differences. "groups" are the units of the bootstrap where these are not the problems.
    """
    known = {problem.task_id for problem in problems}
    found = [sample for sample in samples if sample.task_id in known]
    judged = {sample.key: verdicts[sample.key] for sample in found if sample.key in verdicts}
    metrics = _metrics(problems, found, judged, settings)
    result: JsonObject = {
        "counts": {
            "samples": len(found),
            "problems_without_samples": len(known - {sample.task_id for sample in found}),
            "unanswered": sum(bool(sample.error) for sample in found),
            "cut_prompts": sum(sample.n_cut_tokens > 0 for sample in found),
            "tokens": sum(sample.n_tokens for sample in found),
            "verdicts": dict(sorted(Counter(verdict.status for verdict in judged.values()).items())),
            # Tests that cannot be separated from the program are judged with it in one process.
            "judged_together": sum(bool(verdict.fallback) for verdict in judged.values()),
        },
        "metrics": metrics,
        "scores": _scores(problems, found, judged, settings, metrics),
        "groups": {problem.task_id: problem.group for problem in problems if problem.group != problem.task_id},
    }
    if clean is not None:
        kept = [problem for problem in problems if problem.task_id in clean]
        ids = {problem.task_id for problem in kept}
        part = [sample for sample in found if sample.task_id in ids]
        result["clean"] = {"problems": len(kept), "metrics": _metrics(kept, part, judged, settings)}
    return result


def _metrics(
    problems: Sequence[Problem], samples: Sequence[Sample], verdicts: Mapping[SampleKey, Verdict], settings: Settings
) -> JsonObject:
    """Metrics by name. pass@k is the best of all temperatures; the others are given for each, as `name at T`."""
    groups = {problem.task_id: problem.group for problem in problems}
    metrics: JsonObject = {}
    counts = _counts(samples, verdicts)
    for k in settings.ks if counts else ():
        if len(counts) == 1:
            metrics[f"pass@{k}"] = asdict(pass_at_k(next(iter(counts.values())), k, groups, seed=settings.seed))
        else:
            best = best_pass_at_k(counts, k, groups, seed=settings.seed)
            metrics[f"pass@{k}"] = asdict(best.result) | {"temperature": best.temperature}
    if counts and all(problem.kind == "multi-turn" for problem in problems):
        for temperature, by_task in sorted(counts.items()):
            rates = np.array(list(group_pass_rates(by_task, groups).values()))
            label = f" at {temperature:g}" if len(counts) > 1 else ""
            interval = mean_interval(rates, seed=settings.seed) if len(rates) else None
            metrics[f"pass_rate{label}"] = {"interval": interval, "n_problems": len(rates)}
    by_temperature = _text_scores(problems, samples)
    for temperature, scores in sorted(by_temperature.items()):
        label = f" at {temperature:g}" if len(by_temperature) > 1 else ""
        names = sorted({name for each in scores.values() for name in each})
        columns = {
            name: {task_id: float(np.mean(each[name])) for task_id, each in scores.items() if name in each}
            for name in names
        }
        if {"predicted", "correct"} <= columns.keys():
            ids = list(columns["predicted"])
            predicted, correct = (np.array([columns[name][each] for each in ids]) for name in ("predicted", "correct"))
            found = precision_recall(predicted, correct, [groups[each] for each in ids], seed=settings.seed)
            for name in ("precision", "recall", "f1"):
                metrics[name + label] = {"interval": getattr(found, name), "n_problems": len(ids)}
            continue
        for name, values in columns.items():
            interval = mean_interval(
                np.array(list(values.values())), [groups[each] for each in values], seed=settings.seed
            )
            metrics[name + label] = {"interval": interval, "n_problems": len(values)}
    if texts := {problem.task_id: len(problem.reference.encode()) for problem in problems if problem.kind == "text"}:
        scored = [sample for sample in samples if sample.task_id in texts and sample.logprob is not None]
        if scored:
            bits = np.array([-(sample.logprob or 0.0) * BITS_PER_NAT for sample in scored])
            n_bytes = np.array([texts[sample.task_id] for sample in scored], float)
            names = [groups[sample.task_id] for sample in scored]
            interval = ratio_interval(bits, n_bytes, names, seed=settings.seed)
            metrics["bits_per_byte"] = {"interval": interval, "n_problems": len(scored)}
    return metrics


def _scores(
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    verdicts: Mapping[SampleKey, Verdict],
    settings: Settings,
    metrics: JsonObject,
) -> JsonObject:
    """The score of each problem by the name of the metric: pass@k at the best temperature, the others at the first one."""
    counts, first = _counts(samples, verdicts), settings.temperatures[0]
    scores: JsonObject = {}
    for k in settings.ks if counts else ():
        only = next(iter(counts))  # the best temperature is given if there are several
        scores[f"pass@{k}"] = pass_at_k_scores(counts[metrics[f"pass@{k}"].get("temperature", only)], k)
    for task_id, found in _text_scores(problems, samples).get(first, {}).items():
        for name, values in found.items():
            scores.setdefault(name, {})[task_id] = float(np.mean(values))
    n_bytes = {problem.task_id: len(problem.reference.encode()) for problem in problems if problem.kind == "text"}
    for sample in samples:
        if sample.task_id in n_bytes and sample.logprob is not None:
            bits = -sample.logprob * BITS_PER_NAT
            scores.setdefault("bits_per_byte of a document", {})[sample.task_id] = bits / n_bytes[sample.task_id]
    return scores


def _counts(samples: Sequence[Sample], verdicts: Mapping[SampleKey, Verdict]) -> dict[float, dict[str, SampleCounts]]:
    """Of each temperature and problem, how many samples passed."""
    found: dict[float, dict[str, list[Verdict]]] = {}
    for sample in samples:
        verdict = verdicts.get(sample.key)
        if verdict is not None:
            found.setdefault(sample.temperature, {}).setdefault(sample.task_id, []).append(verdict)
    return {
        temperature: {task_id: count_verdicts(each) for task_id, each in by_task.items()}
        for temperature, by_task in found.items()
    }


def _text_scores(
    problems: Sequence[Problem], samples: Sequence[Sample]
) -> dict[float, dict[str, dict[str, list[float]]]]:
    """Scores that need no program, by temperature, problem and name, one for each sample."""
    by_id = {problem.task_id: problem for problem in problems}
    found: dict[float, dict[str, dict[str, list[float]]]] = {}
    for sample in samples:
        if sample.error or not sample.answers:
            continue
        for name, value in by_id[sample.task_id].text_scores(sample.answer).items():
            by_task = found.setdefault(sample.temperature, {}).setdefault(sample.task_id, {})
            by_task.setdefault(name, []).append(float(value))
    return found
