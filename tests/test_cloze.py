"""Max/min cloze: the eight sequences, compared with InCoder's code and written by hand; answers and options."""

import argparse
import json
import random
import types
from pathlib import Path
from typing import Any, get_args

import pytest

from codekiln.errors import ConfigError
from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.cloze import (
    N_EXTRA,
    OPTIONS,
    WordClozeProblem,
    cloze,
    common_prefix,
    joined_code,
    read_answers,
)
from codekiln.evaluate.problems.problem import ClozeMethod, ClozeProblem
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import PSM, SPM, CausalMask, CodeGen2, InfillFormat
from tests.peers import load_official, peer

MASKS = CausalMask(mask_ids=(901, 902), end_of_mask_id=909, eos_id=900)
FORMATS: tuple[InfillFormat, ...] = (
    MASKS,
    SPM(prefix_id=901, suffix_id=902, middle_id=903, eos_id=900),
    PSM(prefix_id=901, suffix_id=902, middle_id=903, eos_id=900),
    CodeGen2(mask_id=901, separator_id=902, end_of_mask_id=909, eos_id=900),
)
LONG = 100_000


class Pairs:
    """A tokenizer whose tokens are pairs of bytes: ids above 255 are pairs, from the left."""

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]

    def decode_bytes(self, ids: Any) -> bytes:
        return b"".join(token.to_bytes(1 if token < 256 else 2) for token in ids)


def problem(prompt: str, suffix: str) -> WordClozeProblem:
    return WordClozeProblem(task_id="a", group="a", prompt=prompt, suffix=suffix, reference="min")


def ids(*texts: str) -> list[int]:
    return [token for text in texts for token in Pairs().encode(text)]


def test_eight_sequences_by_hand() -> None:
    """The text is `abcmax(d)`, of tokens ab|cm|ax|(d|), so that the option is in the tokens cm and ax."""
    asked = problem("abc", "(d)")
    expected: dict[ClozeMethod, list[int]] = {
        "left-break": ids("ab", "c", "ma", "x"),
        "left-token": ids("ab", "cm", "ax"),
        "left-region": ids("ab", "cm", "ax", "(d", ")"),
        "left-right-break": ids("ab", "c", "ma", "x", "(d", ")"),
        "left-right": ids("ab", "cm", "ax", "(d", ")"),
        "infill-break": [*ids("ab", "c"), 901, *ids("(d", ")"), 902, 901, *ids("ma", "x"), 909],
        "infill-token": [*ids("ab"), 901, *ids("(d", ")"), 902, 901, *ids("cm", "ax"), 909],
        "infill-region": [901, 902, 901, *ids("ab", "cm", "ax", "(d", ")"), 909],
    }
    assert set(expected) == set(get_args(ClozeMethod))
    for method, sequence in expected.items():
        found = asked.sequences(Pairs(), MASKS, method, LONG)
        assert found[0] == sequence and len(found) == 2
    right = "".join(chr(ord("A") + n) * 2 for n in range(12))
    region = problem("ab", right).sequences(Pairs(), MASKS, "infill-region", LONG)[1]
    outside, inside = ids("KK", "LL"), [right[at : at + 2] for at in range(0, 20, 2)]
    # The tokens are ab|mi|nA|AB|..., so that the region is 10 tokens after nA.
    assert region[0] == 901 and region[-1] == 909
    assert region[1 : region.index(902)] == Pairs().encode("ab" + "min" + right)[13:]
    assert len(outside) == 2 and len(inside) == 10


@pytest.mark.parametrize("infill_format", FORMATS, ids=lambda each: each.name)
def test_infilling_uses_the_prompt_and_the_end_of_the_format(infill_format: InfillFormat) -> None:
    found = problem("ab", "cd").sequences(Pairs(), infill_format, "infill-break", LONG)[1]
    end = 909 if isinstance(infill_format, CausalMask | CodeGen2) else 900
    assert found == [*infill_format.prompt(ids("ab"), ids("cd")), *ids("min"), end]


def test_model_without_a_format_can_score_left_methods_only() -> None:
    asked = problem("ab", "cd")
    for method in get_args(ClozeMethod):
        if method.startswith("left"):
            assert asked.sequences(Pairs(), None, method, LONG)
        else:
            with pytest.raises(ConfigError, match="needs a model with an infilling format"):
                asked.sequences(Pairs(), None, method, LONG)


@pytest.mark.parametrize("method", get_args(ClozeMethod))
def test_long_text_is_cut_around_the_option(method: ClozeMethod) -> None:
    asked = problem("l" * 1000, "r" * 1000)
    for max_tokens in (20, 31, 60, 400):
        for option, sequence in zip(OPTIONS, asked.sequences(Pairs(), MASKS, method, max_tokens), strict=True):
            assert max_tokens - 2 * N_EXTRA <= len(sequence) <= max_tokens
            shown = b"".join(Pairs().decode_bytes([token]) for token in sequence if token not in {901, 902, 909})
            assert option.encode() in shown
    with pytest.raises(ConfigError, match="too short"):
        asked.sequences(Pairs(), MASKS, method, 4)


def test_sequences_equal_the_official_ones(tokenizer: Tokenizer) -> None:
    path = peer("Eric-Wallace+codex/codexgluecloze.py")
    sentinels = {"<sentinel:0>": [901], "<sentinel:1>": [902], "<eoss>": [909]}
    official = load_official(path, {})
    official["esl"] = lambda text: sentinels.get(text) or tokenizer.encode(text)
    model = types.SimpleNamespace(_decode=lambda found: tokenizer.decode_bytes(found).decode("latin-1"))
    rng = random.Random(0)
    pieces = ["def f(x):\n", "    return ", "value", "(", ")", ", ", " = ", "x", "\n", "ab", " "]
    methods: list[tuple[ClozeMethod, str, int, int, bool]] = [
        ("left-token", "left", 0, 0, False),
        ("left-region", "left", 0, 10, False),
        ("left-break", "left", 0, 0, True),
        ("left-right", "lr", 0, 0, False),
        ("left-right-break", "lr", 0, 0, True),
        ("infill-token", "inf", 0, 0, False),
        ("infill-break", "inf", 0, 0, True),
        ("infill-region", "inf", LONG, 10, False),
    ]
    for _ in range(60):
        before, after = ("".join(rng.choices(pieces, k=rng.randint(1, 25))) for _ in range(2))
        before = "# The official code fails if only a few tokens are before the option.\n" + before
        for method, score, left, right, is_broken in methods:
            arguments = argparse.Namespace(score_method=score, leftpad=left, rightpad=right, breaktoken=is_broken)
            found = problem(before, after).sequences(tokenizer, MASKS, method, LONG)
            for option, sequence in zip(OPTIONS, found, strict=True):
                assert sequence == official["build_seq"](model, arguments, before, after, option), method


def test_joined_code_equals_the_official_function() -> None:
    official = load_official(peer("Eric-Wallace+codex/codexgluecloze.py"), {})
    rng = random.Random(0)
    for _ in range(3000):
        tokens = rng.choices(["a", "b1", "(", ")", "", "é", "_x", " ", "\n", "="], k=rng.randint(0, 10))
        assert joined_code(tokens) == official["funtokenize"](tokens)


def test_texts_of_the_published_file_equal_the_official_ones() -> None:
    official = load_official(peer("Eric-Wallace+codex/codexgluecloze.py"), {})
    folder = peer("CodeXGLUE/Code-Code/ClozeTesting-maxmin/data/cloze-maxmin")
    assert tuple((folder / "cloze_test_words.txt").read_text(encoding="utf-8").split("\n")) == OPTIONS
    for language in ("python", "ruby", "go"):
        rows = json.loads((folder / language / "clozeTest.json").read_text(encoding="utf-8"))
        problems = cloze([Row(row, "") for row in rows], language, {})
        for found, row in zip(problems, rows, strict=True):
            text = " ".join(row["nl_tokens"]) + official["funtokenize"](row["pl_tokens"])
            assert [found.prompt, found.suffix] == text.split("<mask>")
            assert found.text_scores("max") == {}  # the answers are not public


def test_answers_are_joined_by_idx(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("maxmin-2<CODESPLIT>min\nmaxmin-1<CODESPLIT>max", encoding="utf-8")
    rows = [Row({"idx": f"maxmin-{n}", "nl_tokens": ["A", "b"], "pl_tokens": ["x", "<mask>", "y"]}, "") for n in (1, 2)]
    problems: list[ClozeProblem] = [*cloze(rows, "go", read_answers(path))]
    assert [found.reference for found in problems] == ["max", "min"]
    assert (problems[0].prompt, problems[0].suffix, problems[0].options) == ("A b x", "y", ("max", "min"))
    assert [problems[1].text_scores(option)["correct"] for option in OPTIONS] == [0.0, 1.0]


def test_likelier_option_is_chosen_and_max_of_equal_ones() -> None:
    asked = problem("ab", "cd")
    assert [asked.choose(scores) for scores in ([-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0])] == ["max", "min", "max"]


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1], [1, 2]]) == 1
    assert common_prefix([[1], [2]]) == 0
