"""Problems of the held-out documents of a run or of any folder of code, by the names that an evaluation takes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import MANIFEST, Document, read_documents, read_manifest
from codekiln.corpus.reading import read_document, with_utf8_names
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.errors import ConfigError, NoProblemsError
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.contamination import find_contamination
from codekiln.evaluate.evaluation import ProblemSet
from codekiln.evaluate.held_out.sample import HeldOutTask, sample_held_out
from codekiln.evaluate.held_out.verify import verified
from codekiln.evaluate.problems.doctests import DoctestHoleProblem
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.problems.text import texts
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.evaluate.settings import BenchmarkClass, Settings
from codekiln.files import sha256_of

BITS_PER_BYTE = "bits-per-byte"
TASKS: dict[str, HeldOutTask] = {f"held-out-{task}": task for task in get_args(HeldOutTask)}
_CLASSES: dict[HeldOutTask, BenchmarkClass] = {
    "single-line": "holes",
    "multi-line": "holes",
    "span": "holes",
    "docstrings": "docstrings",
    "return-types": "return-types",
    "variable-names": "names",
    "cloze": "cloze",
    "cloze-calls": "cloze",
    "doctests": "holes",
}
MAX_NEW_TOKENS = 64  # of a line or a hole
N_PROBLEMS = 250


def held_out_names() -> list[str]:
    """The names that `held_out_problems` knows."""
    return [*TASKS, BITS_PER_BYTE]


def held_out_class(name: str) -> BenchmarkClass:
    """The class of a benchmark that `held_out_problems` knows."""
    return "texts" if name == BITS_PER_BYTE else _CLASSES[TASKS[name]]


def held_out_problems(
    name: str, place: Path, settings: Settings, limit: int | None, sandbox: Callable[[], Sandbox]
) -> ProblemSet:
    """Problems of the validation split of a run, or of all files of a folder of code. `sandbox` runs references of doctests.

    Files are read as for a corpus. Those that cannot be read are counted in `source`, by reason.

    Raises NoProblemsError if there is none.
    """
    documents, skipped = _documents(place)
    if name == BITS_PER_BYTE:
        problems: Sequence[Problem] = texts(documents)[:limit]
    else:
        config = InfillingConfig(n_problems=limit or N_PROBLEMS, max_new_tokens=MAX_NEW_TOKENS, seed=settings.seed)
        problems = sample_held_out(TASKS[name], documents, config, file_end=settings.file_end)
        if runnable := [each for each in problems if isinstance(each, DoctestHoleProblem)]:
            problems = verified(runnable, sandbox())
    if not problems:
        raise NoProblemsError(f"{name}: no file of {place} has such a problem: give another folder with --code")
    manifest = place / "corpus" / MANIFEST
    where = {"corpus": sha256_of(manifest)} if manifest.is_file() else {"folder": place.name}
    return ProblemSet(name, problems, where | {"documents": len(documents), "skipped": skipped})


def with_clean_problems(sets: Sequence[ProblemSet], run: Path) -> list[ProblemSet]:
    """The same sets, which also know the problems that share no text with the training documents of a run."""
    named: list[Any] = [
        replace(cast(Any, problem), task_id=f"{found.name}:{problem.task_id}")
        for found in sets
        for problem in found.problems
    ]
    clean = set(find_contamination(named, read_documents(run / "corpus", "train")).clean)
    return [
        replace(
            found, clean=frozenset(each.task_id for each in found.problems if f"{found.name}:{each.task_id}" in clean)
        )
        for found in sets
    ]


def _documents(place: Path) -> tuple[list[Document], dict[str, int]]:
    """The documents of a run or of a folder, and the number of files of the folder that were not read, by reason."""
    if (place / "corpus" / MANIFEST).is_file():
        if not read_manifest(place / "corpus")["splits"]["validation"]["documents"]:
            raise ConfigError(f"{place} has no held-out documents: give a folder of code with --code")
        return list(read_documents(place / "corpus", "validation")), {}
    source = LocalRepositories(folder=place)
    documents, skipped = list[Document](), Counter[str]()
    for file in source.files():
        draft, _, drop = read_document(with_utf8_names(file), CorpusConfig(sources=(source,)), ())
        if drop is not None:
            skipped[drop.reason] += 1
        elif draft is not None:
            documents.append(
                Document(
                    text=draft.text,
                    source=file.source,
                    repository=file.repository,
                    revision=file.revision,
                    license=file.license,
                    path=file.path,
                    language=draft.language,
                )
            )
    return documents, dict(sorted(skipped.items()))
