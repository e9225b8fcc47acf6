"""Metrics: pass@k against rational arithmetic, BLEU against CodeXGLUE's file, intervals against slow resampling."""

import itertools
import math
import random
import re
import sys
import xml.sax.saxutils
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from codekiln.evaluate.bleu import sentence_bleu
from codekiln.evaluate.metrics import (
    Predictions,
    SampleCounts,
    best_pass_at_k,
    count_statuses,
    group_pass_rates,
    mean_interval,
    paired_difference,
    paired_precision_recall,
    pass_at_k,
    pass_at_k_scores,
    precision_recall,
    ratio_interval,
)
from codekiln.evaluate.problems.docstrings import joined_tokens
from codekiln.evaluate.problems.return_types import normalized_type
from codekiln.evaluate.programs import Status
from tests.peers import load_official, peer


def counts(*passed: tuple[int, int]) -> dict[str, SampleCounts]:
    """Problems with (scored, passed) samples."""
    return {str(number): SampleCounts(n_scored=n, n_passed=c) for number, (n, c) in enumerate(passed)}


def own_groups(found: dict[str, SampleCounts]) -> dict[str, str]:
    return {task_id: task_id for task_id in found}


def test_pass_at_k_equals_rational_arithmetic() -> None:
    pairs = [(n, c) for n in (1, 2, 5, 20, 200) for c in sorted({0, 1, n // 3, n - 1, n})]
    for k in (1, 2, 5, 10, 100, 200):
        scores = pass_at_k_scores(counts(*pairs), k)
        for number, (n, c) in enumerate(pairs):
            if n >= k:
                exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
                assert scores[str(number)] == pytest.approx(float(exact), abs=1e-12)
            else:
                assert str(number) not in scores


def test_pass_at_k_is_the_mean_over_all_draws() -> None:
    is_passed = [True, False, False, True, False]
    draws = list(itertools.combinations(is_passed, 3))
    assert pass_at_k_scores(counts((5, 2)), 3)["0"] == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_not_the_biased_estimate() -> None:
    assert pass_at_k_scores(counts((20, 2)), 10)["0"] == pytest.approx(0.763, abs=5e-4)
    biased = 1 - (1 - 2 / 20) ** 10
    assert biased == pytest.approx(0.651, abs=5e-4)


def test_problems_with_too_few_scored_samples_are_left_out_and_counted() -> None:
    found = counts((10, 5), (9, 9), (10, 0))
    found["3"] = SampleCounts(n_scored=3, n_passed=3, n_unscored=7)
    result = pass_at_k(found, 10, own_groups(found))
    assert (result.n_problems, result.n_left_out, result.n_unscored) == (2, 2, 7)
    assert result.interval is not None and result.interval["value"] == 0.5
    assert pass_at_k(found, 11, own_groups(found)).interval is None
    with pytest.raises(ValueError, match="at least 1"):
        pass_at_k_scores(found, 0)


def test_unscored_samples_are_neither_right_nor_wrong() -> None:
    statuses: list[Status] = ["passed", "failed", "unscored", "timeout", "unscored", "passed", "exited"]
    found = count_statuses(Counter(statuses))
    assert found == SampleCounts(n_scored=5, n_passed=2, n_unscored=2)


def test_best_temperature_is_chosen_for_each_k() -> None:
    cold, hot = counts((10, 9), (10, 0), (10, 0)), counts((10, 2), (10, 2), (10, 2))
    groups = own_groups(cold)
    one, ten = (best_pass_at_k({0.2: cold, 0.8: hot}, k, groups) for k in (1, 10))
    assert (one.temperature, ten.temperature, one.temperatures) == (0.2, 0.8, (0.2, 0.8))
    assert one.result.interval is not None and one.result.interval["value"] == pytest.approx(0.3)
    assert ten.result.interval is not None and ten.result.interval["value"] == 1.0
    # A resample without problem 0 prefers 0.8, whose pass@1 is 0.2 in all resamples.
    assert one.result.interval["low"] == pytest.approx(0.2)
    equal = best_pass_at_k({0.8: hot, 0.6: hot}, 1, groups)
    assert equal.temperature == 0.6


def test_temperatures_are_compared_on_the_same_problems() -> None:
    cold, hot = counts((10, 10), (5, 5)), counts((10, 0), (10, 10))
    best = best_pass_at_k({0.2: cold, 0.8: hot}, 10, own_groups(cold))
    assert (best.temperature, best.result.n_problems, best.result.n_left_out) == (0.2, 1, 1)


def test_pass_rates_of_groups_are_those_of_all_their_samples() -> None:
    found = counts((4, 4), (4, 0), (2, 1), (0, 0))
    groups = {"0": "a", "1": "a", "2": "b", "3": "c"}
    assert group_pass_rates(found, groups) == {"a": 0.5, "b": 0.5}
    found["1"] = SampleCounts(n_scored=1, n_passed=0, n_unscored=3)
    assert group_pass_rates(found, groups)["a"] == 0.8


def slow_bootstrap(values: Sequence[float], groups: Sequence[str], n: int = 2000) -> tuple[float, float]:
    """Percentiles of means over groups drawn one by one."""
    rng, names = random.Random(1), sorted(set(groups))
    members = {name: [v for v, group in zip(values, groups, strict=True) if group == name] for name in names}
    means = []
    for _ in range(n):
        drawn = [value for _ in names for value in members[rng.choice(names)]]
        means.append(sum(drawn) / len(drawn))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def test_interval_equals_a_slow_bootstrap_over_groups() -> None:
    rng = np.random.default_rng(2)
    groups = [f"g{n // 6}" for n in range(180)]
    values = (rng.random(30).repeat(6) > rng.random(180)).astype(float)
    found = mean_interval(values, groups)
    low, high = slow_bootstrap(values.tolist(), groups)
    assert found["value"] == values.mean()
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.012)
    alone = mean_interval(values)
    assert alone["high"] - alone["low"] < found["high"] - found["low"]  # clusters have less information
    assert found == mean_interval(values, groups) != mean_interval(values, groups, seed=1)


def test_interval_has_the_normal_width() -> None:
    values = (np.arange(400) % 10 < 3).astype(float)
    found = mean_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert found["value"] == pytest.approx(0.3)
    assert [found["low"], found["high"]] == pytest.approx([0.3 - half, 0.3 + half], abs=0.004)


def test_interval_of_equal_values_is_not_a_point() -> None:
    none, every = mean_interval(np.zeros(100)), mean_interval(np.ones(100))
    # Wilson's bound for 0 of 100: z^2 / (n + z^2).
    assert none == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.0370, abs=1e-4)}
    assert every == {"value": 1.0, "low": pytest.approx(0.9630, abs=1e-4), "high": 1.0}
    clustered = mean_interval(np.zeros(100), ["a", "b"] * 50)
    assert clustered["high"] == pytest.approx(0.6576, abs=1e-4)


def test_ratio_interval_equals_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(0)
    wholes = rng.integers(1, 40, 300).astype(float)
    parts = wholes * rng.normal(1.0, 0.8, 300)
    found = ratio_interval(parts, wholes)
    drawn = [rng.integers(0, 300, 300) for _ in range(3000)]
    low, high = np.quantile([parts[at].sum() / wholes[at].sum() for at in drawn], [0.025, 0.975])
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.01)


def test_paired_precision_and_recall_equal_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(4)
    ids = [str(n) for n in range(150)]

    def predictions(fraction: float) -> Predictions:
        predicted = rng.random(150) < 0.8
        correct = predicted & (rng.random(150) < fraction)
        return Predictions(*(dict(zip(ids, column.astype(float), strict=True)) for column in (predicted, correct)))

    first, second = predictions(0.7), predictions(0.5)
    found = paired_precision_recall(first, second, {each: each for each in ids})
    # A problem that only one has is left out.
    more = Predictions({**second.predicted, "x": 1.0}, {**second.correct, "x": 1.0})
    again = paired_precision_recall(first, more, {each: each for each in ids})
    assert again["f1"].interval == found["f1"].interval and again["f1"].n_left_out == 1

    def scores(each: Predictions, drawn: Sequence[str]) -> list[float]:
        correct = sum(each.correct[task_id] for task_id in drawn)
        precision, recall = correct / sum(each.predicted[task_id] for task_id in drawn), correct / len(drawn)
        return [precision, recall, 2 * precision * recall / (precision + recall)]

    drawn = [[ids[k] for k in rng.integers(0, 150, 150)] for _ in range(3000)]
    differences = np.array([np.subtract(scores(first, each), scores(second, each)) for each in drawn])
    for k, name in enumerate(("precision", "recall", "f1")):
        interval = found[name].interval
        assert interval is not None and found[name].n_problems == 150
        assert interval["value"] == pytest.approx(scores(first, ids)[k] - scores(second, ids)[k])
        low, high = np.quantile(differences[:, k], [0.025, 0.975])
        assert [interval["low"], interval["high"]] == pytest.approx([low, high], abs=0.015)


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    first = {str(n): float(value > 0.3) for n, value in enumerate(hard)}
    second = {str(n): float(value > 0.35) for n, value in enumerate(hard)} | {"only": 1.0}
    del first["7"]
    found = paired_difference(first, second, {task_id: task_id for task_id in second})
    assert (found.n_problems, found.n_left_out) == (199, 2)
    shared = [task_id for task_id in first if task_id in second]
    assert found.interval is not None
    assert found.interval["value"] == pytest.approx(np.mean([first[t] - second[t] for t in shared]))
    width = found.interval["high"] - found.interval["low"]
    assert 0 < width < 0.1
    assert paired_difference({"a": 1.0}, {"b": 1.0}, {}).interval is None


def test_precision_and_recall_by_hand() -> None:
    # 4 problems: right, wrong, no prediction, right.
    found = precision_recall(np.array([1.0, 1, 0, 1]), np.array([1.0, 0, 0, 1]))
    assert (found.n_problems, found.n_predictions, found.n_correct) == (4, 3, 2)
    assert found.precision is not None and found.recall is not None and found.f1 is not None
    assert found.precision["value"] == pytest.approx(2 / 3)
    assert found.recall["value"] == 0.5
    assert found.f1["value"] == pytest.approx(4 / 7)
    nothing = precision_recall(np.zeros(3), np.zeros(3))
    assert nothing.precision is not None and nothing.f1 is not None
    assert nothing.precision["value"] == nothing.f1["value"] == nothing.f1["high"] == 0.0
    assert precision_recall(np.zeros(0), np.zeros(0)).f1 is None


def test_precision_and_recall_equal_the_official_ones() -> None:
    """The official code needs `astunparse`. Types are the same for both functions that write them."""
    names: dict[str, Any] = {"normalize_type": normalized_type, "UNK": "@@UNK@@"}
    source = peer("Eric-Wallace+codex/typewriter.py").read_text(encoding="utf-8")
    start = source.index("def evaluate(")
    exec(source[start : source.index("\ndef load_json", start)], names)  # noqa: S102 - a file that the user chose
    rng = random.Random(0)
    types = [
        "int",
        "str",
        "Dict[str, int]",
        "Dict[str,int]",
        "Tuple[(int, str)]",
        "Tuple[int, str]",
        "List[",
        "",
        "x y",
    ]
    results = [
        {"return_type_from_source": rng.choice(types[:6]), "predicted_type": rng.choice(types)} for _ in range(300)
    ]
    official = names["evaluate"](results)
    pairs = [(normalized_type(r["return_type_from_source"]), normalized_type(r["predicted_type"])) for r in results]
    found = precision_recall(
        np.array([float(answer is not None) for _, answer in pairs]), np.array([float(gold == a) for gold, a in pairs])
    )
    for name in ("precision", "recall", "f1"):
        interval = getattr(found, name)
        assert interval["value"] == pytest.approx(official[name])
        assert interval["low"] < interval["value"] < interval["high"]


WORDS = (
    "return", "the", "Value", "of", "x", "x_1", "1.5", "a,b", "foo(bar)", "don't", "e.g.", "->", "--", "5-3", "é", "naïve",
    '"quoted"', "`code`", "...", "[0]", "#", "&amp;", "<skipped>", "\u3002", "中文", "_", "__init__", "10%", "a/b", "İ", "\x1c",
)  # fmt: skip


def test_bleu_equals_the_official_file() -> None:
    names = {"re": re, "math": math, "sys": sys, "xml": xml}
    assert xml.sax.saxutils is not None
    official = load_official(peer("CodeXGLUE/Code-Text/code-to-text/evaluator/evaluator.py"), names)

    def official_bleu(reference: str, prediction: str) -> float:
        gold, found = ([official["splitPuncts"](text.strip().lower())] for text in (reference, prediction))
        return float(official["bleu"](gold, found[0])[0])

    rng = random.Random(0)
    for _ in range(4000):
        reference, prediction = (" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(2))
        if rng.random() < 0.5:
            prediction = " ".join((reference.split() + prediction.split())[rng.randint(0, 3) :])
        assert sentence_bleu(reference, prediction) == pytest.approx(official_bleu(reference, prediction), rel=1e-12)


def test_bleu_equals_the_official_script_on_its_own_predictions() -> None:
    folder = "CodeXGLUE/Code-Text/code-to-text/evaluator"
    rows = [
        dict(
            line.rstrip("\n").split("\t", 1)
            for line in peer(f"{folder}/{file}").read_text(encoding="utf-8").splitlines()
        )
        for file in ("reference.txt", "predictions.txt")
    ]
    references, predictions = rows
    scores = [sentence_bleu(references[key], predictions[key]) for key in references if key in predictions]
    assert 100 * sum(scores) / len(scores) == pytest.approx(9.554726113590661)  # as its README.md prints


def test_bleu_by_hand() -> None:
    assert sentence_bleu("return the value of x", "return the value of x") == pytest.approx(1.0)
    # Matches 2 of 2, 1+1 of 1+1, 0+1 of 0+1 twice; the brevity penalty is exp(1 - 5/3).
    assert sentence_bleu("return the value now", "return the") == pytest.approx(math.exp(1 - 5 / 3))
    assert sentence_bleu("a", "") > 0.1  # an empty prediction does not score 0
    assert sentence_bleu("A_b", "a _ B") == pytest.approx(1.0)


def test_references_are_the_joined_tokens_of_codexglue() -> None:
    assert joined_tokens(["str", "-", ">", "list", "\n", "Convert ", " XML"]) == "str - > list Convert XML"


def test_detokenized_references_have_the_same_bleu_as_the_tokens() -> None:
    """InCoder's detokenized references differ from CodeXGLUE's in spaces, which almost never matter to BLEU."""
    plain, detokenized = (
        peer(f"Eric-Wallace+codex/data/{file}").read_text(encoding="utf-8").split("\n")[:2000]
        for file in ("code_summ_clean_ref.txt", "code_summ_clean_ref.detok.txt")
    )
    pairs = [(a.split("\t")[1], b.split("\t")[1]) for a, b in zip(plain, detokenized, strict=True)]
    scores = [sentence_bleu(tokens, text) for tokens, text in pairs]
    assert sum(score == pytest.approx(1.0) for score in scores) / len(scores) > 0.95
