"""Problems made from held-out documents: they are parts of the documents, and the seed decides which."""

import ast
import dataclasses
import json
import textwrap
from pathlib import Path
from typing import get_args

import pytest

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.held_out.holes import MAX_PROBLEMS_PER_DOCUMENT, context_of
from codekiln.evaluate.held_out.sample import HeldOutTask, sample_held_out
from codekiln.evaluate.problems.doctests import DoctestHoleProblem
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.evaluate.problems.names import VariableNameProblem
from codekiln.evaluate.problems.problem import Problem
from codekiln.evaluate.problems.return_types import ReturnTypeProblem
from codekiln.evaluate.settings import INCODER_FILE_END
from tests.small import run_program

CODE = '''
"""Sizes of boxes."""

import math
from typing import List, Optional


class Box:
    """A box with a größe."""

    def area(self, width: int, height: int = max(1, 2)) -> float:
        """Return the area of the box.

        >>> Box().area(2, 3)
        6.0
        """
        if width < 0:
            raise ValueError("negative")
        total = float(width * height)
        return min(total, math.inf)

    def name(self) -> None:
        """Print nothing."""


def clip(values: List[int], limit: Optional[int]) -> List[int]:
    """
    Limit all values of a list.

    >>> clip([1, 5], 3)
    [1, 3]
    >>> clip([], 3)
    []
    """
    found = []
    for value in values:
        found.append(min(value, limit))
    largest = max
    return found  # größe


def no_hint(item, other="max"):
    # no docstring
    result = other
    return result.max
'''.lstrip()
CONFIG = InfillingConfig(n_problems=100, context_characters=300, max_new_tokens=64, seed=3)


def document(text: str, name: str = "a", language: str = "Python") -> Document:
    return Document(text, "tree", name, "-", "MIT", "a.py", language)


def sample(task: HeldOutTask, *texts: str, config: InfillingConfig = CONFIG) -> list[Problem]:
    return sample_held_out(task, [document(text, str(n)) for n, text in enumerate(texts)], config)


@pytest.mark.parametrize("task", get_args(HeldOutTask))
def test_sample_depends_on_the_seed_only(task: HeldOutTask) -> None:
    documents = [document(CODE.replace("clip", f"clip_{n}"), str(n)) for n in range(6)]
    config = dataclasses.replace(CONFIG, n_problems=7)
    found = sample_held_out(task, documents, config)
    assert len(found) == 7 and len({problem.task_id for problem in found}) == 7
    assert found == sample_held_out(task, list(reversed(documents)), config)
    assert found != sample_held_out(task, documents, dataclasses.replace(config, seed=4))
    every = sample_held_out(task, documents, dataclasses.replace(config, n_problems=1000))
    per_document = [sum(p.task_id.startswith(f"{n}@") for p in every) for n in range(6)]
    assert max(per_document) <= MAX_PROBLEMS_PER_DOCUMENT and every[:7] == found


@pytest.mark.parametrize("task", get_args(HeldOutTask))
def test_documents_that_do_not_parse_have_no_python_problems(task: HeldOutTask) -> None:
    texts = ["def f(:\n", "\x00", "", "\ufeffx = max(1, 2)\n", "(" * 5000, "x = '\ud800'"[:4]]
    found = sample(task, *texts)
    assert task in ("single-line", "multi-line", "span") or not found


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_multi_line_holes_are_whole_lines(line_end: str) -> None:
    text = CODE.replace("\n", line_end)
    found = sample("multi-line", text)
    assert len(found) > 3
    for problem in found:
        assert isinstance(problem, HoleProblem)
        assert problem.prompt + problem.reference + problem.suffix in text
        assert problem.prompt.endswith(line_end) and problem.reference.endswith(line_end)
        lines = problem.reference.split(line_end)[:-1]
        assert 2 <= len(lines) <= 10 and lines[0].strip() and lines[-1].strip()
        if line_end != "\r":
            assert (
                problem.truncate(problem.reference + "more", with_suffix=False) == problem.reference or line_end != "\n"
            )


def test_other_languages_have_holes_only() -> None:
    documents = [document("int f() {\n  return max(1, 2);\n}\n" * 20, language="C")]
    for task in get_args(HeldOutTask):
        assert bool(sample_held_out(task, documents, CONFIG)) is (task in ("single-line", "multi-line", "span"))


def test_docstrings_of_functions() -> None:
    found = {problem.reference: problem for problem in sample("docstrings", CODE)}
    assert set(found) == {"Return the area of the box.", "Limit all values of a list."}  # two words are too few
    clip = found["Limit all values of a list."]
    assert clip.prompt == 'def clip(values: List[int], limit: Optional[int]) -> List[int]:\n    """'
    assert clip.suffix is not None and clip.suffix.startswith("\n\n    found = []\n")
    assert clip.kind == "completion"
    assert clip.truncate("\n    Limit all values of a list.\n\n    >>>", with_suffix=True) == clip.reference
    ended = sample_held_out("docstrings", [document(CODE)], CONFIG, file_end=INCODER_FILE_END)
    assert all(problem.suffix is not None and problem.suffix.endswith("\n<|/ file |>") for problem in ended)


def test_return_types_of_functions() -> None:
    found = {problem.reference: problem for problem in sample("return-types", CODE)}
    assert set(found) == {"float", "List[int]"}  # neither None nor without an annotation
    clip = found["List[int]"]
    assert isinstance(clip, ReturnTypeProblem)
    assert clip.prompt == "def clip(values, limit) -> "  # other annotations are removed
    ast.parse(clip.prompt + clip.reference + ":" + clip.suffix.removesuffix("\n\ndef "))
    method = found["float"]
    assert method.prompt == "    def area(self, width, height=max(1, 2)) -> "


def test_variable_names_of_functions() -> None:
    found = sample("variable-names", CODE)
    method, function = {"self", "width", "height", "total"}, {"values", "limit", "found", "value", "largest"}
    names = {problem.reference for problem in found}
    assert len(found) == MAX_PROBLEMS_PER_DOCUMENT and names < method | function | {"item", "other", "result"}
    for problem in found:
        assert isinstance(problem, VariableNameProblem)
        assert problem.reference.join(problem.parts) in CODE


def test_names_of_inner_functions_are_asked_once() -> None:
    text = "def outer(first):\n    def inner(second):\n        return first + second\n    return inner\n"
    assert sorted(problem.reference for problem in sample("variable-names", text)) == ["first", "second"]


def test_clozes_of_names_and_calls() -> None:
    every, calls = sample("cloze", CODE), sample("cloze-calls", CODE)
    assert [problem.reference for problem in sorted(calls, key=position)] == ["max", "min", "min"]
    assert [problem.reference for problem in sorted(every, key=position)] == ["max", "min", "min", "max", "max"]
    for problem in every:
        assert problem.suffix is not None
        assert problem.prompt + problem.reference + problem.suffix in CODE
        assert problem.text_scores(problem.reference) == {"correct": 1.0}
    assert {problem.task_id for problem in calls} < {problem.task_id for problem in every}


def position(problem: Problem) -> int:
    return int(problem.task_id.rsplit("/", 1)[1])


def test_context_is_cut_at_line_ends() -> None:
    text = "".join(f"line {n}\n" for n in range(100))
    at = text.index("line 50")
    before, after = context_of(text, at, at + 4, 90)
    assert before.startswith("line ") and before.endswith("line 49\n") and len(before) <= 60
    assert after.endswith("\n") and len(after) <= 30


def doctest_results(problems: list[DoctestHoleProblem], answers: list[str], tmp_path: Path) -> list[bool]:
    programs = {
        str(n): dataclasses.asdict(problem.program(answer))
        for n, (problem, answer) in enumerate(zip(problems, answers, strict=True))
    }
    path = tmp_path / "programs.json"
    path.write_text(json.dumps(programs), encoding="utf-8")
    run_program("run_references.py", path, tmp_path / "results.json")
    return [passed for passed, _ in json.loads((tmp_path / "results.json").read_text(encoding="utf-8")).values()]


@pytest.mark.process
def test_doctests_judge_the_lines_that_they_run(tmp_path: Path) -> None:
    found = [problem for problem in sample("doctests", CODE) if isinstance(problem, DoctestHoleProblem)]
    by_line = {problem.reference.strip(): problem for problem in found}
    assert set(by_line) == {
        'raise ValueError("negative")',
        "total = float(width * height)",
        "return min(total, math.inf)",
        "found = []",
        "found.append(min(value, limit))",
        "largest = max",
        "return found  # größe",
    }
    problems = list(by_line.values())
    assert {problem.functions for problem in problems} == {("Box",), ("clip",)}
    for problem in problems:
        assert problem.before + problem.reference + problem.after == CODE
        assert problem.truncate(problem.reference + "more\n", with_suffix=False) == problem.reference
    assert doctest_results(problems, [problem.reference for problem in problems], tmp_path) == [True] * len(problems)
    failing = doctest_results(problems, [problem.failing_answer for problem in problems], tmp_path)
    not_run = [line for line, passed in zip(by_line, failing, strict=True) if passed]
    assert not_run == [line for line in by_line if line.startswith("raise")]
    wrong = {
        "found = []": "    found = [0]\n",
        "largest = max": "    largest = min\n",
        "return found  # größe": "    pass\n",
    }
    results = doctest_results([by_line[line] for line in wrong], list(wrong.values()), tmp_path)
    assert results == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "import numpy\n",
        "from . import other\n",
        "from torch.nn import Module\n",
    ],
)
def test_documents_with_other_packages_have_no_doctest_problems(text: str) -> None:
    assert sample("doctests", CODE) and not sample("doctests", text + CODE)


def test_examples_without_output_or_with_bad_indentation_are_no_error() -> None:
    bad = 'def f():\n    """Do.\n\n    >>> f()\n  1\n    """\n    return 1\n'
    assert sample("doctests", bad) == []
    assert sample("doctests", textwrap.dedent(bad).replace(">>>", "")) == []
