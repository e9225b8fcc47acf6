"""Measuring: what problems are drawn, how answers are judged, and the intervals."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from codekiln.corpus.documents import Document
from codekiln.evaluate.functions import draw_functions
from codekiln.evaluate.infilling import (
    SINGLE_LINE,
    SPAN,
    InfillingPlan,
    Problem,
    Verdict,
    draw_problems,
    hole_bits,
    judge,
    summary,
    taken_over,
)
from codekiln.evaluate.reranking import RerankingPlan, most_probable, reranked
from codekiln.generate.complete import Answer, Completer, Request
from codekiln.generate.sampler import GREEDY, Sampling

TEXT = "".join(f"def f{n}(x):\n    y = x * {n}\n\n    return y + {n}\n\n\n" for n in range(30))
DOCUMENTS = [Document(TEXT.replace("x", name), "tree", name, "-", "MIT", "a.py", "Python") for name in "abc"]


def test_problems_are_holes_in_their_documents() -> None:
    plan = InfillingPlan(n_problems=12, context_characters=200)
    drawn = draw_problems(DOCUMENTS, plan)
    assert drawn == draw_problems(list(reversed(DOCUMENTS)), plan)
    texts = {document.name: document.text for document in DOCUMENTS}
    for kind in (SINGLE_LINE, SPAN):
        assert len(drawn[kind]) == 12
        for problem in drawn[kind]:
            assert problem.prompt + problem.truth + problem.suffix in texts[problem.name]
            assert problem.truth.strip()
            assert len(problem.prompt) + len(problem.suffix) <= 200
    for problem in drawn[SINGLE_LINE]:
        assert "\n" not in problem.truth
        assert problem.prompt.endswith("\n") and problem.suffix.startswith("\n")


def test_judging_agrees_with_asking_one_by_one(small_run: Path) -> None:
    completer = Completer.load(small_run)
    plan = InfillingPlan(n_problems=6, context_characters=200, max_new_tokens=20, batch_rows=4)
    problems = draw_problems(DOCUMENTS, plan)[SINGLE_LINE]
    for verdict in judge(completer, problems, plan, title="test"):
        problem = verdict.problem
        alone = completer.complete([Request(problem.prompt, problem.suffix)], max_new_tokens=20, sampling=GREEDY)[0]
        assert verdict.infill == alone.text.split("\n")[0]
        onward = completer.complete([Request(problem.prompt)], max_new_tokens=20, sampling=GREEDY)[0]
        assert verdict.left_to_right == onward.text.split("\n")[0]
        assert verdict.infill_bits == pytest.approx(hole_bits(completer, [problem], with_suffix=True)[0], rel=1e-4)


def test_reranking_takes_the_answer_that_the_suffix_fits_best(small_run: Path) -> None:
    completer = Completer.load(small_run)
    plan = InfillingPlan(n_problems=5, context_characters=200, max_new_tokens=12, batch_rows=8)
    problems = [p for of_kind in draw_problems(DOCUMENTS, plan).values() for p in of_kind]
    reranking = RerankingPlan(n_samples=4, suffix_characters=40)

    def bits(problem: Problem, text: str) -> float:
        """Of the text and what is seen of the suffix, token by token."""
        rest = completer.tokenizer.encode(text + problem.suffix[:40])
        ids = completer.prompt_ids(Request(problem.prompt), 100)
        total = 0.0
        for token in rest:
            hidden = completer.model(torch.tensor([ids]))
            total -= float(completer.model.head(hidden[0, -1]).log_softmax(-1)[token])
            ids = [*ids, token]
        return total

    for problem in problems[:4]:
        texts = [problem.truth, "y = 7", "", "return return"]
        assert most_probable(completer, problem, texts, 40) == min(texts, key=lambda text: bits(problem, text))
    chosen = reranked(completer, problems, plan, reranking, title="test")
    assert chosen == reranked(completer, problems, plan, reranking, title="test")
    assert len(chosen) == len(problems)
    drawn = completer.complete(
        [Request(problems[0].prompt)] * 4 + [Request(problems[1].prompt)] * 4,
        max_new_tokens=12,
        sampling=Sampling(reranking.temperature, seed=plan.seed),
        stop=["\n"],
    )
    assert chosen[0] in {taken_over(answer, problems[0], with_suffix=False) for answer in drawn[:4]}


@pytest.mark.parametrize(
    ("kind", "text", "is_finished", "with_suffix", "without"),
    [
        (SINGLE_LINE, "    a\n    b", False, "    a", "    a"),
        (SINGLE_LINE, "    a", True, "    a", "    a"),
        (SPAN, "value.strip()\n", True, "value", "value"),  # met the suffix
        (SPAN, "value", True, "value", "value"),
        (SPAN, "value\nother", True, "value\nother", "value"),
        (SPAN, "value + ", False, "value + …", "value + "),
    ],
)
def test_answers_are_cut_as_an_editor_takes_them_over(
    kind: str, text: str, is_finished: bool, with_suffix: str, without: str
) -> None:
    problem = Problem(kind, "x", "y = ", "value", ".strip()\n" if kind == SPAN else "\n")
    answer = Answer(text, is_finished, 1, 1)
    assert taken_over(answer, problem, with_suffix=True) == with_suffix
    assert taken_over(answer, problem, with_suffix=False) == without


def test_nothing_is_met_where_there_is_no_suffix() -> None:
    assert taken_over(Answer("value", True, 1, 1), Problem(SPAN, "x", "y = ", "value", ""), with_suffix=True) == "value"


def test_bits_of_a_hole_equal_a_token_by_token_sum(small_run: Path) -> None:
    completer = Completer.load(small_run)
    problem = Problem(SINGLE_LINE, "x", "def f(a):\n", "    return a", "\n")
    for with_suffix in (True, False):
        request = Request(problem.prompt, problem.suffix if with_suffix else None)
        truth = completer.tokenizer.encode(problem.truth)
        ids, bits = completer.prompt_ids(request, len(truth)), 0.0
        for token in truth:
            with torch.inference_mode():
                logits = completer.model.head(completer.model(torch.tensor([ids]))[0, -1])
            bits -= float(logits.log_softmax(-1)[token]) / float(torch.tensor(2.0).log())
            ids.append(token)
        assert hole_bits(completer, [problem], with_suffix=with_suffix)[0] == pytest.approx(bits, rel=1e-4)


def test_the_summary_by_hand() -> None:
    problem = Problem(SPAN, "x", "", "ab", "")
    right, wrong = "ab", "a"
    verdicts = [Verdict(problem, right, wrong, 4.0, 8.0)] * 6 + [Verdict(problem, wrong, right, 4.0, 8.0)] * 2
    verdicts += [Verdict(problem, wrong, wrong, 4.0, 8.0)] * 2
    found = summary(verdicts)
    assert found["problems"] == 10
    assert found["infill_exact_match"]["value"] == 0.6
    # Wilson's interval for 6 of 10, as published tables have it.
    assert found["infill_exact_match"]["low"] == pytest.approx(0.3127, abs=1e-3)
    assert found["infill_exact_match"]["high"] == pytest.approx(0.8318, abs=1e-3)
    assert found["left_to_right_exact_match"]["value"] == 0.2
    assert found["difference"]["value"] == pytest.approx(0.4)
    assert (found["infill_bits_per_byte"], found["left_to_right_bits_per_byte"]) == (2.0, 4.0)
    assert found["bits_per_byte_difference"] == {"value": -2.0, "low": -2.0, "high": -2.0}
    assert summary([]) == {"problems": 0}


def test_the_interval_of_bits_a_byte_covers_what_resampling_finds() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 400)
    verdicts = [
        Verdict(Problem(SPAN, "x", "", "a" * int(n), ""), "", "", float(n * rng.normal(1.0, 0.8)), float(n * 1.1))
        for n in lengths
    ]
    found = summary(verdicts)["bits_per_byte_difference"]
    drawn = [[verdicts[i] for i in rng.integers(0, 400, 400)] for _ in range(400)]
    resampled = [summary(sample)["bits_per_byte_difference"]["value"] for sample in drawn]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_functions_are_whole_and_come_from_different_documents() -> None:
    broken = Document("def f(:\n", "tree", "broken", "-", "MIT", "a.py", "Python")
    documents = [*DOCUMENTS, broken]
    short = [Document(d.text.replace("\n\n    return", "\n    return"), *_rest(d)) for d in documents]
    assert draw_functions(short, 5, seed=0) == []  # two lines of body are too few
    found = draw_functions(documents, 5, seed=0)
    assert len({function.name.split(":")[0] for function in found}) == len(found) == 3
    for function in found:
        ast.parse(function.before[function.before.rindex("def ") :] + function.body)


def _rest(document: Document) -> tuple[str, str, str, str, str, str]:
    d = document
    return d.source, d.repository, d.revision, d.license, d.path, d.language
