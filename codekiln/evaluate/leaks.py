"""What other texts share with the training documents, word for word: held-out documents and problems of benchmarks.

The index compares tokens, so white space and punctuation count. `contamination.py` and the step `Decontaminate` compare runs of
words, and also find copies that were formatted again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codekiln.corpus.documents import read_names
from codekiln.corpus.steps.decontaminate import read_benchmark_texts
from codekiln.index.names import DocumentName
from codekiln.index.provenance import count_in_matches
from codekiln.index.search import Index
from codekiln.index.text_search import TextSearch
from codekiln.progress import progress_bar
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.prepare import open_token_shards


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a text shares with the training documents.

    `n_shared` of its `n_tokens` tokens are in matches of at least `MEMORIZED_TOKENS` tokens. `longest` is the length of the
    longest match, and `source` the first document that has it.
    """

    n_tokens: int
    n_shared: int
    longest: int
    source: DocumentName | None


@dataclass(frozen=True)
class RepositoryLeak:
    """A held-out repository. `document` has its longest match."""

    repository: str
    n_documents: int
    document: str
    shared: Shared


@dataclass(frozen=True)
class TextLeak:
    """A text of a benchmark. `name` is the number of its problem and the field; `n_whole` is how often all of it occurs."""

    benchmark: str
    name: str
    n_whole: int
    shared: Shared

    @property
    def is_leaked(self) -> bool:
        """Whether the whole text or a match of at least `MEMORIZED_TOKENS` tokens is in the training documents."""
        return self.n_whole > 0 or self.shared.n_shared > 0


def find_split_leaks(index: Index, run: Path) -> list[RepositoryLeak]:
    """The held-out repositories of a run, those with the most shared tokens first."""
    found: dict[str, list[tuple[str, Shared]]] = {}
    for repository, path, ids in _held_out_documents(run):
        found.setdefault(repository, []).append((path, _shared(index, ids)))
    leaks = []
    for repository, documents in found.items():
        path, longest = max(documents, key=lambda each: each[1].longest)
        total = Shared(
            n_tokens=sum(shared.n_tokens for _, shared in documents),
            n_shared=sum(shared.n_shared for _, shared in documents),
            longest=longest.longest,
            source=longest.source,
        )
        leaks.append(RepositoryLeak(repository, len(documents), path, total))
    return sorted(leaks, key=lambda leak: (-leak.shared.n_shared, leak.repository))


def find_benchmark_leaks(index: Index, tokenizer: Tokenizer, paths: Iterable[Path]) -> list[TextLeak]:
    """All texts of benchmark files, in order. Raises CodekilnError that names a file that cannot be read."""
    search = TextSearch(index, tokenizer.token_bytes, tokenizer.document_start)
    texts = [(path.name, *named) for path in paths for named in read_benchmark_texts(path)]
    found: dict[str, tuple[int, Shared]] = {}  # many problems share a text
    with progress_bar("Benchmarks", len(texts)) as progress:
        for _, _, text in texts:
            if text not in found:
                found[text] = search.find(text, 0).count, _shared(index, tokenizer.encode(text))
            progress.advance()
    return [TextLeak(benchmark, name, *found[text]) for benchmark, name, text in texts]


def _held_out_documents(run: Path) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Repository, path and ids of each document of the validation split."""
    shards = open_token_shards(run / "tokens", "validation")
    lengths = shards.lengths().tolist() if shards.n_documents else []
    rows = (row for batch in read_names(run / "corpus", "validation") for row in batch.to_pylist())
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        yield row["repository"], row["path"], shards.slice(number, 0, length).tolist()


def _shared(index: Index, ids: Sequence[int]) -> Shared:
    lengths = index.longest_matches(ids, len(ids)).lengths.tolist()
    longest = max(lengths, default=0)
    source = None
    if longest:
        end = lengths.index(longest) + 1
        place = index.places(index.find(ids[end - longest : end]), 1)[0]
        source = index.name(place.document)
    return Shared(n_tokens=len(ids), n_shared=count_in_matches(lengths), longest=longest, source=source)
