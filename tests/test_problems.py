"""Problems of published benchmarks: prompts, programs and answers, compared with the official code and written by hand."""

import ast
import dataclasses
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.evaluate import programs
from codekiln.evaluate.benchmark_files import Row, read_rows
from codekiln.evaluate.problems.called_names import called_names
from codekiln.evaluate.problems.cruxeval import ExecutionProblem, cruxeval, read_templates
from codekiln.evaluate.problems.docstrings import docstring_problem, docstrings, standardize_quotes
from codekiln.evaluate.problems.holes import HoleProblem, HoleUnit
from codekiln.evaluate.problems.humaneval import PLUS_FAULT, FunctionProblem, humaneval
from codekiln.evaluate.problems.humaneval_infilling import FunctionHoleProblem
from codekiln.evaluate.problems.load import BenchmarkSettings, load_benchmark
from codekiln.evaluate.problems.mbpp import DescribedProgramProblem, mbpp
from codekiln.evaluate.problems.mtpb import HEADER, JoinedTurnsProblem, TurnsProblem, mtpb
from codekiln.evaluate.problems.names import variable_names
from codekiln.evaluate.problems.problem import CompletionProblem, MultiTurnProblem, NamesProblem, Problem
from codekiln.evaluate.problems.return_types import ReturnTypeProblem, normalized_type
from codekiln.evaluate.python_code import syntax_tree
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.evaluate.settings import INCODER_FILE_END
from tests.peers import load_official, peer, published
from tests.small import run_program

SETTINGS = BenchmarkSettings()
BATCH = 100  # programs of references that one process runs
HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def f(x):\n    """Add one."""\n',
    "canonical_solution": "    return x + 1\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}


def load(name: str, file: str, settings: BenchmarkSettings = SETTINGS) -> tuple[Problem, ...]:
    return load_benchmark(name, published(file), settings).problems


def one_row(values: Mapping[str, object]) -> list[Row]:
    return [Row(dict(values), "row")]


def references_that_fail(problems: tuple[Problem, ...], tmp_path: Path) -> list[str]:
    """The ids of problems whose reference does not pass the problem's own program."""
    found = {}
    for problem in problems:
        assert problem.kind == "completion"
        answer = problem.reference
        if isinstance(problem, HoleProblem):
            answer = problem.truncate(answer, with_suffix=True)
        program = problem.program(answer)
        assert isinstance(program, programs.TestedProgram)
        found[problem.task_id] = dataclasses.asdict(program)
    path, results_path = tmp_path / "programs.json", tmp_path / "results.json"
    failed = []
    for start in range(0, len(found), BATCH):
        task_ids = list(found)[start : start + BATCH]
        path.write_text(json.dumps({task_id: found[task_id] for task_id in task_ids}), encoding="utf-8")
        run_program("run_references.py", path, results_path)
        results = json.loads(results_path.read_text(encoding="utf-8"))
        failed += [task_id for task_id, (is_passed, _) in results.items() if not is_passed]
    return failed


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("humaneval", "HumanEval.jsonl.gz"),
        ("infilling-random-span-light", "HumanEval-RandomSpanInfillingLight.jsonl.gz"),
        ("cruxeval-output", "cruxeval.jsonl"),
        ("cruxeval-input", "cruxeval.jsonl"),
    ],
)
def test_all_references_pass(name: str, file: str, tmp_path: Path) -> None:
    assert references_that_fail(load(name, file), tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("infilling-single-line", "HumanEval-SingleLineInfilling.jsonl.gz"),
        ("infilling-multi-line", "HumanEval-MultiLineInfilling.jsonl.gz"),
        ("infilling-random-span", "HumanEval-RandomSpanInfilling.jsonl.gz"),
        ("mbpp", "mbpp.jsonl"),
        ("mbpp-sanitized", "sanitized-mbpp.json"),
        ("humaneval-plus", "HumanEvalPlus-OriginFmt.jsonl.gz"),
        ("mbpp-plus", "MbppPlus-OriginFmt.jsonl.gz"),
    ],
)
def test_all_references_of_large_sets_pass(name: str, file: str, tmp_path: Path) -> None:
    assert references_that_fail(load(name, file), tmp_path) == []


def test_program_of_humaneval_by_hand() -> None:
    (problem,) = humaneval(one_row(HUMANEVAL_ROW), "incoder")
    assert problem.program("    return x + 1") == programs.TestedProgram(
        source='def f(x):\n    """Add one."""\n    return x + 1',
        tests="def check(candidate):\n    assert candidate(1) == 2\n\ncheck(f)",
        functions=("f",),
        cpu_seconds=3.0,
    )
    assert problem.truncate("    return x + 1\nprint(1)\n", with_suffix=False) == "    return x + 1\nprint(1)\n"
    assert problem.truncate("    return x + 1\ndef g():\n", with_suffix=False) == "    return x + 1"
    assert not problem.is_ended("    return x + 1\n", with_suffix=False)
    assert problem.is_ended("    return x + 1\n#", with_suffix=False)


def test_answers_cannot_replace_the_functions_that_tests_use() -> None:
    """Three tests call a function of the prompt. An answer that defines it again, so that the test passes, fails."""
    problems = {p.task_id: p for p in load("humaneval", "HumanEval.jsonl.gz")}
    fakes = {
        "HumanEval/32": "    return 0\n\ndef poly(xs, x):\n    return 0\n",
        "HumanEval/38": "    return s\n\ndef encode_cyclic(s):\n    return s\n",
        "HumanEval/50": "    return s\n\ndef encode_shift(s):\n    return s\n",
    }
    judged = []
    for task_id, fake in fakes.items():
        problem = problems[task_id]
        assert problem.kind == "completion"
        for answer in (fake, problem.reference):
            program = problem.program(answer)
            assert program is not None
            judged.append(program)
    with_helpers = [p.task_id for p in problems.values() if p.kind == "completion" and _has_helpers(p.program(""))]
    assert with_helpers == list(fakes)
    with Sandbox(slots=1) as sandbox:
        verdicts = dict(sandbox.judge(enumerate(judged)))
    assert [verdicts[n].is_passed for n in range(6)] == [False, True] * 3
    with Sandbox(slots=1, mode="compat") as sandbox:  # as in the official harness
        assert sum(verdict.is_passed for _, verdict in sandbox.judge(enumerate(judged[::2]))) == 3


def _has_helpers(program: object) -> bool:
    return isinstance(program, programs.TestedProgram) and bool(program.helpers)


def functions_of(problem: Problem) -> tuple[str, ...]:
    assert problem.kind == "completion"
    program = problem.program(problem.reference)
    assert isinstance(program, programs.TestedProgram)
    return program.functions


def test_functions_of_tests_are_defined_by_the_reference() -> None:
    for name, file in (
        ("mbpp", "mbpp.jsonl"),
        ("mbpp-sanitized", "sanitized-mbpp.json"),
        ("mbpp-plus", "MbppPlus-OriginFmt.jsonl.gz"),
    ):
        for problem in load(name, file):
            tree = syntax_tree(problem.reference)
            assert tree is not None
            defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert defined >= set(functions_of(problem)) and functions_of(problem), problem.task_id


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("assert f(1) == g(2)", ("f", "g")),
        ("def check(candidate):\n    assert candidate(sorted([1]))\ncheck(f)", ("f",)),
        ("import math\nfrom a import b as c\nassert math.isclose(f(c), 1)", ("f",)),
        ("for x in range(3):\n    assert f(x)\ntry:\n    g()\nexcept E as e:\n    e", ("f", "g", "E")),
        ("x = [f(y) for y in z]\nassert f(x)", ("f", "z")),
        ("def reference(x):\n    f = x\n    return f\nassert f(1) == reference(1)", ("f",)),  # a local name, too
        ("def (", ()),
    ],
)
def test_called_names_by_hand(code: str, names: tuple[str, ...]) -> None:
    assert called_names(code) == names


def test_builtin_that_the_reference_defines_is_called() -> None:
    assert called_names("assert sum(10, 15) == max(6, 1)") == ()
    assert called_names("assert sum(10, 15) == max(6, 1)", "def sum(a, b): 6") == ("sum",)


def test_plus_tests_have_one_repaired_line() -> None:
    rows = read_rows(published("HumanEvalPlus-OriginFmt.jsonl.gz"))
    assert [row.text("task_id") for row in rows if PLUS_FAULT in row.text("test")] == ["HumanEval/32"]


def test_plus_tests_include_the_base_inputs() -> None:
    base = {
        row.text("task_id"): row for row in read_rows(peer("evalplus+humanevalplus_release/HumanEvalPlus.jsonl.gz"))
    }
    for problem in load("humaneval-plus", "HumanEvalPlus-OriginFmt.jsonl.gz"):
        assert isinstance(problem, FunctionProblem)
        line = next(line for line in problem.test.split("\n") if line.startswith("    inputs = "))
        inputs = {ast.unparse(node) for node in ast.parse(line.strip()).body[0].value.elts}  # type: ignore[attr-defined]
        base_inputs = {ast.unparse(ast.parse(repr(values))) for values in base[problem.task_id].items("base_input")}
        assert inputs >= base_inputs, problem.task_id


def test_mbpp_plus_prompts_equal_those_of_its_other_file() -> None:
    rows = read_rows(peer("evalplus+mbppplus_release/MbppPlus.jsonl.gz"))
    official = {row.text("task_id").removeprefix("Mbpp/"): row.text("prompt") for row in rows}
    for problem in load("mbpp-plus", "MbppPlus-OriginFmt.jsonl.gz"):
        assert problem.prompt == official[problem.task_id.removeprefix("MBPP+/")]


def test_mbpp_prompts_equal_the_official_ones() -> None:
    official = load_official(peer("dpfried+incoder/evaluation/mbpp.py"), {"json": json, "object": object})
    rows = read_rows(published("mbpp.jsonl"))
    problems = mbpp(rows, with_test=True)
    chosen = [row.values for row in rows if 11 <= row.integer("task_id") <= 510]
    assert len(problems) == 500
    for problem, row in zip(problems, chosen, strict=True):
        assert problem.prompt == official["comment_prompt"](row)


def test_mbpp_by_hand() -> None:
    row = {
        "task_id": 11,
        "text": "Add one.",
        "code": "def f(x):\r\n    return x + N",
        "test_setup_code": "N = 1",
        "test_list": ["assert f(1) == 2", "assert f(2) == 3"],
    }
    (problem,) = mbpp(one_row(row), with_test=True)
    assert problem.prompt == '"""\nAdd one.\nassert f(1) == 2\n"""\n'
    assert mbpp(one_row(row), with_test=False)[0].prompt == '"""\nAdd one.\n"""\n'
    # In this order, so that the names of the setup are there when the tests run; the prompt is no part of the program.
    expected = programs.TestedProgram(
        source="def f(x): 0",
        setup="N = 1",
        tests="assert f(1) == 2\nassert f(2) == 3",
        functions=("f",),
        cpu_seconds=10.0,
    )
    assert problem.program("def f(x): 0") == expected
    assert problem.truncate('def f(x): 0\n"""', with_suffix=False) == "def f(x): 0"
    assert problem.truncate("x = 1\nif x:\n", with_suffix=False) == "x = 1"
    assert mbpp(one_row(row | {"task_id": 10}), with_test=True) == []
    assert mbpp(one_row(row | {"task_id": 511}), with_test=True) == []


def test_slow_reference_has_a_longer_limit() -> None:
    limits = {p.task_id: p.cpu_seconds for p in load("mbpp", "mbpp.jsonl") if isinstance(p, DescribedProgramProblem)}
    assert {task_id for task_id, limit in limits.items() if limit != 10.0} == {"MBPP/123"}


# --- infilling ---


def infilling_sets() -> list[tuple[str, str, int, int]]:
    names = {"SingleLine": 1033, "MultiLine": 5815, "RandomSpan": 1640}
    files = [(f"HumanEval-{name}Infilling.jsonl.gz", name, n) for name, n in names.items()]
    return [(file, re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(), n, 164) for file, name, n in files]


@pytest.mark.parametrize(("file", "unit", "n", "n_groups"), infilling_sets())
def test_infilling_references_survive_truncation(file: str, unit: str, n: int, n_groups: int) -> None:
    """A perfect model scores 100%. With the rules of other harnesses it would score 44.5% of single lines."""
    problems = load(f"infilling-{unit}", file)
    assert (len(problems), len({problem.group for problem in problems})) == (n, n_groups)
    for problem in problems:
        assert isinstance(problem, FunctionHoleProblem)
        for with_suffix in (True, False):
            assert problem.truncate(problem.reference, with_suffix=with_suffix) == problem.reference
            longer = problem.reference + ("" if problem.reference.endswith("\n") else "\n") + "    more = 1\n"
            if not with_suffix:
                assert problem.is_ended(longer, with_suffix=False)
                kept = problem.truncate(longer, with_suffix=False)
                assert kept.rstrip("\n") == problem.reference.rstrip("\n") or unit == "random-span"
        program = problem.program(problem.reference)
        assert program.source == problem.prompt + problem.reference + problem.suffix


def hole(unit: HoleUnit, reference: str) -> HoleProblem:
    return HoleProblem(
        task_id="a", group="a", prompt="p\n", suffix="s\n", reference=reference, unit=unit, max_new_tokens=9
    )


@pytest.mark.parametrize(
    ("unit", "reference", "text", "with_suffix", "without"),
    [
        ("lines", "    x\n", "    x", "    x\n", "    x\n"),
        ("lines", "    x\n", "    x\n    y\n", "    x\n    y\n", "    x\n"),
        ("lines", "    x\n    y\n", "\n    x\n    y\n    z\n", "\n    x\n    y\n    z\n", "    x\n    y\n"),
        ("lines", "    x\n", "", "\n", "\n"),
        ("span", "x", " x \n", " x \n", " x "),
        ("span", "\n  x", "\n  x\n y", "\n  x\n y", "\n  x"),  # a span may begin with a line end
        ("line", "  x", "  x\r\n  y", "  x", "  x"),
    ],
)
def test_holes_are_truncated_by_hand(unit: HoleUnit, reference: str, text: str, with_suffix: str, without: str) -> None:
    problem = hole(unit, reference)
    assert problem.truncate(text, with_suffix=True) == with_suffix
    assert problem.truncate(text, with_suffix=False) == without


def test_exact_match_ignores_white_space_at_the_end_only() -> None:
    problem = hole("lines", "    x\n")
    answers = ("    x", "    x  \n\n", "   x\n", "    y\n")
    assert [problem.text_scores(answer)["exact_match"] for answer in answers] == [1.0, 1.0, 0.0, 0.0]


def test_ended_holes_do_not_change_with_more_text() -> None:
    rng = random.Random(0)
    units: tuple[HoleUnit, ...] = ("line", "lines", "span")
    for unit, reference in itertools.product(units, ("x\n", "x\n\n  y\n", "\nx")):
        problem = hole(unit, reference)
        for _ in range(200):
            text = "".join(rng.choices(["\n", "x", " ", "\r", "yy"], k=8))
            for at, with_suffix in itertools.product(range(len(text)), (True, False)):
                if problem.is_ended(text[:at], with_suffix=with_suffix):
                    short, full = (problem.truncate(t, with_suffix=with_suffix) for t in (text[:at], text))
                    assert short == full


# --- MTPB ---


def test_mtpb_histories_equal_the_official_ones() -> None:
    source = peer("salesforce+CodeGen/codegen1/benchmark/mtpb_sample.py").read_text(encoding="utf-8")
    start, end = source.index("def sample_completions("), source.index("# main")
    written: dict[str, list[dict[str, object]]] = {}
    official = {
        "re": re,
        "os": __import__("os"),
        "print_time": lambda _: __import__("contextlib").nullcontext(),
        "write_jsonl": written.__setitem__,
        "print": lambda *_: None,
    }
    cut = source[source.index("def truncate(") : source.index("def test_truncate")]
    exec(cut + source[start:end], official)  # noqa: S102 - a file that the user chose
    asked: list[tuple[str, int]] = []

    def answer(prompt: str) -> str:
        """An answer that depends on the prompt, and that the rules cut."""
        return f"x = {len(prompt)}\nprint(x)\nprint(x + 1)\n# more"

    def sample(
        _device: None, _model: None, _tokenizer: None, histories: list[str], max_gen_length: int, **_: object
    ) -> list[str]:
        (history,) = histories
        asked.append((history, max_gen_length))
        return [answer(history)]

    rows = read_rows(published("mtpb.jsonl"))
    ordered = sorted((row.values for row in rows), key=lambda values: int(values["id"]))
    official["sample_completions"](  # type: ignore[operator]
        sample, None, None, None, 1, 0.2, 0.95, 50256, 2048, lambda: None, lambda name: f"none/{name}", 1, ordered
    )
    expected = list(itertools.chain.from_iterable(written.values()))
    problems = load("mtpb", "mtpb.jsonl")
    assert len(problems) == len(expected) == 575
    questions = iter(asked)
    for problem, case in zip(problems, expected, strict=True):
        assert problem.kind == "multi-turn"
        answers: list[str] = []
        for _ in range(problem.n_turns):
            prompt = problem.history(answers)
            assert (prompt, problem.max_new_tokens) == next(questions)
            answers.append(problem.truncate(answer(prompt)))
        program = problem.program(answers)
        assert isinstance(program, programs.PrintingProgram)
        assert (program.source, program.expected) == (case["completions"], case["gold_output"])


def test_facts_of_mtpb() -> None:
    problems = [problem for problem in load("mtpb", "mtpb.jsonl") if isinstance(problem, TurnsProblem)]
    turns = Counter(len(p.turns) for p in problems if p.task_id.endswith("/0"))
    assert turns == {3: 16, 4: 56, 5: 27, 6: 9, 7: 4, 8: 2, 9: 1}
    limits = Counter(problem.max_new_tokens for problem in problems if problem.task_id.endswith("/0"))
    assert limits == {128: 88, 256: 26, 512: 1}  # 19 of the file, and 7 without a limit
    by_group = {g: [p for p in problems if p.group == g] for g in {p.group for p in problems}}
    assert all(len(cases) == 5 for cases in by_group.values()) and len(by_group) == 115
    assert [p.expected for p in by_group["MTPB/57"]] == [1, 5, 1, 2, 10010]  # the sixth, -1, has no input
    assert [p.turns == by_group["MTPB/10"][1].turns for p in by_group["MTPB/10"]] == [False, True, False, False, True]
    assert sum(isinstance(p.expected, dict) for p in problems) == 5
    assert [p.expected for p in by_group["MTPB/41"]] == [2, None, 100, 0, None]
    assert '{ "name": "John", "notes": [3, 5, 4] }' in by_group["MTPB/9"][0].turns[1]  # doubled braces


ROW = {"id": "7", "prompts": ["Set x to {a}.", "Print x."], "inputs": [{"a": 1}], "outputs": [1]}


def test_mtpb_by_hand() -> None:
    (problem,) = mtpb(one_row(ROW), "released")
    assert problem.prompt == "# Import libraries.\n\nimport numpy as np\n\n# Set x to 1.\n"
    assert problem.history(["x = 1\n"]) == HEADER + "# Set x to 1.\nx = 1\n\n\n# Print x.\n"
    program = problem.program(["x = 1\n", "print(x)"])
    assert program.source == HEADER + "# Set x to 1.\nx = 1\n\n\n# Print x.\nprint(x)\n\n"
    assert (program.checker, program.expected, problem.max_new_tokens) == ("released", 1, 256)
    with pytest.raises(ValueError, match="2 turns"):
        problem.program(["x = 1"])


def test_single_turns_are_joined_in_two_ways() -> None:
    file = "mtpb.jsonl"
    lines = load("mtpb-single-turn", file)
    sentences = load("mtpb-single-turn", file, BenchmarkSettings(joining="sentences", checker="released"))
    turns = load("mtpb", file)
    for one, other, multi in zip(lines, sentences, turns, strict=True):
        assert isinstance(one, JoinedTurnsProblem) and isinstance(multi, TurnsProblem)
        assert isinstance(other, JoinedTurnsProblem)
        assert one.prompt == HEADER + "".join(f"# {turn}\n" for turn in multi.turns)
        assert other.prompt == HEADER + "# " + " ".join(multi.turns) + "\n"
        assert one.max_new_tokens == multi.max_new_tokens * len(multi.turns)
        assert one.program("print(1)").source == one.prompt + "print(1)"
        assert (one.program("").checker, other.program("").checker) == ("fixed", "released")
    two_functions = "def f():\n    1\ndef g():\n    2\nprint(g())\n"
    assert lines[0].kind == "completion"
    assert lines[0].truncate(two_functions + "# more", with_suffix=False) == two_functions


# --- CRUXEval ---


def test_instructions_equal_the_official_prompts() -> None:
    path = peer("facebookresearch+cruxeval/prompts.py")
    official = load_official(path, {})
    rows = read_rows(published("cruxeval.jsonl"))
    templates = read_templates(path)
    for row, output, given in zip(rows, *(cruxeval(rows, d, templates) for d in ("output", "input")), strict=True):
        code = row.text("code")
        assert output.prompt == official["make_direct_output_prompt"]((code, row.text("input")))
        assert given.prompt == official["make_direct_input_prompt"]((code, row.text("output")))
        assert output.suffix is given.suffix is None


def execution(direction: str, *, has_instructions: bool) -> ExecutionProblem:
    row = {"id": "sample_0", "code": "def f(a, b):\n    return a + b", "input": "[1], [2]", "output": "[1, 2]"}
    (problem,) = cruxeval(one_row(row), direction, None)  # type: ignore[arg-type]
    return dataclasses.replace(problem, has_instructions=has_instructions)


@pytest.mark.parametrize(
    ("direction", "has_instructions", "text", "answer"),
    [
        ("output", True, "assert f([1], [2]) == [1, 2]\n[/ANSWER] more", "[1, 2]"),
        ("output", True, " [1, 2]\n", "[1, 2]"),
        ("input", True, "assert f([], [1, 2]) == [1, 2]\n[/ANSWER]", "f([], [1, 2])"),
        ("input", True, "f([], [1, 2])", "f([], [1, 2])"),
        ("output", False, " [1, 2]\nassert", "[1, 2]"),
        ("input", False, "[], [1, 2]) == [1, 2]\n", "f([], [1, 2])"),
    ],
)
def test_answers_of_cruxeval_by_hand(direction: str, has_instructions: bool, text: str, answer: str) -> None:
    problem = execution(direction, has_instructions=has_instructions)
    assert problem.truncate(text, with_suffix=False) == answer


def test_answers_of_cruxeval_equal_the_official_ones() -> None:
    rng = random.Random(0)
    pieces = ["assert f(", "[1]", ")", " == ", "==", "[/ANSWER]", "\n", " ", "f(", "assert f", "x"]
    for name in ("output", "input"):
        path = peer(f"facebookresearch+cruxeval/inference/tasks/{name}_prediction.py")
        source = path.read_text(encoding="utf-8")
        body = source[source.index("    def postprocess_generation") : source.index("    def process_results")]
        official: dict[str, object] = {}
        exec(f"class Task:\n{body}", official)  # noqa: S102 - a file that the user chose
        task = official["Task"]()  # type: ignore[operator]
        task.cot, task.get_prompt, task.get_dataset = False, lambda _: "", lambda: [None]
        problem = execution(name, has_instructions=True)
        for _ in range(3000):
            text = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
            stopped = text.split("[/ANSWER]")[0]
            assert problem.truncate(text, with_suffix=False) == task.postprocess_generation(stopped, 0)


def test_infilled_input_is_the_text_between_the_parentheses() -> None:
    problem = execution("input", has_instructions=False)
    assert problem.prompt.endswith("# f(??) == [1, 2]\nassert f(") and problem.suffix == ") == [1, 2]\n"
    assert problem.truncate("[], [1, 2]", with_suffix=True) == problem.truncate("[], [1, 2])", with_suffix=False)


def test_programs_of_cruxeval_refuse_what_is_no_answer() -> None:
    output, given = (execution(direction, has_instructions=True) for direction in ("output", "input"))
    program = output.program("[1, 2]")
    assert program.tests == "assert [1, 2] == _answer()" and program.functions == ("_answer",)
    assert program.source.endswith("def _answer():\n    return [1, 2]\n")
    for problem, answer in (
        (output, "f([1], [2])"),  # calls the function that it should predict
        (output, "[1, 2]\nimport os"),
        (output, "x = 1"),
        (output, ""),
        (given, "[1, 2]"),  # does not call the function
    ):
        assert problem.program(answer).source.startswith("raise SyntaxError")
    assert given.program("f([], [1, 2])").tests == "assert [1, 2] == _answer()"
    # Officially, the text after a comma is the message of the assert statement, so that a wrong pair passes.
    assert output.program("[1, 2], 3").source.endswith("return [1, 2], 3\n")


def test_other_prompts_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="cruxeval"):
        read_templates(tmp_path / "prompts.py")
    path = tmp_path / "prompts.py"
    for text in ("def (", "x = 1", 'def make_direct_output_prompt(s):\n    return f"{open(s)}"\n', "\x00"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidFileError, match=r"prompts\.py of CRUXEval"):
            read_templates(path)


# --- docstrings, types and names ---


CODES = [
    'def f(x):\n    """Add one."""\n    return x + 1\n',
    "def f(x):\n    '''Add one.'''\n    return x + 1\n",
    'def f(x):\n    "Add one."\n    return "a"\n',
    "def f(x):\n    'Add one.'\n    return 'a'\n",
    'def f(x):\n    """\n    Add one.\n    """\n    def g():\n        """More."""\n',
    'def f(x):\n    r"""Add one."""\n',
    "def f(x='a'):\n    # Add one.\n    return x\n",
    'async def f(x):\n    """Add one.\n    "quoted" """\n',
]


def test_docstring_prompts_equal_the_official_ones() -> None:
    official = load_official(
        peer("dpfried+incoder/evaluation/utils.py"),
        {"re": re, "List": list, "Tuple": tuple, "sys": __import__("sys")},
    )
    rng = random.Random(0)
    pieces = ['"""', "'''", '"', "'", "\n", "    ", "Add one.", "def f():", " x", "#"]
    for _ in range(20_000):
        before, after = ("".join(rng.choices(pieces, k=rng.randint(0, 7))) for _ in range(2))
        assert list(standardize_quotes(before, after)) == official["standardize_docstring_prompt"](before, after)
    for code in CODES:
        for docstring in ("Add one.", '"""Add one."""', "'Add one.'"):
            if docstring in code:
                problem = docstring_problem("a", code, docstring, "", INCODER_FILE_END, "a")
                assert [problem.prompt, problem.suffix] == official["build_docstring_infill_prompt"](code, docstring)


def test_docstring_by_hand() -> None:
    row = {"original_string": CODES[1], "docstring": "Add one.", "docstring_tokens": ["Add", "one", "."]}
    (problem,) = docstrings(one_row(row), "")
    assert (problem.prompt, problem.suffix) == ('def f(x):\n    """', "\n\n    return x + 1\n")
    assert docstrings(one_row(row), INCODER_FILE_END)[0].suffix == "\n\n    return x + 1\n\n<|/ file |>"
    assert problem.truncate(' Add one.\n\n    More."""', with_suffix=True) == "Add one."
    assert problem.text_scores("Add one.")["bleu"] == pytest.approx(1.0)


def test_return_types_of_the_published_file() -> None:
    problems = load("return-types", "codexglue_return_types_test.json")
    assert len(problems) == 469
    rows = read_rows(published("codexglue_return_types_test.json"))
    shown = [row for row in rows if row.text("return_type_from_source") != "None"]
    for problem, row in zip(problems, shown, strict=True):
        assert isinstance(problem, ReturnTypeProblem)
        is_method = "(self" in "\n".join(row.text("left").split("\n")[:2])
        assert problem.prompt.endswith(" -> ") and problem.prompt.startswith(("    def", "    async")) is is_method
        assert problem.suffix.endswith("\n    \n    def " if is_method else "\n\ndef ")
        assert not problem.suffix.startswith(":")
        assert problem.text_scores(problem.reference) == {"predicted": 1.0, "correct": 1.0}


def test_return_type_answers_by_hand() -> None:
    problem = ReturnTypeProblem(task_id="a", prompt="", suffix="", reference="Tuple[(int, str)]")
    assert problem.truncate("Tuple[int, str]:\n    return", with_suffix=True) == "Tuple[int, str]"
    assert problem.text_scores("Tuple[int,str]") == {"predicted": 1.0, "correct": 1.0}
    assert problem.text_scores("Tuple[") == {"predicted": 0.0, "correct": 0.0}  # missing from the precision only
    assert problem.text_scores("") == {"predicted": 1.0, "correct": 0.0}  # as officially: an empty module parses
    assert problem.text_scores(" int") == {"predicted": 0.0, "correct": 0.0}  # as officially: it is indented
    assert normalized_type("Dict[ str,'A' ]") == "Dict[str, 'A']"


def test_variable_names_by_hand() -> None:
    code = (
        "def area(width, height, b=1):\n"
        "    total = width * height  # the width\n"
        "    print(f'{total}', box.width, width=total)\n"
        "    return total\n"
    )
    problems = variable_names(one_row({"original_string": code}))
    found = {problem.reference: problem for problem in problems}
    assert "b" not in found and "print" not in found and "area" not in found  # too short, or no variables
    width = found["width"]
    assert width.parts[:2] == ("def area(", ", height, b=1):\n    total = ")
    assert len(width.parts) == 3  # neither the comment, the attribute nor the keyword is masked
    assert all(problem.reference.join(problem.parts) == code.rstrip() for problem in problems)
    assert all(problem.prompt + problem.reference + problem.suffix == code.rstrip() for problem in problems)
    assert width.truncate("width, height") == "width"
    assert width.vote(["", "size", "width", "width"]) == "width"
    assert width.vote(["a", "b", "b", "a", ""]) == "a"  # the first of equally frequent names
    assert width.vote(["", ""]) == ""
    assert variable_names(one_row({"original_string": "def f(:"})) == []
    hidden = "def f():\n    global value\n    value = größe = 1\n    return größe\n"
    assert [problem.reference for problem in variable_names(one_row({"original_string": hidden}))] == ["größe"]


def test_problems_are_of_the_four_kinds() -> None:
    """The protocols are structural: mypy compares them here."""
    completions: list[CompletionProblem] = [*humaneval(one_row(HUMANEVAL_ROW), "codegen"), hole("span", "x")]
    turns: list[MultiTurnProblem] = [*mtpb(one_row(ROW), "fixed")]
    names: list[NamesProblem] = [*variable_names(one_row({"original_string": "def f(value): pass"}))]
    problems: list[Problem] = [*completions, *turns, *names]
    assert [problem.kind for problem in problems] == ["completion", "completion", "multi-turn", "names"]
