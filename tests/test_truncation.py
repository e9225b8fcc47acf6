"""Truncation of answers, compared with the official code of CodeGen and InCoder, and with values written by hand."""

import itertools
import random
import re
import sys
import types
from collections import namedtuple

import pytest

from codekiln.evaluate.problems.truncation import (
    CODEGEN_STOP,
    CODEX_STOP,
    INCODER_STOP,
    MBPP_STOP,
    CutRule,
    count_lines,
    cut,
    cut_as_codegen,
    cut_before,
    docstring_line,
    first_lines,
    has_docstring_line,
    has_lines,
    leading_name,
    stop_strings,
)
from tests.peers import load_official, peer

PIECES = (
    "print(1)", "def f():", "#", "'''", '"""', "\n", "\n\n", "\n\n\n", "    ", "<|endoftext|>", "x = 1", "class A:",
    "if x:", "assert x", "[DONE]", " ", "a", "\t", "import os", ":",
)  # fmt: skip


def texts(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(n)]


@pytest.mark.parametrize("file", ["jaxformer/hf/sample.py", "benchmark/mtpb_sample.py"])
def test_codegen_rule_equals_the_official_one(file: str) -> None:
    source = peer(f"salesforce+CodeGen/codegen1/{file}").read_text(encoding="utf-8")
    start = source.index("def truncate(")
    official: dict[str, object] = {"re": re}
    exec(source[start : source.index("def test_truncate")], official)  # noqa: S102 - a file that the user chose
    truncate = official["truncate"]
    assert isinstance(truncate, types.FunctionType)
    for text in texts(20_000):
        assert cut_as_codegen(text) == truncate(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("    return 1\n\n\n\n#", "    return 1"),
        ("print(1)\nprint(2)\n", "print(1)\n"),
        ("def f():\n  1\ndef g():\n", "def f():\n  1\n"),
        ("  print(1)\n  print(2)\n", "  print(1)\n  print(2)\n"),  # not at the beginning of a line
        ("printer\nprints\n", "printer\n"),
        ("x = 1\n# y", "x = 1\n"),
        ("#", ""),
        ("x<|endoftext|>y", "x"),
        ("x\n'''", "x\n"),
        # The second print is found before the text is cut at the comment, and the comment comes first here.
        ("# a\nprint(1)\nprint(2)", ""),
        # A second def after the second print is not there any more.
        ("def f():\nprint(1)\nprint(2)\ndef g():", "def f():\nprint(1)\n"),
    ],
)
def test_codegen_rule_by_hand(text: str, answer: str) -> None:
    assert cut_as_codegen(text) == answer


def test_stop_lists_equal_the_official_ones() -> None:
    he = load_official(peer("dpfried+incoder/evaluation/he.py"), {})
    assert tuple(he["HUMAN_EVAL_STOP_WORDS"]) == INCODER_STOP
    mbpp = peer("dpfried+incoder/evaluation/mbpp.py").read_text(encoding="utf-8")
    line = next(line for line in mbpp.splitlines() if line.startswith("MBPP_STOP_WORDS"))
    official: dict[str, object] = {}
    exec(line, official)  # noqa: S102 - a file that the user chose
    assert official["MBPP_STOP_WORDS"] == list(MBPP_STOP)


def test_incoder_truncation_equals_the_official_class() -> None:
    folder = "Eric-Wallace+codex"
    utils = load_official(peer(f"{folder}/utils.py"), {"re": re, "List": list, "Tuple": tuple, "sys": sys})
    source = peer(f"{folder}/models.py").read_text(encoding="utf-8")
    start = source.index("_TruncationParameters = namedtuple")
    code = source[start : source.index("return infill_truncated", start)] + "return infill_truncated\n"
    found = utils | {"namedtuple": namedtuple}
    exec(code, found)  # noqa: S102 - a file that the user chose
    parameters = found["TruncationParameters"]
    for text, n in itertools.product(texts(4000), (1, 2, 4)):
        missing = "\n".join("x" * n)
        assert count_lines(missing) == n
        lines = parameters.from_heuristics(["num_lines"], missing_lines=missing)
        assert first_lines(text, n) == lines.truncate(text)
    for text in texts(4000):
        comment = parameters.from_heuristics(["comment", "num_lines"], missing_lines="one")
        assert docstring_line(text) == comment.truncate(text).strip()
        stop = parameters.from_heuristics(["stop_words"], stop_words=[":"])
        assert cut_before(text, [":"]) == stop.truncate(text)


@pytest.mark.parametrize("rule", ["codegen", "incoder", "codex"])
def test_text_cut_at_a_stop_string_has_the_same_answer(rule: CutRule) -> None:
    for text in texts(5000):
        assert cut(cut_before(text, stop_strings(rule)), rule) == cut(text, rule)
    assert (stop_strings("codex"), CODEGEN_STOP[1]) == (CODEX_STOP, "\n\n\n")


@pytest.mark.parametrize("rule", ["codegen", "incoder", "codex"])
def test_ended_answer_does_not_change_with_more_text(rule: CutRule) -> None:
    for text in texts(1500):
        for at in range(len(text)):
            if len(cut(text[:at], rule)) < at:
                assert cut(text[:at], rule) == cut(text, rule)


def test_ended_lines_do_not_change_with_more_text() -> None:
    n_ended = 0
    for text, n in itertools.product(texts(1500), (1, 2, 3)):
        for at in range(len(text)):
            if has_lines(text[:at], n):
                n_ended += 1
                assert first_lines(text[:at], n) == first_lines(text, n)
            if has_docstring_line(text[:at]):
                assert docstring_line(text[:at]) == docstring_line(text)
    assert n_ended > 1000


@pytest.mark.parametrize(
    ("text", "n", "lines", "is_ended"),
    [
        ("a\nb\nc", 2, "a\nb", True),
        ("a\nb\n", 2, "a\nb", True),
        ("a\nb", 2, "a\nb", False),
        ("\n\na\n", 1, "a", True),
        ("a\n\n", 2, "a", False),
        ("", 1, "", False),
        ("\n\n", 1, "", False),
    ],
)
def test_lines_by_hand(text: str, n: int, lines: str, is_ended: bool) -> None:
    assert (first_lines(text, n), has_lines(text, n)) == (lines, is_ended)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" Return x.\n\n    More.", "Return x."),
        ('\n    Return x. """\n', "Return x."),
        ('"""Return', ""),
        ("", ""),
        ("Return x.", "Return x."),
    ],
)
def test_docstring_by_hand(text: str, line: str) -> None:
    assert docstring_line(text) == line


@pytest.mark.parametrize(
    ("text", "name"),
    [("count += 1", "count"), (" count", ""), ("1x", ""), ("größe)", "größe"), ("_a.b", "_a"), ("", "")],
)
def test_leading_name_by_hand(text: str, name: str) -> None:
    assert leading_name(text) == name
