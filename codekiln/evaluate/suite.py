"""Published benchmarks by the names that an evaluation takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from codekiln.errors import ConfigError
from codekiln.evaluate.evaluation import ProblemSet
from codekiln.evaluate.problems.load import BenchmarkSettings, benchmark_class, benchmark_names, load_benchmark
from codekiln.evaluate.problems.mtpb import TurnsProblem
from codekiln.evaluate.settings import BenchmarkClass, Settings

# Names for a benchmark with other settings than its own name has.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mtpb": ("mtpb", {"checker": "released"}),
    "mtpb-fixed": ("mtpb", {"checker": "fixed"}),
    "mbpp-description": ("mbpp", {"with_test": False}),
}


def published_names() -> list[str]:
    """The names that `published_problems` knows."""
    return sorted({*benchmark_names(), *_VARIANTS})


def published_class(name: str) -> BenchmarkClass:
    """The class of a published benchmark."""
    return benchmark_class(_VARIANTS[name][0] if name in _VARIANTS else name)


def published_problems(name: str, data: Path | None, settings: Settings, limit: int | None) -> ProblemSet:
    """The problems of a published benchmark, from its file in `data`.

    Raises ConfigError for an unknown name and a missing or other file, and InvalidFileError for one that cannot be read.
    """
    base, changes = _VARIANTS.get(name, (name, dict[str, Any]()))
    chosen = BenchmarkSettings(cut_rule=settings.cut_rule, file_end=settings.file_end)
    if data is None:
        raise ConfigError(f"{name} is measured on its published file: give the folder that has it with --data")
    found = load_benchmark(base, data, replace(chosen, **changes))
    problems = found.problems[:limit]
    source = {"file": found.file.path.name, "sha256": found.file.sha256, **changes}
    cases = [each for each in problems if isinstance(each, TurnsProblem)]
    if cases and changes.get("checker") == "released":
        # The released checker accepts no dictionary and no None, which some cases expect.
        source["ceiling"] = sum(not isinstance(each.expected, dict | None) for each in cases) / len(cases)
    return ProblemSet(name, problems, source)
