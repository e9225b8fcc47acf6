"""How much of what a model writes is memorized: tokens in long verbatim matches with the training documents."""

from collections.abc import Iterable

import numpy as np

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.held_out.holes import SINGLE_LINE, sample_problems
from codekiln.evaluate.metrics import mean_interval, ratio_interval
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.generate.work import Work, run_all
from codekiln.index.provenance import MEMORIZED_TOKENS, count_memorized
from codekiln.index.search import Index
from codekiln.progress import progress_bar

N_PROMPTS = 64
MAX_NEW_TOKENS = 100  # of each prompt; twice the length of a match


def evaluate_memorization(
    completer: Completer, index: Index, documents: Iterable[Document], config: InfillingConfig
) -> JsonObject:
    """The fraction of greedily written tokens in matches of at least `MEMORIZED_TOKENS` tokens, after held-out prompts.

    The prompts are those of the infilling problems of single lines. The 95% interval resamples documents. Without prompts, and
    for a model whose context is too short for a match, the record has `"prompts": 0` and the reason.
    """
    max_new_tokens = completer.limit_new_tokens(MAX_NEW_TOKENS)
    problems = [each for each in sample_problems(documents, config)[SINGLE_LINE] if each.prompt][:N_PROMPTS]
    if max_new_tokens < MEMORIZED_TOKENS:
        return {"prompts": 0, "reason": "the context is too short"}
    if not problems:
        return {"prompts": 0, "reason": "no held-out data"}
    params = CompletionParams(sampling=GREEDY, max_new_tokens=max_new_tokens)

    def write(prompt: str) -> Work[tuple[int, ...]]:
        job = completer.submit(InfillRequest(prompt), params)
        yield [job]
        return job.completions[0].tokens

    n_written, n_memorized = np.zeros(len(problems)), np.zeros(len(problems))
    with progress_bar("Evaluate: memorization", len(problems)) as progress:
        for number, tokens in run_all(completer, (write(problem.prompt) for problem in problems)):
            n_written[number] = len(tokens)
            n_memorized[number] = count_memorized(index, tokens)
            progress.advance()
    groups = [problem.group for problem in problems]
    # Without any memorized token, resampling shows no spread; the interval of a mean is then Wilson's.
    interval = (
        ratio_interval(n_memorized, n_written, groups) if n_memorized.any() else mean_interval(n_memorized, groups)
    )
    return {
        "prompts": len(problems),
        "tokens": int(n_written.sum()),
        "temperature": 0.0,
        "max_new_tokens": max_new_tokens,
        "min_match_tokens": MEMORIZED_TOKENS,
        "memorized": interval,
    }
