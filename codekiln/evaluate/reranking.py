"""Filling a hole without infilling: answers drawn left to right, of which the one that the suffix fits best is taken.

It is what a left-to-right model can do with a suffix (InCoder, section 4.1): the whole text's probability chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from codekiln.evaluate.infilling import InfillingConfig, Problem, postprocess, score_continuations, stop_strings
from codekiln.generate.complete import Completer, InfillRequest
from codekiln.generate.sampling import SamplingParams
from codekiln.progress import progress_bar


@dataclass(frozen=True)
class RerankingConfig:
    """`n_samples` answers a problem; of the suffix, its first `suffix_characters` are scored (the published 10, 0.8)."""

    n_samples: int = 10
    temperature: float = 0.8
    suffix_characters: int = 200


def rerank(
    completer: Completer,
    problems: Sequence[Problem],
    infilling: InfillingConfig,
    config: RerankingConfig,
    *,
    title: str,
) -> list[str]:
    """An answer a problem: of those drawn, cut as an editor would, the one with the most probable text behind the prompt."""
    chosen: list[str] = []
    problems_per_batch = max(1, infilling.batch_size // config.n_samples)
    with progress_bar(title, len(problems)) as progress:
        for start in range(0, len(problems), problems_per_batch):
            batch = problems[start : start + problems_per_batch]
            completions = completer.complete(
                [InfillRequest(problem.prompt) for problem in batch for _ in range(config.n_samples)],
                max_new_tokens=infilling.max_new_tokens,
                sampling=SamplingParams(config.temperature, seed=infilling.seed + start),
                stop=stop_strings(batch),
            )
            for k, problem in enumerate(batch):
                drawn = completions[k * config.n_samples : (k + 1) * config.n_samples]
                texts = list(dict.fromkeys(postprocess(completion, problem, with_suffix=False) for completion in drawn))
                chosen.append(most_likely(completer, problem, texts, config.suffix_characters))
            progress.advance(len(batch))
    return chosen


def most_likely(completer: Completer, problem: Problem, texts: Sequence[str], suffix_characters: int) -> str:
    """The text with which the prompt goes on most probably, the suffix's beginning behind it; of equals the first.

    What is more than half of the context is not scored. Where nothing follows, the end of the text is.
    """
    tokenizer, most = completer.tokenizer, completer.context_length // 2
    tail = problem.suffix[:suffix_characters]
    end = [] if tail else [tokenizer.eos_id]
    continuations = [[*tokenizer.encode(text + tail), *end][:most] for text in texts]
    prompt = completer.prompt_ids(InfillRequest(problem.prompt), max(map(len, continuations)))
    bits = score_continuations(completer, [(prompt, continuation) for continuation in continuations])
    return texts[bits.index(min(bits))]
