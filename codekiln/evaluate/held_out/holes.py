"""Holes in held-out documents of any language: a line, lines, or a span."""

import hashlib
import math
import re
from collections.abc import Iterable

import numpy as np

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.problems.holes import HoleProblem, HoleUnit
from codekiln.tokenizer.infill import boundary_before, expand_to_words

SINGLE_LINE, MULTI_LINE, SPAN = "single-line", "multi-line", "span"
MAX_PROBLEMS_PER_DOCUMENT = 8  # of each kind
MAX_LINE_CHARACTERS = 100  # of a line that is a problem
MAX_LINES = 10  # of a hole of lines
_LINE = re.compile(r"[^\r\n]+")
_WHOLE_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)")


def sample_problems(documents: Iterable[Document], config: InfillingConfig) -> dict[str, list[HoleProblem]]:
    """Single lines and spans, in an order that the seed decides."""
    drawn: dict[str, list[tuple[str, HoleProblem]]] = {SINGLE_LINE: [], SPAN: []}
    for document in documents:
        rng = document_rng(config.seed, document.name)
        for number in range(MAX_PROBLEMS_PER_DOCUMENT):
            for kind, hole in ((SINGLE_LINE, _line(document.text, rng)), (SPAN, _span(document.text, config, rng))):
                if hole is not None:
                    key = hashlib.sha256(f"{config.seed}:{kind}:{number}:{document.name}".encode()).hexdigest()
                    unit: HoleUnit = "line" if kind == SINGLE_LINE else "span"
                    drawn[kind].append((key, _problem(f"{kind}/{number}", document, hole, unit, config)))
    return {
        kind: [problem for _, problem in sorted(found, key=lambda e: e[0])][: config.n_problems]
        for kind, found in drawn.items()
    }


def multi_line_problems(document: Document, config: InfillingConfig) -> list[HoleProblem]:
    """Runs of 2 to `MAX_LINES` whole lines. The first and the last are not blank, and the first is not the document's."""
    rng = document_rng(config.seed, f"{MULTI_LINE}:{document.name}")
    lines = [match.span() for match in _WHOLE_LINE.finditer(document.text)]
    starts = [at for at, (start, stop) in enumerate(lines) if at and document.text[start:stop].strip()]
    found = []
    for number in range(MAX_PROBLEMS_PER_DOCUMENT):
        length = int(rng.integers(2, MAX_LINES + 1))
        first = starts[int(rng.integers(len(starts)))] if starts else 0
        last = max((at for at in starts if first < at < first + length), default=None)
        if last is not None:
            hole = lines[first][0], lines[last][1]
            found.append(_problem(f"{MULTI_LINE}/{number}", document, hole, "lines", config))
    return found


def context_of(text: str, start: int, stop: int, context_characters: int) -> tuple[str, str]:
    """The text before and after a hole, together at most so many characters, two thirds of them before it, cut at line ends."""
    before = max(0, start - context_characters * 2 // 3)
    after = min(len(text), stop + context_characters // 3)
    if before:
        before = text.find("\n", before, start) + 1 or before
    after = text.rfind("\n", stop, after) + 1 or after
    return text[before:start], text[stop:after]


def document_rng(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the name only."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]))


def _line(text: str, rng: np.random.Generator) -> tuple[int, int] | None:
    """A line that is not blank and not the first, with its indentation and without its line end."""
    lines = (line for line in _LINE.finditer(text) if line.start() > 0)
    candidates = [line.span() for line in lines if line.group().strip() and len(line.group()) <= MAX_LINE_CHARACTERS]
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


def _span(text: str, config: InfillingConfig, rng: np.random.Generator) -> tuple[int, int] | None:
    """A run of whole words, not only white space. Its length before it is extended to words is log-uniform."""
    data = text.encode()
    if len(data) < 4 * config.max_span_characters:
        return None
    length = int(np.exp(rng.uniform(math.log(1), math.log(config.max_span_characters + 1))))
    start = int(rng.integers(len(data) - length))
    bounds = (boundary_before(data, at) for at in expand_to_words(data, start, start + length))
    start, stop = (len(data[:at].decode()) for at in bounds)
    return (start, stop) if text[start:stop].strip() else None


def _problem(
    name: str, document: Document, hole: tuple[int, int], unit: HoleUnit, config: InfillingConfig
) -> HoleProblem:
    prompt, suffix = context_of(document.text, *hole, config.context_characters)
    return HoleProblem(
        task_id=f"{document.name}/{name}",
        group=document.name,
        prompt=prompt,
        suffix=suffix,
        reference=document.text[hole[0] : hole[1]],
        unit=unit,
        max_new_tokens=config.max_new_tokens,
    )
