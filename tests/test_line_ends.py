"""Line ends of Windows and old files: no hole, reference or completion begins, ends or is cut at one."""

import numpy as np
import pytest

from codekiln.corpus.documents import Document
from codekiln.evaluate.config import InfillingConfig
from codekiln.evaluate.functions import sample_functions
from codekiln.evaluate.held_out.holes import SINGLE_LINE, sample_problems
from codekiln.evaluate.problems.holes import HoleProblem
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import boundary_before, require_spm
from codekiln.train.objectives import Chunk, SpmInfill, encode_around

LINES = [f"def f{n}(x):|    y = x * {n}||    return y + {n}||" for n in range(40)]


def text_with(line_end: str) -> str:
    return "".join(LINES).replace("|", line_end)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_problems_are_the_same_with_any_line_end(line_end: str) -> None:
    config = InfillingConfig(n_problems=40, context_characters=400)

    def lines(text: str) -> list[str]:
        documents = [Document(text, "tree", str(n), "-", "MIT", "a.py", "Python") for n in range(8)]
        return [problem.reference for problem in sample_problems(documents, config)[SINGLE_LINE]]

    assert lines(text_with(line_end)) == lines(text_with("\n"))


def test_spans_cut_no_line_end() -> None:
    documents = [Document(text_with("\r\n"), "tree", str(n), "-", "MIT", "a.py", "Python") for n in range(200)]
    for problems in sample_problems(documents, InfillingConfig(n_problems=1000)).values():
        assert len(problems) > 500
        for problem in problems:
            for before, after in ((problem.prompt, problem.reference), (problem.reference, problem.suffix)):
                assert not (before.endswith("\r") and after.startswith("\n"))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_single_line_answer_ends_before_its_line_end(line_end: str) -> None:
    problem = HoleProblem(
        task_id="a",
        group="a",
        prompt="",
        suffix=line_end,
        reference="    return y",
        unit="line",
        max_new_tokens=9,
    )
    assert problem.truncate(f"    return y{line_end}z", with_suffix=True) == "    return y"


def test_training_holes_cut_no_line_end(tokenizer: Tokenizer) -> None:
    data = text_with("\r\n").encode()[:900]
    rng = np.random.default_rng(0)
    for _ in range(500):
        start, stop = np.sort(rng.integers(0, len(data) + 1, 2)).tolist()
        prefix, middle, suffix = (
            tokenizer.decode_bytes(part) for part in encode_around(data, (start, stop), tokenizer)
        )
        assert prefix + middle + suffix == data
        for before, after in ((prefix, middle + suffix), (prefix + middle, suffix)):
            assert not (before.endswith(b"\r") and after.startswith(b"\n"))


def test_training_holes_of_whole_lines_end_before_the_line_end(tokenizer: Tokenizer) -> None:
    data = text_with("\r\n").encode()[:900]
    chunk = Chunk(np.array(tokenizer.encode(data.decode())), is_start=False, is_end=False)
    infill_format = require_spm(tokenizer.infill_format)
    rng = np.random.default_rng(0)
    n_holes = 0
    for _ in range(200):
        ids = SpmInfill(fim_rate=1.0, line_rate=1.0)(chunk, tokenizer, rng).ids
        if infill_format.middle_id not in ids:
            continue
        n_holes += 1
        middle = tokenizer.decode_bytes(ids[ids.index(infill_format.middle_id) + 1 : -1])
        suffix = tokenizer.decode_bytes(ids[1 : ids.index(infill_format.prefix_id)])
        assert suffix.startswith(b"\r\n")
        assert not middle.startswith((b"\r", b"\n"))
        assert not middle.endswith((b"\r", b"\n\n"))
    assert n_holes > 100


def test_boundaries_are_never_inside_a_character_or_a_line_end() -> None:
    data = "aé\r\n\n\r😀\r\n".encode()
    boundaries = {boundary_before(data, at) for at in range(len(data) + 1)}
    units = ["a", "é", "\r\n", "\n", "\r", "😀", "\r\n"]
    assert boundaries == {0, *np.cumsum([len(unit.encode()) for unit in units]).tolist()}


def test_hidden_lines_of_the_report_keep_their_line_end_in_the_suffix() -> None:
    source = (
        "import os\r\n\r\n\r\ndef f(x):\r\n"
        + "".join(f"    value_{n} = x * {n}\r\n" for n in range(5))
        + "    return 1\r\n"
    )
    (function,) = sample_functions([Document(source, "tree", "a", "-", "MIT", "a.py", "Python")], 1, seed=0)
    assert source == function.before + function.body
