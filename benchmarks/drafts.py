"""Prompt lookup on real code: tokens per step and processor time, with and without drafts.

python benchmarks/drafts.py RUN [N]

Greedy completions of 64 tokens after the first half of N held-out documents of a run, one at a time, on one thread.
"""

import sys
import time
from pathlib import Path

import torch

from codekiln.corpus.documents import read_documents
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.model.huggingface import load_model
from codekiln.tokenizer.bpe import Tokenizer

NEW_TOKENS = 64


def main() -> None:
    run, n = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    torch.set_num_threads(1)
    texts = []
    for document in read_documents(run / "corpus", "validation"):
        lines = document.text.splitlines(keepends=True)
        if len(lines) >= 40:
            texts.append("".join(lines[: len(lines) // 2]))
        if len(texts) == n:
            break
    print(
        "| drafts | tokens | steps | tokens per step | accepted drafts | CPU ms per token |\n|---|---|---|---|---|---|"
    )
    written = {}
    for has_drafts in (False, True):
        tokenizer = Tokenizer.load(run / "tokenizer.json")
        completer = Completer.of_model(load_model(run / "model"), tokenizer, has_drafts=has_drafts)
        params = CompletionParams(sampling=GREEDY, max_new_tokens=completer.limit_new_tokens(NEW_TOKENS))
        completer.complete([InfillRequest("x = 1\n")], params)  # compiles the kernels
        stats, found = completer.engine.stats, []
        n_tokens, n_steps, seconds = stats.generated_tokens, stats.steps, 0.0
        for text in texts:
            completer.complete([InfillRequest(text)], CompletionParams(sampling=GREEDY, max_new_tokens=1))  # reads it
            start = time.process_time()
            found.append(completer.complete([InfillRequest(text)], params)[0].tokens)
            seconds += time.process_time() - start
        written[has_drafts] = found
        n_tokens, n_steps = stats.generated_tokens - n_tokens - len(texts), stats.steps - n_steps - len(texts)
        share = f"{stats.accepted_tokens / stats.drafted_tokens:.0%}" if stats.drafted_tokens else "-"
        print(
            f"| {'yes' if has_drafts else 'no'} | {n_tokens} | {n_steps} | {n_tokens / n_steps:.2f} | {share} "
            f"| {1000 * seconds / n_tokens:.2f} |"
        )
    n_equal = sum(first == second for first, second in zip(written[False], written[True], strict=True))
    print(f"{n_equal} of {len(texts)} completions are equal")


if __name__ == "__main__":
    main()
