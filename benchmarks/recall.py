"""What recall gives and costs.

    python benchmarks/recall.py quality RUN [--seeds 3] [--gate FILE]
    python benchmarks/recall.py cost MODEL CODE

`quality`: bits per byte and exact single lines on the held-out documents of a run, with the training corpus and with other
files of the same repository, against the model alone and two peers; one line for each seed, and medians. RUN has a corpus, a
tokenizer, a model and an index. --gate writes the first gate.

Peers have the same texts. The index alone: the gate gives the model no weight where anything is found. An n-gram cache (Tu et
al. 2014): the counts that followed the last 1 to 8 tokens, as many as occur, with a fixed weight for each number, which EM fits
on the documents of the gate.

`cost`: time per generated token of a model (int8 weights on CPUs) with a folder of code as its workspace: without recall, with
recall, and with drafts. How many tokens of true text a step gives is counted on the same folder, each file against the others.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from codekiln.corpus.documents import read_documents
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.recall import (
    FIT_TOKENS,
    MEASURED_TOKENS,
    SETTINGS,
    Half,
    OtherFiles,
    count_bytes,
    document_windows,
    fit_and_measure,
    split_repositories,
)
from codekiln.generate import recall as recall_module
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.engine import FIRST_DRAFT, Engine
from codekiln.generate.fit_recall import record_rows
from codekiln.generate.recall import Gate, Recall, RequestText, SampleText, TokenKinds, next_draft_limit
from codekiln.generate.recall_kernels import N_FEATURES, N_PREDICTIONS
from codekiln.generate.sampling import GREEDY
from codekiln.generate.windows import score_document
from codekiln.index import continuations
from codekiln.index.build import sort_documents
from codekiln.index.continuations import MAX_LENGTH
from codekiln.index.search import INDEX_FOLDER, Index

Ids = list[int]
CACHE_TOKENS = 8


def only_predictions(gate: Gate) -> Gate:
    """A gate that gives the model no weight where anything was found."""
    bias = gate.output_bias.copy()
    bias[0] -= 100
    return replace(gate, output_bias=bias)


def limit_matches(n_tokens: int) -> None:
    """Sets the length up to which matches are searched."""
    for module in (recall_module, continuations):
        vars(module)["MAX_LENGTH"] = n_tokens


def ngram_cache(
    completer: Completer, index: Index, fitted: Sequence[Half], measured: Sequence[Half], seed: int
) -> float:
    """Bits per byte of the measured documents with an n-gram cache."""
    limit_matches(CACHE_TOKENS)
    sides = []
    for halves, n in ((fitted, FIT_TOKENS), (measured, MEASURED_TOKENS)):
        chosen = document_windows(completer, halves, n, seed)
        rows = record_rows(completer, index, [(scored, others) for _, scored, others in chosen], lambda _: None)
        sides.append((rows, sum(count_bytes(completer, scored) for _, scored, _ in chosen)))
    limit_matches(MAX_LENGTH)
    tables = []
    for rows, _ in sides:
        lengths = np.stack([row.inputs[: N_PREDICTIONS * N_FEATURES : N_FEATURES] for row in rows])  # log(1 + length)
        longest = lengths[:, ::2].argmax(1)  # of the corpus, the repository and the document itself
        order = np.rint(np.expm1(lengths[:, ::2].max(1))).astype(int)
        predicted = np.stack([row.predicted for row in rows])[:, ::2][np.arange(len(rows)), longest]
        tables.append((order, predicted, np.exp([row.logprob for row in rows])))
    order, predicted, model = tables[0]
    weights = np.full(CACHE_TOKENS + 1, 0.5)
    weights[0] = 0
    for _ in range(50):
        share = weights[order] * predicted
        share /= share + (1 - weights[order]) * model
        weights = np.array([share[order == n].mean() if (order == n).any() else 0.0 for n in range(CACHE_TOKENS + 1)])
    order, predicted, model = tables[1]
    mixed = weights[order] * predicted + (1 - weights[order]) * model
    return float(-np.log2(mixed).sum() / sides[1][1])


def quality(run: Path, index_folder: Path | None, seeds: int, n_problems: int, gate_path: Path | None) -> None:
    """Prints the results of each seed, and medians."""
    index = Index(index_folder or run / INDEX_FOLDER)
    completer = Completer.load(run)
    documents = list(read_documents(run / "corpus", "validation"))
    results = []
    for seed in range(seeds):
        config = InfillingConfig(n_problems=n_problems, seed=seed)
        gate, result = fit_and_measure(completer, index, documents, config)
        if seed == 0 and gate_path is not None:
            gate.save(gate_path)
        fitted, measured = split_repositories(completer, documents, seed)
        n_bytes, total_bits = 0, 0.0
        for _, scored, others in document_windows(completer, measured, MEASURED_TOKENS, seed):
            completer.use_recall(Recall(only_predictions(gate), corpus=index, workspace=others))
            total_bits += score_document(completer, scored)
            n_bytes += count_bytes(completer, scored)
        completer.use_recall(Recall())
        result["index_alone_bits_per_byte"] = total_bits / n_bytes
        result["ngram_cache_bits_per_byte"] = ngram_cache(completer, index, fitted, measured, seed)
        results.append(result)
        print(json.dumps({"seed": seed} | result))
    print(f"{'':10} {'bits per byte':>30} {'exact single lines':>30}")
    for setting in ("alone", *SETTINGS):
        bits = [r["bits_per_byte"][setting] for r in results]
        exact = [r["infilling"][setting] for r in results]
        values = [b if setting == "alone" else b["value"] for b in bits]
        shares = [100 * (e if setting == "alone" else e["value"])["value"] for e in exact]
        print(
            f"{setting:10} {statistics.median(values):10.3f} ({', '.join(f'{v:.3f}' for v in values)}) "
            f"{statistics.median(shares):10.1f}% ({', '.join(f'{v:.1f}' for v in shares)})"
        )
    for name in ("index alone", "ngram cache"):
        bits = [result[f"{name.replace(' ', '_')}_bits_per_byte"] for result in results]
        print(f"{name}: {statistics.median(bits):.3f} bits per byte ({', '.join(f'{v:.3f}' for v in bits)})")


def steps_of_true_text(ids: Ids, start: int, others: OtherFiles) -> tuple[int, int]:
    """Tokens of ids[start:], and the steps that an engine with drafts would need if it generated them."""
    text, recall = (
        SampleText(RequestText(tuple(ids[:start])), TokenKinds.of(max(ids) + 1)),
        Recall(workspace=others),
    )
    at, n_steps, limit = start, 0, FIRST_DRAFT
    while at < len(ids):
        draft = text.draft(recall, ids[start:at], limit)
        n_right = next((k for k, token in enumerate(draft) if at + k >= len(ids) or ids[at + k] != token), len(draft))
        if draft:
            limit = next_draft_limit(limit, len(draft), n_right)
        at += n_right + 1
        n_steps += 1
    return len(ids) - start, n_steps


def decode(completer: Completer, requests: Sequence[tuple[InfillRequest, Recall]], *, has_drafts: bool) -> float:
    """Milliseconds per token, greedy, one request at a time."""
    engine = completer.engine
    assert isinstance(engine, Engine)
    engine._has_drafts = has_drafts
    n_tokens, seconds = 0, 0.0
    for request, recall in requests:
        completer.use_recall(recall)
        completer.complete([request], CompletionParams(sampling=GREEDY, max_new_tokens=1))  # reads the prompt
        begun = time.perf_counter()
        n_tokens += completer.complete([request], CompletionParams(sampling=GREEDY, max_new_tokens=48))[
            0
        ].completion_tokens
        seconds += time.perf_counter() - begun
    engine._has_drafts = True
    return 1e3 * seconds / n_tokens


def cost(model: Path, code: Path, rounds: int) -> None:
    """Prints times and steps."""
    completer = Completer.load(model, "int8")
    texts = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))][:200]
    encoded = [completer.tokenizer.encode(text) for text in texts]
    vocab_size = completer.tokenizer.vocab_size
    requests, counts = [], []
    for k in [k for k, ids in enumerate(encoded) if len(ids) > 600][:12]:
        others = OtherFiles(
            (sort_documents([np.array(ids, np.uint32) for i, ids in enumerate(encoded) if i != k], vocab_size),)
        )
        half = texts[k].index("\n", len(texts[k]) // 2) + 1
        requests.append((InfillRequest(texts[k][:half]), Recall(Gate.load(), workspace=others)))
        counts.append(steps_of_true_text(encoded[k][:2000], len(encoded[k][:2000]) // 2, others))
    tokens, steps = (sum(column) for column in zip(*counts, strict=True))
    print(f"{sum(map(len, encoded)):,} tokens of code; {tokens / steps:.2f} tokens of true text per step with drafts")
    plain = [(request, Recall()) for request, _ in requests]
    kinds = {
        "without recall": (plain, False),
        "with recall": (requests, False),
        "without recall, drafts": (plain, True),
        "with recall, drafts": (requests, True),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for k in range(1 + rounds):
        for name, (each, has_drafts) in kinds.items():
            taken = decode(completer, each, has_drafts=has_drafts)
            if k:  # the first round compiles
                times[name].append(taken)
    base = statistics.median(times["without recall"])
    for name, found in times.items():
        print(
            f"{name:24} {statistics.median(found):8.3f} ms per token, {statistics.median(found) / base:.2f} of the first"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_quality = commands.add_parser("quality")
    of_quality.add_argument("run", type=Path)
    of_quality.add_argument("--index", type=Path, help="the index, if it is not in the run")
    of_quality.add_argument("--seeds", type=int, default=3)
    of_quality.add_argument("--problems", type=int, default=400)
    of_quality.add_argument("--gate", type=Path)
    of_cost = commands.add_parser("cost")
    of_cost.add_argument("model", type=Path)
    of_cost.add_argument("code", type=Path)
    of_cost.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.command == "quality":
        quality(arguments.run, arguments.index, arguments.seeds, arguments.problems, arguments.gate)
    else:
        cost(arguments.model, arguments.code, arguments.rounds)


if __name__ == "__main__":
    main()
