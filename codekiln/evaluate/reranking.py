"""Filling a hole without infilling: answers drawn left to right, of which the one that the suffix fits best is taken.

It is what a left-to-right model can do with a suffix (InCoder, section 4.1): the whole text's probability chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.evaluate.infilling import InfillingPlan, Problem, continuation_bits, stops, taken_over
from codekiln.generate.complete import Completer, Request
from codekiln.generate.sampler import Sampling
from codekiln.progress import task


@dataclass(frozen=True)
class RerankingPlan:
    """`n_samples` answers a problem; of the suffix, its first `suffix_characters` are scored (the published 10, 0.8)."""

    n_samples: int = 10
    temperature: float = 0.8
    suffix_characters: int = 200


def reranked(
    completer: Completer,
    problems: Sequence[Problem],
    infilling: InfillingPlan,
    plan: RerankingPlan,
    *,
    title: str,
) -> list[str]:
    """An answer a problem: of those drawn, cut as an editor would, the one with the most probable text behind the prompt."""
    chosen: list[str] = []
    n_together = max(1, infilling.batch_rows // plan.n_samples)
    with task(title, len(problems)) as progress:
        for start in range(0, len(problems), n_together):
            batch = problems[start : start + n_together]
            answers = completer.complete(
                [Request(problem.prompt) for problem in batch for _ in range(plan.n_samples)],
                max_new_tokens=infilling.max_new_tokens,
                sampling=Sampling(plan.temperature, seed=infilling.seed + start),
                stop=stops(batch),
            )
            for k, problem in enumerate(batch):
                drawn = answers[k * plan.n_samples : (k + 1) * plan.n_samples]
                texts = list(dict.fromkeys(taken_over(answer, problem, with_suffix=False) for answer in drawn))
                chosen.append(most_probable(completer, problem, texts, plan.suffix_characters))
            progress.advance(len(batch))
    return chosen


def most_probable(completer: Completer, problem: Problem, texts: Sequence[str], suffix_characters: int) -> str:
    """The text with which the prompt goes on most probably, the suffix's beginning behind it; of equals the first.

    What is more than half of the context is not scored. Where nothing follows, the end of the text is.
    """
    tokenizer, most = completer.tokenizer, completer.context_length // 2
    tail = problem.suffix[:suffix_characters]
    end = [] if tail else [tokenizer.end_of_text]
    continuations = [[*tokenizer.encode(text + tail), *end][:most] for text in texts]
    prompt = completer.prompt_ids(Request(problem.prompt), max(map(len, continuations)))
    bits = continuation_bits(completer, [(prompt, continuation) for continuation in continuations])
    return texts[bits.index(min(bits))]
