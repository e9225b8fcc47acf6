"""Left-to-right reranking: several answers are sampled without the suffix, and the one that the suffix fits best is kept.

It is what a left-to-right model can do with a suffix (InCoder, section 4.1).
"""

from collections.abc import Sequence

from codekiln.evaluate.config import InfillingConfig, RerankingConfig
from codekiln.evaluate.infilling import postprocess, stop_strings
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import SamplingParams
from codekiln.progress import progress_bar


def rerank(
    completer: Completer,
    problems: Sequence[HoleProblem],
    infilling: InfillingConfig,
    config: RerankingConfig,
    *,
    title: str,
) -> list[str]:
    """One answer per problem: of the postprocessed samples, the one for which the text after the prompt is most likely."""
    chosen: list[str] = []
    problems_per_batch = max(1, infilling.batch_size // config.n_samples)
    with progress_bar(title, len(problems)) as progress:
        for start in range(0, len(problems), problems_per_batch):
            batch = problems[start : start + problems_per_batch]
            completions = completer.complete(
                [InfillRequest(problem.prompt) for problem in batch],
                CompletionParams(
                    sampling=SamplingParams(temperature=config.temperature, seed=infilling.seed + start),
                    max_new_tokens=completer.limit_new_tokens(infilling.max_new_tokens),
                    stop=stop_strings(batch),
                    n=config.n_samples,
                ),
            )
            for k, problem in enumerate(batch):
                drawn = completions[k * config.n_samples : (k + 1) * config.n_samples]
                texts = list(
                    dict.fromkeys(postprocess(completion, problem, with_suffix=False)[0] for completion in drawn)
                )
                chosen.append(most_likely(completer, problem, texts, config.suffix_characters))
            progress.advance(len(batch))
    return chosen


def most_likely(completer: Completer, problem: HoleProblem, texts: Sequence[str], suffix_characters: int) -> str:
    """The text that, followed by the beginning of the suffix, is the most likely continuation; the first of equals.

    At most half of the context is scored. If there is no suffix, the end of the text is scored instead.
    """
    tokenizer, most = completer.tokenizer, completer.context_length // 2
    tail = problem.suffix[:suffix_characters]
    end = [] if tail else [tokenizer.eos_id]
    continuations = [[*tokenizer.encode(text + tail), *end][:most] for text in texts]
    prompt = completer.prompt_ids(InfillRequest(problem.prompt), max(map(len, continuations)))
    bits = completer.score([(prompt, continuation) for continuation in continuations])
    return texts[bits.index(min(bits))]
