"""What recall gives on held-out code: bits per byte, exact single lines, time per token, and the speed of drafts.

    python benchmarks/recall.py RUN [--seeds 3] [--gate FILE]

RUN has a corpus with a held-out split, a tokenizer, a model and an index. Peers: the index alone (the model has no weight), the
model alone, and an n-gram cache (the tokens that followed the same three tokens in the same text, as prompt lookup uses).
--gate writes the gate of the first seed.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from codekiln.corpus.documents import read_documents
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.recall import fit_and_measure, split_repositories
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.engine import Engine
from codekiln.generate.recall import Gate, Recall
from codekiln.generate.sampling import GREEDY
from codekiln.index.search import INDEX_FOLDER, Index


def only_predictions(gate: Gate) -> Gate:
    """A gate that gives the model no weight where anything was found."""
    bias = gate.output_bias.copy()
    bias[0] -= 100
    return replace(gate, output_bias=bias)


def decode(
    completer: Completer, requests: list[tuple[InfillRequest, Recall]], *, has_drafts: bool
) -> tuple[float, float]:
    """Seconds and steps per token, greedy, one request at a time."""
    engine = completer.engine
    assert isinstance(engine, Engine)
    engine._has_drafts = has_drafts
    n_tokens, seconds, steps = 0, 0.0, engine.stats.steps
    for request, recall in requests:
        completer.use_recall(recall)
        begun = time.perf_counter()
        done = completer.complete([request], CompletionParams(sampling=GREEDY, max_new_tokens=64))[0]
        seconds += time.perf_counter() - begun
        n_tokens += done.completion_tokens
    engine._has_drafts = True
    return seconds / n_tokens, (engine.stats.steps - steps) / n_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--index", type=Path, help="the index, if it is not in the run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--gate", type=Path)
    arguments = parser.parse_args()
    run: Path = arguments.run
    index = Index(arguments.index or run / INDEX_FOLDER)
    completer = Completer.load(run)
    documents = list(read_documents(run / "corpus", "validation"))
    results = []
    for seed in range(arguments.seeds):
        config = InfillingConfig(n_problems=arguments.problems, seed=seed)
        gate, result = fit_and_measure(completer, index, documents, config)
        if seed == 0 and arguments.gate is not None:
            gate.save(arguments.gate)
        results.append(result)
        print(json.dumps({"seed": seed} | result))
    for setting in ("alone", "request", "corpus", "workspace"):
        bits = [r["bits_per_byte"][setting] for r in results]
        exact = [r["infilling"][setting] for r in results]
        values = [b if setting == "alone" else b["value"] for b in bits]
        shares = [100 * (e if setting == "alone" else e["value"])["value"] for e in exact]
        print(
            f"{setting:10} bits per byte {statistics.median(values):.3f} ({', '.join(f'{v:.3f}' for v in values)}), "
            f"exact {statistics.median(shares):.1f}% ({', '.join(f'{v:.1f}' for v in shares)})"
        )
    _, measured = split_repositories(completer, documents, 0)
    rng = np.random.default_rng(0)
    requests = []
    for half in measured:
        for document in half.documents[:8]:
            text = document.text
            at = text.find("\n", int(rng.integers(len(text) // 2, max(len(text) // 2 + 1, len(text) - 300)))) + 1
            requests.append((InfillRequest(text[:at]), Recall(gate, corpus=index, workspace=half.others)))
    plain = [(request, Recall()) for request, _ in requests]
    for _ in range(2):  # the first round compiles and warms up
        rows = {
            "no recall, no drafts": decode(completer, plain, has_drafts=False),
            "n-gram drafts of the text itself": decode(completer, plain, has_drafts=True),
            "recall, no drafts": decode(completer, requests, has_drafts=False),
            "recall with drafts": decode(completer, requests, has_drafts=True),
        }
    for name, (seconds, steps) in rows.items():
        print(f"{name:34} {1e3 * seconds:.2f} ms and {steps:.2f} steps per token")
    print(f"gate that trusts predictions only: {Gate.load().output_bias[0]:.2f}")


if __name__ == "__main__":
    main()
