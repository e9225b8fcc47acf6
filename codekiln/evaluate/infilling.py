"""Infilling on held-out documents: exact match and bits per byte, compared with the same model left to right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.metrics import mean_interval, ratio_interval
from codekiln.evaluate.problems.holes import LINE_END, HoleProblem
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, Completion, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.progress import progress_bar

SUFFIX_MATCH_CHARACTERS = 8  # of the suffix, that end a span where they occur


@dataclass(frozen=True)
class InfillResult:
    """What the model wrote with the suffix (`infill`) and without it (`left_to_right`), postprocessed.

    Bits are those of the reference. An infill that the token limit cut off is not finished, and so never exact.
    """

    problem: HoleProblem
    infill: str
    left_to_right: str
    infill_bits: float
    left_to_right_bits: float
    is_infill_finished: bool = True

    @property
    def is_infill_exact(self) -> bool:
        return self.is_infill_finished and self.infill == self.problem.reference

    @property
    def is_left_to_right_exact(self) -> bool:
        return self.left_to_right == self.problem.reference


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
    results: list[InfillResult] = []
    with progress_bar(title, len(problems)) as progress:
        for start in range(0, len(problems), config.batch_size):
            batch = problems[start : start + config.batch_size]
            with_suffix = answer_problems(completer, batch, config, with_suffix=True)
            without = answer_problems(completer, batch, config, with_suffix=False)
            for problem, infill, left_to_right in zip(batch, with_suffix, without, strict=True):
                result = InfillResult(
                    problem=problem,
                    infill=infill.text,
                    left_to_right=left_to_right.text,
                    infill_bits=infill.reference_bits,
                    left_to_right_bits=left_to_right.reference_bits,
                    is_infill_finished=infill.is_finished,
                )
                results.append(result)
            progress.advance(len(batch))
    return results


@dataclass(frozen=True)
class Answer:
    """A postprocessed completion, whether it ends by itself or by the problem's rule, and the bits of the reference."""

    text: str
    is_finished: bool
    reference_bits: float


def answer_problems(
    completer: Completer, problems: Sequence[HoleProblem], config: InfillingConfig, *, with_suffix: bool
) -> list[Answer]:
    """Greedy answers, postprocessed. All problems are decoded in one batch."""
    completions = completer.complete(
        [InfillRequest(p.prompt, p.suffix if with_suffix else None) for p in problems],
        CompletionParams(
            sampling=GREEDY,
            max_new_tokens=completer.limit_new_tokens(config.max_new_tokens),
            stop=stop_strings(problems),
        ),
    )
    bits = middle_bits(completer, problems, with_suffix=with_suffix)
    return [
        Answer(*postprocess(completion, problem, with_suffix=with_suffix), reference_bits)
        for completion, problem, reference_bits in zip(completions, problems, bits, strict=True)
    ]


def stop_strings(problems: Sequence[HoleProblem]) -> tuple[str, ...]:
    """Strings that end the answers to problems of one batch."""
    return ("\n", "\r") if all(problem.unit == "line" for problem in problems) else ()


def middle_bits(completer: Completer, problems: Sequence[HoleProblem], *, with_suffix: bool) -> list[float]:
    """Bits of each reference, without its end, with or without the suffix in view."""
    rows = []
    for problem in problems:
        reference = completer.tokenizer.encode(problem.reference)
        request = InfillRequest(problem.prompt, problem.suffix if with_suffix else None)
        rows.append((completer.prompt_ids(request, len(reference)), reference))
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


def postprocess(completion: Completion, problem: HoleProblem, *, with_suffix: bool) -> tuple[str, bool]:
    """Truncates a completion as an editor would, which knows the suffix even if the model did not see it.

    A single line ends at its line end (InCoder, section 4.1), a span where it reaches the suffix. A span that never reaches
    it ends where the model ended it, if it saw the suffix, and else at its line end. Also returns whether the answer is
    finished. A span is not if the model saw the suffix, and neither the suffix, the model nor a line end ends it.
    """
    first_line = LINE_END.split(completion.text, 1)[0]
    if problem.unit == "line":
        return first_line, True
    start = completion.text.find(problem.suffix[:SUFFIX_MATCH_CHARACTERS]) if problem.suffix else -1
    if start != -1:
        return completion.text[:start], True
    if with_suffix and completion.finish_reason == "stop":
        return completion.text, True
    return first_line, first_line != completion.text or not with_suffix
