"""Infilling on held-out documents: exact match and bits per byte, compared with the same model left to right."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codekiln.evaluate.answers import ModelAnswers, questions
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.metrics import mean_interval, ratio_interval
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.evaluate.settings import Method, Settings
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, InfillRequest
from codekiln.progress import progress_bar


@dataclass(frozen=True)
class InfillResult:
    """What the model wrote with the suffix (`infill`) and without it (`left_to_right`). Bits are those of the reference."""

    problem: HoleProblem
    infill: str
    left_to_right: str
    infill_bits: float
    left_to_right_bits: float

    @property
    def is_infill_exact(self) -> bool:
        return self.problem.text_scores(self.infill)["exact_match"] == 1

    @property
    def is_left_to_right_exact(self) -> bool:
        return self.problem.text_scores(self.left_to_right)["exact_match"] == 1


def is_scorable(completer: Completer, problem: HoleProblem) -> bool:
    """Whether the reference fits in the model's context and, without the suffix, a token comes before it."""
    n_tokens = len(completer.tokenizer.encode(problem.reference))
    if n_tokens > completer.max_new_tokens_limit:
        return False
    return bool(completer.prompt_ids(InfillRequest(problem.prompt), n_tokens))


def evaluate(
    completer: Completer, problems: Sequence[HoleProblem], config: InfillingConfig, *, title: str
) -> list[InfillResult]:
    """One result per problem, with greedy decoding."""
    infills, left_to_right = (
        hole_answers(completer, problems, greedy_settings(config, method), title=f"{title}, {method}")
        for method in ("infilling", "left-to-right")
    )
    bits = [middle_bits(completer, problems, with_suffix=with_suffix) for with_suffix in (True, False)]
    return [InfillResult(*each) for each in zip(problems, infills, left_to_right, *bits, strict=True)]


def greedy_settings(config: InfillingConfig, method: Method) -> Settings:
    """One greedy answer to each problem."""
    return Settings(preset="greedy", method=method, max_new_tokens=config.max_new_tokens, seed=config.seed)


def hole_answers(
    completer: Completer, problems: Sequence[HoleProblem], settings: Settings, *, title: str | None
) -> list[str]:
    """The first answer to each problem, in their order. Without a title, no progress is shown."""
    found: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        progress = None if title is None else stack.enter_context(progress_bar(title, len(problems)))
        for question, samples in ModelAnswers(completer, title or "", settings).answer(
            questions(problems, settings, 1)
        ):
            found[question.problem.task_id] = samples[0].answer
            if progress is not None:
                progress.advance(1)
    return [found[problem.task_id] for problem in problems]


def middle_bits(completer: Completer, problems: Sequence[HoleProblem], *, with_suffix: bool) -> list[float]:
    """Bits of each reference, without its end, with or without the suffix in view."""
    rows = []
    for problem in problems:
        reference = completer.tokenizer.encode(problem.reference)
        request = InfillRequest(problem.prompt, problem.suffix if with_suffix else None)
        rows.append((completer.cut_prompt(request, len(reference)), reference))
    return completer.score(rows)


def aggregate(results: Sequence[InfillResult]) -> JsonObject:
    """Exact match and bits per byte, with and without the suffix, and paired differences.

    The 95% intervals resample documents."""
    n = len(results)
    if not n:
        return {"problems": 0}
    documents = [v.problem.group for v in results]
    infill = np.array([v.is_infill_exact for v in results], float)
    left_to_right = np.array([v.is_left_to_right_exact for v in results], float)
    n_bytes = np.array([len(v.problem.reference.encode()) for v in results], float)
    infill_bits = np.array([v.infill_bits for v in results])
    left_to_right_bits = np.array([v.left_to_right_bits for v in results])
    return {
        "problems": n,
        "infill_exact_match": mean_interval(infill, documents),
        "left_to_right_exact_match": mean_interval(left_to_right, documents),
        "difference": mean_interval(infill - left_to_right, documents),
        "infill_bits_per_byte": float(infill_bits.sum() / n_bytes.sum()),
        "left_to_right_bits_per_byte": float(left_to_right_bits.sum() / n_bytes.sum()),
        "bits_per_byte_difference": ratio_interval(infill_bits - left_to_right_bits, n_bytes, documents),
    }
