"""Do other files before the prompt help a model of Codekiln, which was trained on one file at a time?

    .venv/bin/python -m benchmarks.repository_context RUN

Bits per byte of held-out lines, with the prefix and the suffix in view, and before them 12 lines of another file of the same
repository: those that share the most words with the lines around the hole, or lines drawn at random.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from codekiln.corpus.documents import Document, read_documents
from codekiln.evaluate.metrics import ratio_interval
from codekiln.generate.complete import Completer
from codekiln.tokenizer.infill import require_spm

N_LINES, STRIDE = 12, 6  # of a window of another file
MAX_PREFIX, MAX_SUFFIX, MAX_MIDDLE, MAX_CONTEXT = 60, 30, 40, 110  # tokens, for a context of 256
HOLES_PER_FILE, MAX_FILES = 5, 40  # of a repository
_WORD = re.compile(r"\w{3,}")


def windows(document: Document) -> list[str]:
    """Overlapping runs of lines of a file."""
    lines = document.text.splitlines(keepends=True)
    return ["".join(lines[at : at + N_LINES]) for at in range(0, len(lines), STRIDE)]


def most_similar(around: str, found: list[str]) -> str:
    """The window with the greatest Jaccard similarity of words to the text around a hole."""
    words = set(_WORD.findall(around))

    def similarity(window: str) -> float:
        others = set(_WORD.findall(window))
        return len(words & others) / max(1, len(words | others))

    return max(found, key=similarity)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    completer, rng = Completer.load(run), np.random.default_rng(0)
    tokenizer = completer.tokenizer
    spm, eos = require_spm(tokenizer.infill_format), tokenizer.eos_id
    repositories: dict[str, list[Document]] = {}
    for document in read_documents(run / "corpus", "validation"):
        repositories.setdefault(document.repository, []).append(document)
    rows: dict[str, list[tuple[list[int], list[int]]]] = {}
    for documents in repositories.values():
        for document in documents[:MAX_FILES]:
            others = [window for other in documents if other is not document for window in windows(other)]
            lines = document.text.splitlines(keepends=True)
            if not others or len(lines) < N_LINES:
                continue
            for at in rng.integers(6, len(lines) - 2, HOLES_PER_FILE).tolist():
                middle = tokenizer.encode(lines[at].rstrip("\n"))[:MAX_MIDDLE]
                if not lines[at].strip():
                    continue
                prefix = tokenizer.encode("".join(lines[:at]))[-MAX_PREFIX:]
                suffix = tokenizer.encode("\n" + "".join(lines[at + 1 :]))[:MAX_SUFFIX]
                around = "".join(lines[max(0, at - 8) : at] + lines[at + 1 : at + 5])
                rows.setdefault("none", []).append((spm.prompt(prefix, suffix), middle))
                drawn = others[int(rng.integers(len(others)))]
                for name, window in (("similar", most_similar(around, others)), ("random", drawn)):
                    other = tokenizer.encode(window)[:MAX_CONTEXT]
                    apart = [eos, *other, eos, *spm.prompt(prefix, suffix)]
                    joined = spm.prompt([*other, *tokenizer.encode("\n"), *prefix], suffix)
                    rows.setdefault(f"{name}, end of text between", []).append((apart, middle))
                    rows.setdefault(f"{name}, in the prefix", []).append((joined, middle))
    n_bytes = np.array([len(tokenizer.decode_bytes(middle)) for _, middle in rows["none"]], float)
    found = {name: np.array(completer.score(prompts)) for name, prompts in rows.items()}
    print(f"{len(n_bytes)} lines")
    for name, bits in found.items():
        change = ratio_interval(bits - found["none"], n_bytes)
        interval = f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        print(f"| {name} | {bits.sum() / n_bytes.sum():.3f} | {interval} |")


if __name__ == "__main__":
    main()
