"""Recall on held-out documents: fits the gate on one half of each repository's documents, and measures it on the other.

Three settings are compared with the model alone: "request", the text of the document itself; "corpus", also the training
corpus; and "workspace", also the other files of the same repository, those of the half that is not measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from codekiln.corpus.documents import Document, hash_order
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.held_out.holes import SINGLE_LINE, sample_problems
from codekiln.evaluate.infilling import greedy_settings, hole_answers, is_scorable
from codekiln.evaluate.metrics import mean_interval, ratio_interval
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.evaluate.settings import Method
from codekiln.files import JsonObject
from codekiln.generate.complete import Completer
from codekiln.generate.fit_recall import MIN_ROWS, fit_gate, record_rows
from codekiln.generate.recall import Gate, Recall, Searched
from codekiln.generate.windows import Scored, score_document, scored_windows
from codekiln.index.build import sort_documents
from codekiln.index.continuations import SortedTokens
from codekiln.progress import progress_bar

FIT_TOKENS, MEASURED_TOKENS = 60_000, 30_000
DOCUMENT_TOKENS = 1_500  # of each document that are fitted or measured, from its beginning
CONTEXT_CHARACTERS = 50_000  # around a hole: the whole document, nearly always
SETTINGS = ("request", "corpus", "workspace")


@dataclass(frozen=True)
class OtherFiles:
    """The other half of a repository as a source."""

    shards: tuple[SortedTokens, ...]


@dataclass(frozen=True)
class Half:
    """Some documents of a repository, and an index of its other ones; None if it has no others."""

    documents: tuple[Document, ...]
    others: OtherFiles | None


def fit_and_measure(
    completer: Completer, corpus: Searched | None, documents: Iterable[Document], config: InfillingConfig
) -> tuple[Gate, JsonObject]:
    """The gate for a model, and its results. With too few held-out tokens, it is the gate of the demo's model."""
    fitted, measured = split_repositories(completer, documents, config.seed)
    chosen = document_windows(completer, fitted, FIT_TOKENS, config.seed)
    with progress_bar("Recall: fit", sum(scored.n_tokens for _, scored, _ in chosen)) as progress:
        rows = record_rows(completer, corpus, [(scored, others) for _, scored, others in chosen], progress.advance)
    is_fitted = len(rows) >= MIN_ROWS
    gate = fit_gate(rows, config.seed) if is_fitted else Gate.load()
    result: JsonObject = {"fitted_tokens": len(rows) if is_fitted else 0, "fitted_documents": len(chosen)}
    result["bits_per_byte"] = _bits_per_byte(completer, corpus, measured, gate, config.seed)
    result["infilling"] = _infilling(completer, corpus, measured, gate, config)
    completer.use_recall(Recall())
    return gate, result


def split_repositories(completer: Completer, documents: Iterable[Document], seed: int) -> tuple[list[Half], list[Half]]:
    """Two halves of the documents of each repository, in an order that the seed decides, each with an index of the other."""
    by_repository: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_repository[f"{document.repository}@{document.revision}"].append(document)
    sides: tuple[list[Half], list[Half]] = ([], [])
    for _, found in sorted(by_repository.items()):
        found.sort(key=lambda document: hash_order(seed, document.name))
        first, second = tuple(found[0::2]), tuple(found[1::2])
        sides[0].append(Half(first, _index(completer, second)))
        sides[1].append(Half(second, _index(completer, first)))
    return sides


def _index(completer: Completer, documents: Sequence[Document]) -> OtherFiles | None:
    ids = [np.array(completer.tokenizer.encode_document(document.text), np.uint32) for document in documents]
    return OtherFiles((sort_documents(ids, completer.tokenizer.vocab_size),)) if ids else None


def document_windows(
    completer: Completer, halves: Sequence[Half], max_tokens: int, seed: int
) -> list[tuple[Document, Scored, OtherFiles | None]]:
    """The beginnings of documents, drawn in turn from all repositories until there are `max_tokens`."""
    drawn = [
        (k, hash_order(seed, doc.name), doc, half.others) for half in halves for k, doc in enumerate(half.documents)
    ]
    found: list[tuple[Document, Scored, OtherFiles | None]] = []
    n_tokens = 0
    for _, _, document, others in sorted(drawn, key=lambda each: each[:2]):
        if n_tokens >= max_tokens:
            break
        ids = completer.tokenizer.encode_document(document.text)
        scored = scored_windows(completer, ids, min(DOCUMENT_TOKENS, max_tokens - n_tokens))
        if scored.n_tokens:
            found.append((document, scored, others))
            n_tokens += scored.n_tokens
    return found


def _recall(setting: str, gate: Gate, corpus: Searched | None, others: OtherFiles | None) -> Recall:
    return Recall(
        gate,
        corpus=corpus if setting != "request" else None,
        workspace=others if setting == "workspace" else None,
    )


def _bits_per_byte(
    completer: Completer, corpus: Searched | None, halves: Sequence[Half], gate: Gate, seed: int
) -> JsonObject:
    """Bits per byte of the model alone and in each setting, with the interval of the difference."""
    chosen = document_windows(completer, halves, MEASURED_TOKENS, seed)
    if not chosen:
        return {"documents": 0}
    n_bytes = np.array([count_bytes(completer, scored) for _, scored, _ in chosen], float)
    names = [document.name for document, _, _ in chosen]
    bits: dict[str, np.ndarray] = {}
    with progress_bar("Recall: bits per byte", len(chosen) * (1 + len(SETTINGS))) as progress:
        for setting in ("alone", *SETTINGS):
            costs = []
            for _, scored, others in chosen:
                is_alone = setting == "alone"
                completer.use_recall(Recall() if is_alone else _recall(setting, gate, corpus, others))
                costs.append(score_document(completer, scored))
                progress.advance()
            bits[setting] = np.array(costs)
    return {
        "documents": len(chosen),
        "tokens": sum(scored.n_tokens for _, scored, _ in chosen),
        "alone": float(bits["alone"].sum() / n_bytes.sum()),
    } | {
        setting: {
            "value": float(bits[setting].sum() / n_bytes.sum()),
            "difference": ratio_interval(bits[setting] - bits["alone"], n_bytes, names),
        }
        for setting in SETTINGS
    }


def count_bytes(completer: Completer, scored: Scored) -> int:
    """Bytes of the scored tokens."""
    table = completer.tokenizer.token_bytes
    return sum(len(table[token]) for rest in scored.rests for token in rest)


def _infilling(
    completer: Completer, corpus: Searched | None, halves: Sequence[Half], gate: Gate, config: InfillingConfig
) -> JsonObject:
    """Exact matches of single lines by the model alone and in each setting, with the interval of the paired difference."""
    others_of = {document.name: half.others for half in halves for document in half.documents}
    documents = [document for half in halves for document in half.documents]
    whole = replace(config, context_characters=CONTEXT_CHARACTERS)
    problems = [each for each in sample_problems(documents, whole)[SINGLE_LINE] if is_scorable(completer, each)]
    if not problems:
        return {"problems": 0}
    problems.sort(key=lambda problem: problem.group)
    groups = [problem.group for problem in problems]
    exact = {}
    for setting in ("alone", *SETTINGS):
        values: list[float] = []
        title = f"Recall: single lines, {setting}"
        if setting == "workspace":
            for name in dict.fromkeys(groups):
                completer.use_recall(_recall(setting, gate, corpus, others_of[name]))
                own = [problem for problem in problems if problem.group == name]
                values += _exact(completer, own, config, title=None)
        else:
            completer.use_recall(Recall() if setting == "alone" else _recall(setting, gate, corpus, None))
            values = _exact(completer, problems, config, title=title)
        exact[setting] = np.array(values)
    return {"problems": len(problems), "alone": mean_interval(exact["alone"], groups)} | {
        setting: {
            "value": mean_interval(exact[setting], groups),
            "difference": mean_interval(exact[setting] - exact["alone"], groups),
        }
        for setting in SETTINGS
    }


def _exact(
    completer: Completer, problems: Sequence[HoleProblem], config: InfillingConfig, *, title: str | None
) -> list[float]:
    method: Method = "infilling" if completer.can_infill else "left-to-right"
    answers = hole_answers(completer, problems, greedy_settings(config, method), title=title)
    return [problem.text_scores(answer)["exact_match"] for problem, answer in zip(problems, answers, strict=True)]
