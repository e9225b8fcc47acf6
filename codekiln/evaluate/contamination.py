"""Which problems of a benchmark share text with training documents, so that scores can be given for the others alone.

A text of a problem is searched by its runs of words. It is not enough to share an idiom: a run has 50 words, or for shorter
texts 25 or 12. Texts of fewer words are not checked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codekiln.arrays import sorted_unique
from codekiln.corpus.documents import Document
from codekiln.corpus.overlap import RUN_WORDS, RunIndex
from codekiln.corpus.shingles import text_runs
from codekiln.evaluate.problems.problem import Problem

SHORTER_RUNS = (25, 12)
MAX_NAMES = 5  # of documents that are listed for a problem


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """`documents` has the names of the first documents that share a run with a problem, by task_id.

    `clean` are the ids of problems that share none, in order. `unchecked` have too few words to be either.
    """

    documents: dict[str, tuple[str, ...]]
    clean: tuple[str, ...]
    unchecked: tuple[str, ...]


def find_contamination(
    problems: Sequence[Problem], documents: Iterable[Document], *, run_words: int = RUN_WORDS
) -> Contamination:
    """Compares the prompt, reference and suffix of each problem, as one text, with all documents.

    Runs have `run_words` words; those of shorter texts the most of `SHORTER_RUNS` that they have.
    """
    texts = {problem.task_id: problem.prompt + problem.reference + (problem.suffix or "") for problem in problems}
    lengths = (run_words, *(length for length in SHORTER_RUNS if length < run_words))
    tables: dict[int, dict[str, None]] = {length: {} for length in lengths}
    length_of: dict[str, int | None] = {}
    for text in dict.fromkeys(texts.values()):
        n_words = len(text_runs(text, 1))
        length_of[text] = next((length for length in lengths if length <= n_words), None)
        if (length := length_of[text]) is not None:
            tables[length][text] = None
    searches = [_Search(list(table), length) for length, table in tables.items() if table]
    names: dict[str, list[str]] = {}
    for document in documents:
        for search in searches:
            for text in search.find(document.text):
                found = names.setdefault(text, [])
                if len(found) < MAX_NAMES:
                    found.append(document.name)
    return Contamination(
        documents={task_id: tuple(names[text]) for task_id, text in texts.items() if text in names},
        clean=tuple(task_id for task_id, text in texts.items() if text not in names and length_of[text] is not None),
        unchecked=tuple(task_id for task_id, text in texts.items() if length_of[text] is None),
    )


class _Search:
    """The runs of some texts, and which texts have each."""

    def __init__(self, texts: list[str], n_words: int) -> None:
        self._texts = texts
        self._index = RunIndex.build(texts, n_words)
        self._texts_of: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            for place in sorted_unique(self._index.find(text)).tolist():
                self._texts_of.setdefault(place, []).append(number)

    def find(self, text: str) -> list[str]:
        """The texts that share a run with a text."""
        places = self._index.find(text)
        shared = sorted_unique(places[places >= 0]).tolist()
        return [self._texts[number] for number in sorted({n for place in shared for n in self._texts_of[place]})]
