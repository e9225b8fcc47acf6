"""Evaluates a model on held-out documents: infilling, and samples for the report."""

from collections.abc import Iterable
from itertools import islice

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.functions import sample_functions
from codekiln.evaluate.held_out.holes import sample_problems
from codekiln.evaluate.infilling import InfillResult, aggregate, evaluate, is_scorable
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY

MAX_SAMPLES_SHOWN = 4  # correct and wrong samples of each kind of problem that are kept, in the order of sampling


def evaluate_infilling(completer: Completer, documents: Iterable[Document], config: InfillingConfig) -> JsonObject:
    """Scores by kind of problem, with samples. A kind without problems has `{"problems": 0}`.

    "skipped" counts problems that do not fit in the model's context.
    """
    summary: JsonObject = {}
    for kind, problems in sample_problems(documents, config).items():
        scorable = [problem for problem in problems if is_scorable(completer, problem)]
        results = evaluate(completer, scorable, config, title=f"Evaluate: {kind} infilling")
        samples = [sample for is_exact in (True, False) for sample in _samples(results, is_exact=is_exact)]
        summary[kind] = aggregate(results) | {"skipped": len(problems) - len(scorable), "samples": samples}
    return summary


def sample_report_functions(
    completer: Completer, documents: Iterable[Document], n: int, config: InfillingConfig
) -> list[JsonObject]:
    """Held-out functions with what the model writes: the completed body, and one infilled line."""
    shown = []
    max_new_tokens = completer.limit_new_tokens(2 * config.max_new_tokens)
    for function in sample_functions(documents, n, seed=config.seed):
        lines = function.body.splitlines(keepends=True)
        hidden = lines[function.hidden_line]
        prompt = function.before + "".join(lines[: function.hidden_line])
        line_end = hidden[len(hidden.rstrip("\r\n")) :]
        suffix = "".join([line_end, *lines[function.hidden_line + 1 :]])
        requests = {"completion": InfillRequest(function.before), "infill": InfillRequest(prompt, suffix)}
        texts = {
            name: completer.complete([request], CompletionParams(max_new_tokens=max_new_tokens, sampling=GREEDY))[
                0
            ].text
            for name, request in requests.items()
        }
        shown.append(
            {
                "name": function.name,
                "before": function.before,
                "body": function.body,
                "hidden": hidden.removesuffix(line_end),
                "prompt": prompt,
                "suffix": suffix,
            }
            | texts
        )
    return shown


def _samples(results: Iterable[InfillResult], *, is_exact: bool) -> list[JsonObject]:
    """The first results that are correct, or wrong."""
    chosen = islice((result for result in results if result.is_infill_exact is is_exact), MAX_SAMPLES_SHOWN)
    return [
        {
            "name": result.problem.group,
            "prompt": result.problem.prompt,
            "reference": result.problem.reference,
            "suffix": result.problem.suffix,
            "infill": result.infill,
            "left_to_right": result.left_to_right,
        }
        for result in chosen
    ]
