"""Infilling on held-out documents: exact match and bits per byte, compared with the same model left to right."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, Completion, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.progress import progress_bar
from codekiln.tokenizer.infill import boundary_before, expand_to_words

FloatArray = npt.NDArray[np.float64]
SINGLE_LINE, SPAN = "single-line", "span"
SUFFIX_MATCH_CHARACTERS = 8  # of the suffix, that end a span where they occur
MAX_PROBLEMS_PER_DOCUMENT = 8  # of each kind
MAX_LINE_CHARACTERS = 100  # of a line that is a problem
LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Problem:
    """`reference` is the text between `prompt` and `suffix` in the document `name`."""

    kind: str
    name: str
    prompt: str
    reference: str
    suffix: str


@dataclass(frozen=True)
class InfillResult:
    """What the model wrote with the suffix (`infill`) and without it (`left_to_right`), postprocessed.

    Bits are those of the reference. An infill that the token limit cut off is not finished, and so never exact.
    """

    problem: Problem
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


def sample_problems(documents: Iterable[Document], config: InfillingConfig) -> dict[str, list[Problem]]:
    """Problems by kind, in an order that the seed decides."""
    drawn: dict[str, list[tuple[str, Problem]]] = {SINGLE_LINE: [], SPAN: []}
    for document in documents:
        rng = np.random.default_rng(
            int.from_bytes(hashlib.sha256(f"{config.seed}:{document.name}".encode()).digest()[:8])
        )
        for number in range(MAX_PROBLEMS_PER_DOCUMENT):
            for kind, hole in ((SINGLE_LINE, _line(document.text, rng)), (SPAN, _span(document.text, config, rng))):
                if hole is not None:
                    key = hashlib.sha256(f"{config.seed}:{kind}:{number}:{document.name}".encode()).hexdigest()
                    drawn[kind].append((key, _problem(kind, document, hole, config)))
    return {
        kind: [problem for _, problem in sorted(found, key=lambda e: e[0])][: config.n_problems]
        for kind, found in drawn.items()
    }


def is_scorable(completer: Completer, problem: Problem) -> bool:
    """Whether the reference fits in the model's context and, without the suffix, a token comes before it."""
    n_tokens = len(completer.tokenizer.encode(problem.reference))
    if n_tokens > completer.max_new_tokens_limit:
        return False
    return bool(completer.prompt_ids(InfillRequest(problem.prompt), n_tokens))


def evaluate(
    completer: Completer, problems: Sequence[Problem], config: InfillingConfig, *, title: str
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
    completer: Completer, problems: Sequence[Problem], config: InfillingConfig, *, with_suffix: bool
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


def stop_strings(problems: Sequence[Problem]) -> tuple[str, ...]:
    """Strings that end the answers to problems of one batch."""
    return ("\n", "\r") if all(problem.kind == SINGLE_LINE for problem in problems) else ()


def middle_bits(completer: Completer, problems: Sequence[Problem], *, with_suffix: bool) -> list[float]:
    """Bits of each reference, without its end, with or without the suffix in view."""
    rows = []
    for problem in problems:
        reference = completer.tokenizer.encode(problem.reference)
        request = InfillRequest(problem.prompt, problem.suffix if with_suffix else None)
        rows.append((completer.prompt_ids(request, len(reference)), reference))
    return completer.score(rows)


def aggregate(results: Sequence[InfillResult]) -> JsonObject:
    """Exact match and bits per byte, with and without the suffix, and paired differences, with 95% intervals."""
    n = len(results)
    if not n:
        return {"problems": 0}
    infill = np.array([v.is_infill_exact for v in results], float)
    left_to_right = np.array([v.is_left_to_right_exact for v in results], float)
    n_bytes = np.array([len(v.problem.reference.encode()) for v in results], float)
    infill_bits = np.array([v.infill_bits for v in results])
    left_to_right_bits = np.array([v.left_to_right_bits for v in results])
    return {
        "problems": n,
        "infill_exact_match": _wilson_interval(infill),
        "left_to_right_exact_match": _wilson_interval(left_to_right),
        "difference": mean_interval(infill - left_to_right),
        "infill_bits_per_byte": float(infill_bits.sum() / n_bytes.sum()),
        "left_to_right_bits_per_byte": float(left_to_right_bits.sum() / n_bytes.sum()),
        "bits_per_byte_difference": ratio_interval(infill_bits - left_to_right_bits, n_bytes),
    }


def postprocess(completion: Completion, problem: Problem, *, with_suffix: bool) -> tuple[str, bool]:
    """Truncates a completion as an editor would, which knows the suffix even if the model did not see it.

    A single line ends at its line end (InCoder, section 4.1), a span where it reaches the suffix. A span that never reaches
    it ends where the model ended it, if it saw the suffix, and else at its line end. Also returns whether the answer is
    finished. A span is not if the model saw the suffix, and neither the suffix, the model nor a line end ends it.
    """
    first_line = LINE_END.split(completion.text, 1)[0]
    if problem.kind == SINGLE_LINE:
        return first_line, True
    start = completion.text.find(problem.suffix[:SUFFIX_MATCH_CHARACTERS]) if problem.suffix else -1
    if start != -1:
        return completion.text[:start], True
    if with_suffix and completion.finish_reason == "stop":
        return completion.text, True
    return first_line, first_line != completion.text or not with_suffix


def _line(text: str, rng: np.random.Generator) -> tuple[int, int] | None:
    """A line that is not blank and not the first, with its indentation and without its line end."""
    lines = (line for line in re.finditer(r"[^\r\n]+", text) if line.start() > 0)
    candidates = [line.span() for line in lines if line.group().strip() and len(line.group()) <= MAX_LINE_CHARACTERS]
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


def _span(text: str, config: InfillingConfig, rng: np.random.Generator) -> tuple[int, int] | None:
    """A run of whole words, not only white space. Its length before it is extended to words is log-uniform."""
    data = text.encode()
    if len(data) < 4 * config.max_span_characters:
        return None
    length = int(np.exp(rng.uniform(math.log(1), math.log(config.max_span_characters + 1))))
    start = int(rng.integers(len(data) - length))
    bounds = (boundary_before(data, at) for at in expand_to_words(data, start, start + length))
    start, stop = (len(data[:at].decode()) for at in bounds)
    return (start, stop) if text[start:stop].strip() else None


def _problem(kind: str, document: Document, hole: tuple[int, int], config: InfillingConfig) -> Problem:
    """The hole with `context_characters` around it, two thirds before it, cut at line ends."""
    text, (start, end) = document.text, hole
    before = max(0, start - config.context_characters * 2 // 3)
    after = min(len(text), end + config.context_characters // 3)
    if before:
        before = text.find("\n", before, start) + 1 or before
    after = text.rfind("\n", end, after) + 1 or after
    return Problem(kind, document.name, text[before:start], text[start:end], text[end:after])


def _wilson_interval(hits: FloatArray) -> JsonObject:
    """A fraction with Wilson's 95% interval."""
    n, p, z = len(hits), float(hits.mean()), 1.96
    middle, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2),
    )
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def ratio_interval(parts: FloatArray, wholes: FloatArray) -> JsonObject:
    """The sum of parts divided by the sum of wholes, with its 95% interval by linearization (Cochran 1977, section 2.11)."""
    ratio = float(parts.sum() / wholes.sum())
    spread = parts - ratio * wholes
    half = 1.96 * float(spread.std(ddof=1) if len(spread) > 1 else 0) * math.sqrt(len(spread)) / float(wholes.sum())
    return {"value": ratio, "low": ratio - half, "high": ratio + half}


def mean_interval(differences: FloatArray) -> JsonObject:
    """A mean with its normal 95% interval."""
    mean, half = (
        float(differences.mean()),
        1.96 * float(differences.std(ddof=1) if len(differences) > 1 else 0) / math.sqrt(len(differences)),
    )
    return {"value": mean, "low": mean - half, "high": mean + half}
