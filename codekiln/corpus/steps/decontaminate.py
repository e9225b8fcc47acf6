"""Decontamination: drops documents that hold a problem of a benchmark, its solution or its tests.

A text of a benchmark is found by its runs of ten words. A document is dropped if it has at least half of the runs of one
text, so that a common idiom in a solution drops nothing.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.arrays import sorted_unique
from codekiln.corpus.documents import document_name
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.steps.step import Draft, Drop, Step
from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import JsonObject, atomic_write, sha256_of

CONTAMINATED = "contaminated"
HITS = "contaminated.parquet"
HITS_SCHEMA = pa.schema(
    [("name", pa.string()), ("benchmark", pa.string()), ("text", pa.string()), ("fraction", pa.float64())]
)
MIN_WORDS = 20
RUN_WORDS = 10  # GPT-3 used runs of 13 words of prose (arXiv 2005.14165, appendix C); lines of code are shorter


@dataclass(frozen=True, kw_only=True)
class BenchmarkFile:
    """A file of problems: JSONL (also .gz), or a JSON list. Every string in a problem is a text of its own."""

    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Decontaminate(Step):
    """Drops documents that have at least `min_fraction` of the ten-word runs of one text of a benchmark.

    Texts of fewer than `MIN_WORDS` words are not looked for. `contaminated.parquet` lists every hit: `name` of the document,
    `benchmark` (the file), `text` (the number of the problem and the field), and `fraction` of its runs.
    """

    benchmarks: tuple[BenchmarkFile, ...]
    min_fraction: float = 0.5

    columns: ClassVar = {"benchmark": str, "benchmark_text": str, "benchmark_fraction": float}
    outputs: ClassVar = (HITS,)

    def check_document(self, draft: Draft) -> Drop | None:
        hit = _texts(self.benchmarks).find(draft.text, self.min_fraction)
        if hit is None:
            return None
        names = ("benchmark", "benchmark_text", "benchmark_fraction")
        draft.columns |= dict(zip(names, hit, strict=True))
        return Drop(contaminated_by(hit[0]), hit[2])

    def finish_corpus(self, scratch: Scratch) -> None:
        found: list[JsonObject] = []
        columns = ["repository", "revision", "path", "benchmark", "benchmark_text", "benchmark_fraction"]
        for unit in range(scratch.n_units):
            for batch in scratch.batches(unit, columns, dropped=True):
                hits = batch.filter(pc.is_valid(batch.column("benchmark")))
                found += [
                    {
                        "name": document_name(row["repository"], row["revision"], row["path"]),
                        "benchmark": row["benchmark"],
                        "text": row["benchmark_text"],
                        "fraction": row["benchmark_fraction"],
                    }
                    for row in hits.to_pylist()
                ]
        with atomic_write(scratch.outputs / HITS) as temp_path:
            pq.write_table(pa.Table.from_pylist(found, HITS_SCHEMA), temp_path)


def contaminated_by(file: str) -> str:
    """The reason to drop a document that holds a problem of a benchmark's file."""
    return f"{CONTAMINATED} by {file}"


def decontaminate(paths: list[Path]) -> Decontaminate:
    """The step for some files. Raises CodekilnError that names a file that is missing or not readable."""
    for path in paths:
        read_benchmark_texts(path)
    files = tuple(BenchmarkFile(path=path.absolute(), sha256=sha256_of(path)) for path in paths)
    return Decontaminate(benchmarks=files)


def read_benchmark_texts(path: Path) -> list[tuple[str, str]]:
    """Name and content of each text of a benchmark with at least `MIN_WORDS` words.

    A name is the number of the problem and the path of the field. Raises CodekilnError for a file without such a text.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file: name a JSONL file of a benchmark")
    texts = list(_read_texts(path))
    if not texts:
        raise InvalidFileError(f"{path} has no text of at least {MIN_WORDS} words: name a JSONL file of a benchmark")
    return texts


class _BenchmarkTexts:
    """The runs of all texts of some benchmarks, and which texts have each."""

    def __init__(self, benchmarks: tuple[BenchmarkFile, ...]) -> None:
        from codekiln.corpus.overlap import RunIndex  # noqa: PLC0415 - compiled functions take half a second to load

        named = [(each.path.name, name, text) for each in benchmarks for name, text in _read_texts(each.path)]
        self._names = [(file, name) for file, name, _ in named]
        self._index = RunIndex.build((text for _, _, text in named), RUN_WORDS)
        places = [sorted_unique(self._index.find(text)) for _, _, text in named]
        self._n_runs = [len(each) for each in places]
        self._texts_of: dict[int, list[int]] = {}
        for number, each in enumerate(places):
            for place in each.tolist():
                self._texts_of.setdefault(place, []).append(number)

    def find(self, text: str, min_fraction: float) -> tuple[str, str, float] | None:
        """File, text and share of the benchmark text that a document has most of; None if it is less than `min_fraction`."""
        places = self._index.find(text)
        counts = Counter(
            number for place in sorted_unique(places[places >= 0]).tolist() for number in self._texts_of[place]
        )
        shares = {number: count / self._n_runs[number] for number, count in counts.items()}
        best = max(shares, key=lambda number: (shares[number], -number)) if shares else None
        return None if best is None or shares[best] < min_fraction else (*self._names[best], shares[best])


@lru_cache(maxsize=1)
def _texts(benchmarks: tuple[BenchmarkFile, ...]) -> _BenchmarkTexts:
    return _BenchmarkTexts(benchmarks)


def _read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and content of each text of a benchmark with at least `MIN_WORDS` words."""
    from codekiln.corpus.shingles import text_runs  # noqa: PLC0415 - compiled functions take half a second to load

    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        if text.lstrip().startswith("["):
            problems = json.loads(text)
        else:  # other characters that end lines, such as U+2028, may be in strings
            problems = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        message = f"{path} is not a readable JSONL file ({str(error)[:200]}): name a file of a benchmark"
        raise InvalidFileError(message) from None
    for number, problem in enumerate(problems):
        for name, value in _strings(problem, ""):
            if len(text_runs(value, 1)) >= MIN_WORDS:
                yield f"{number}{name}", value


def _strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """All strings in a value of JSON, with the path to each."""
    if isinstance(value, str):
        yield name, value.encode(errors="replace").decode()  # JSON may hold lone surrogates
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{name}.{number}")
