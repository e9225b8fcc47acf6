"""Problems of a published benchmark by its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codekiln.errors import ConfigError, InvalidFileError
from codekiln.evaluate.benchmark_files import BenchmarkFile, Row, locked_file, read_benchmark, require_unique
from codekiln.evaluate.problems.cloze import cloze, read_answers
from codekiln.evaluate.problems.cruxeval import Direction, cruxeval, read_templates
from codekiln.evaluate.problems.docstrings import docstrings
from codekiln.evaluate.problems.humaneval import MAX_NEW_TOKENS, humaneval, humaneval_plus
from codekiln.evaluate.problems.humaneval_infilling import SINGLE_LINE_MAX_NEW_TOKENS, humaneval_infilling
from codekiln.evaluate.problems.mbpp import mbpp, mbpp_plus, mbpp_sanitized
from codekiln.evaluate.problems.mtpb import Checker, Joining, mtpb, mtpb_single_turn
from codekiln.evaluate.problems.names import variable_names
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.problems.return_types import return_types
from codekiln.evaluate.problems.truncation import CutRule
from codekiln.evaluate.settings import BenchmarkClass

ANSWERS = "answers.txt"  # next to clozeTest.json


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """In what the papers differ. Each field matters to the benchmarks that its comment names."""

    cut_rule: CutRule = "codegen"  # humaneval, humaneval-plus
    with_test: bool = True  # mbpp: the first test is part of the prompt
    checker: Checker = "fixed"  # mtpb
    joining: Joining = "lines"  # mtpb-single-turn
    file_end: str = ""  # docstrings
    cruxeval_prompts: Path | None = None  # cruxeval: the official prompts.py


@dataclass(frozen=True)
class Benchmark:
    """The problems of a benchmark, and the file that they are from."""

    name: str
    file: BenchmarkFile
    problems: tuple[Problem, ...]


Builder = Callable[[BenchmarkFile, BenchmarkSettings], Sequence[Problem]]


def benchmark_names() -> list[str]:
    """The names that `load_benchmark` knows."""
    return sorted(_BENCHMARKS)


def benchmark_class(name: str) -> BenchmarkClass:
    """What is asked in a benchmark that `load_benchmark` knows."""
    return _BENCHMARKS[name].benchmark_class


def load_benchmark(name: str, place: Path, settings: BenchmarkSettings) -> Benchmark:
    """The problems of a benchmark from its file, or from a folder with that file.

    Raises ConfigError for an unknown name, and for a missing file or a wrong checksum (`read_benchmark`), and
    InvalidFileError for a file with missing fields, with an id twice, or with another number of problems.
    """
    if name not in _BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}: choose one of {', '.join(benchmark_names())}")
    found = _BENCHMARKS[name]
    entry, file = locked_file(found.file), read_benchmark(found.file, place)
    problems = tuple(found.build(file, settings))
    require_unique([problem.task_id for problem in problems], file.path)
    if entry.sha256 is not None and len(problems) != entry.n_problems:
        raise InvalidFileError(f"{file.path} has {len(problems)} problems of {name}, and {entry.n_problems} are needed")
    return Benchmark(name, file, problems)


def _infilling(file: BenchmarkFile, unit: str) -> Sequence[Problem]:
    limit = SINGLE_LINE_MAX_NEW_TOKENS if unit == "single-line" else MAX_NEW_TOKENS
    return humaneval_infilling(file.rows, "span" if unit.startswith("random-span") else "lines", limit)


def _cruxeval(rows: Sequence[Row], direction: Direction, settings: BenchmarkSettings) -> Sequence[Problem]:
    path = settings.cruxeval_prompts
    return cruxeval(rows, direction, None if path is None else read_templates(path))


def _cloze(file: BenchmarkFile, language: str) -> Sequence[Problem]:
    answers = file.path.with_name(ANSWERS)
    return cloze(file.rows, language, read_answers(answers) if answers.is_file() else {})


def _infilling_builder(unit: str) -> Builder:
    return lambda file, _: _infilling(file, unit)


def _cloze_builder(language: str) -> Builder:
    return lambda file, _: _cloze(file, language)


@dataclass(frozen=True)
class _Definition:
    """What is asked in a benchmark, its entry in the lock, and how the rows of that file become problems."""

    benchmark_class: BenchmarkClass
    file: str
    build: Builder


_BENCHMARKS: dict[str, _Definition] = {
    "humaneval": _Definition("functions", "humaneval", lambda file, given: humaneval(file.rows, given.cut_rule)),
    "humaneval-plus": _Definition(
        "functions", "humaneval-plus", lambda file, given: humaneval_plus(file.rows, given.cut_rule)
    ),
    "mbpp": _Definition("programs", "mbpp", lambda file, given: mbpp(file.rows, with_test=given.with_test)),
    "mbpp-sanitized": _Definition(
        "programs", "mbpp-sanitized", lambda file, given: mbpp_sanitized(file.rows, with_test=given.with_test)
    ),
    "mbpp-plus": _Definition(
        "programs", "mbpp-plus", lambda file, given: mbpp_plus(file.rows, with_test=given.with_test)
    ),
    "mtpb": _Definition("turns", "mtpb", lambda file, given: mtpb(file.rows, given.checker)),
    "mtpb-single-turn": _Definition(
        "turns", "mtpb", lambda file, given: mtpb_single_turn(file.rows, given.checker, given.joining)
    ),
    "cruxeval-output": _Definition("execution", "cruxeval", lambda file, given: _cruxeval(file.rows, "output", given)),
    "cruxeval-input": _Definition("execution", "cruxeval", lambda file, given: _cruxeval(file.rows, "input", given)),
    "docstrings": _Definition("docstrings", "docstrings", lambda file, given: docstrings(file.rows, given.file_end)),
    "variable-names": _Definition("names", "variable-names", lambda file, _: variable_names(file.rows)),
    "return-types": _Definition("return-types", "return-types", lambda file, _: return_types(file.rows)),
    **{
        f"infilling-{unit}": _Definition("holes", f"infilling-{unit}", _infilling_builder(unit))
        for unit in ("single-line", "multi-line", "random-span", "random-span-light")
    },
    **{
        f"cloze-{language}": _Definition("cloze", f"cloze-{language}", _cloze_builder(language))
        for language in ("python", "javascript", "ruby", "go", "java", "php")
    },
}
