"""Evaluation: the problems that are sampled, how completions are scored, and intervals."""

import ast
from pathlib import Path

import pytest
import torch

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.functions import sample_functions
from codekiln.evaluate.held_out.holes import SINGLE_LINE, SPAN, sample_problems
from codekiln.evaluate.infilling import InfillResult, aggregate, evaluate, middle_bits
from codekiln.evaluate.problems.holes import HoleProblem, HoleUnit
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.model.huggingface import load_model

TEXT = "".join(f"def f{n}(x):\n    y = x * {n}\n\n    return y + {n}\n\n\n" for n in range(30))
DOCUMENTS = [Document(TEXT.replace("x", name), "tree", name, "-", "MIT", "a.py", "Python") for name in "abc"]


def hole(unit: HoleUnit, prompt: str, reference: str, suffix: str, group: str = "x") -> HoleProblem:
    return HoleProblem(
        task_id=f"{group}/{unit}",
        group=group,
        prompt=prompt,
        suffix=suffix,
        reference=reference,
        unit=unit,
        max_new_tokens=20,
    )


def test_problems_are_spans_of_their_documents() -> None:
    plan = InfillingConfig(n_problems=12, context_characters=200)
    drawn = sample_problems(DOCUMENTS, plan)
    assert drawn == sample_problems(list(reversed(DOCUMENTS)), plan)
    texts = {document.name: document.text for document in DOCUMENTS}
    for kind in (SINGLE_LINE, SPAN):
        assert len(drawn[kind]) == 12
        for problem in drawn[kind]:
            assert problem.prompt + problem.reference + problem.suffix in texts[problem.group]
            assert problem.reference.strip()
            assert len(problem.prompt) + len(problem.suffix) <= 200
    for problem in drawn[SINGLE_LINE]:
        assert "\n" not in problem.reference
        assert problem.prompt.endswith("\n") and problem.suffix.startswith("\n")


@pytest.mark.process
def test_results_are_those_of_one_request_after_the_other(small_run: Path) -> None:
    completer = Completer.load(small_run)
    plan = InfillingConfig(n_problems=6, context_characters=200, max_new_tokens=20)
    for problems in sample_problems(DOCUMENTS, plan).values():
        for result in evaluate(completer, problems, plan, title="test"):
            problem = result.problem
            params = CompletionParams(max_new_tokens=20, sampling=GREEDY)
            texts = [
                completer.complete([InfillRequest(problem.prompt, suffix)], params)[0].text
                for suffix in (problem.suffix, None)
            ]
            assert result.infill == problem.truncate(texts[0], with_suffix=True)
            assert result.left_to_right == problem.truncate(texts[1], with_suffix=False)
            assert result.infill_bits == pytest.approx(middle_bits(completer, [problem], with_suffix=True)[0], rel=1e-4)


def test_middle_bits_equal_a_token_by_token_sum(small_run: Path) -> None:
    completer, model = Completer.load(small_run), load_model(small_run / "model")
    problem = hole("line", "def f(a):\n", "    return a", "\n")
    for with_suffix in (True, False):
        request = InfillRequest(problem.prompt, problem.suffix if with_suffix else None)
        reference = completer.tokenizer.encode(problem.reference)
        ids, bits = completer.prompt_ids(request, len(reference)), 0.0
        for token in reference:
            with torch.inference_mode():
                logits = model(torch.tensor([ids]))[0, -1]
            bits -= float(logits.log_softmax(-1)[token]) / float(torch.tensor(2.0).log())
            ids.append(token)
        assert middle_bits(completer, [problem], with_suffix=with_suffix)[0] == pytest.approx(bits, rel=1e-4)


def test_aggregate_by_hand() -> None:
    problems = [hole("span", "", "ab", "", group=str(n)) for n in range(10)]
    right, wrong = "ab", "a"
    answers = [(right, wrong)] * 6 + [(wrong, right)] * 2 + [(wrong, wrong)] * 2
    found = aggregate([InfillResult(p, *texts, 4.0, 8.0) for p, texts in zip(problems, answers, strict=True)])
    assert found["problems"] == 10
    assert found["infill_exact_match"]["value"] == 0.6
    # The 2.5% and 97.5% quantiles of a binomial distribution with n = 10 and p = 0.6, divided by 10.
    assert (found["infill_exact_match"]["low"], found["infill_exact_match"]["high"]) == (0.3, 0.9)
    assert found["left_to_right_exact_match"]["value"] == 0.2
    assert found["difference"]["value"] == pytest.approx(0.4)
    assert (found["infill_bits_per_byte"], found["left_to_right_bits_per_byte"]) == (2.0, 4.0)
    assert found["bits_per_byte_difference"] == {"value": -2.0, "low": -2.0, "high": -2.0}
    assert aggregate([]) == {"problems": 0}


def test_sampled_functions_are_complete_and_from_different_documents() -> None:
    broken = Document("def f(:\n", "tree", "broken", "-", "MIT", "a.py", "Python")
    documents = [*DOCUMENTS, broken]
    short = [Document(d.text.replace("\n\n    return", "\n    return"), *_rest(d)) for d in documents]
    assert sample_functions(short, 5, seed=0) == []  # a body needs three lines
    found = sample_functions(documents, 5, seed=0)
    assert len({function.name.split(":")[0] for function in found}) == len(found) == 3
    for function in found:
        ast.parse(function.before[function.before.rindex("def ") :] + function.body)


def _rest(document: Document) -> tuple[str, str, str, str, str, str]:
    d = document
    return d.source, d.repository, d.revision, d.license, d.path, d.language
