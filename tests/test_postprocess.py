"""Post-processing of completions: tables of hand-written cases. The cursor is between prefix and suffix."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codekiln.generate.postprocess import (
    MAX_AROUND,
    RAW,
    Cursor,
    Mode,
    PostProcessing,
    cut_overlap,
    cut_repetition,
    cut_where_suffix_begins,
    is_duplicate,
    is_finished,
    limit_to_block,
    limit_to_mode,
    limit_to_scope,
    postprocess,
    strip_space,
)


@pytest.mark.parametrize(
    ("text", "suffix", "expected"),
    [
        # A closing bracket that the editor inserted after the cursor.
        ("a, b)", ")\n", "a, b"),
        ("[1, 2])", ")", "[1, 2]"),
        ('hello")', '")\n', "hello"),
        # Closes what the completion opened itself.
        ("foo(x)", ")\n", "foo(x)"),
        ("f(x)\n", ")\n    return", "f(x)\n"),
        ("if (x) {\n    y();\n}", "\n}\n", "if (x) {\n    y();\n}"),
        ("{'a': 1}", "}", "{'a': 1}"),
        # A line, and white space before it, of the suffix.
        ("x = 1\n    return x", "\n    return x\n", "x = 1"),
        ("y();\n}", "\n}\n", "y();"),
        ("x = 1\n    ", "\n    return x", "x = 1"),
        # Words are not cut.
        ("return max", "x = 1", "return max"),
        ("a + b", "b\n", "a + "),
        ("a, ", ", c)", "a"),
        ("nothing in common", "else\n", "nothing in common"),
        ("text", "", "text"),
        ("", "text", ""),
    ],
)
def test_end_that_begins_the_suffix_is_cut(text: str, suffix: str, expected: str) -> None:
    assert cut_overlap(text, suffix) == expected


@pytest.mark.parametrize(
    ("text", "suffix", "expected"),
    [
        ("x = 1\n    return x\n\n\ndef g():\n", "\n    return x\n", "x = 1"),
        ("x = 1\n\n    return x\nprint()", "\n    return x\n", "x = 1\n"),
        ("b\nc = 3\n", "\nc = 3\n", "b"),
        # Not the same line.
        ("x = 1\n    return xy\n", "\n    return x\n", "x = 1\n    return xy\n"),
        ("x = 1\n  return x\n", "\n    return x\n", "x = 1\n  return x\n"),
        # Too little to be recognized: the lines after it are needed too.
        ("a\n}\nb", "\n}\n", "a\n}\nb"),
        ("a\n}\nfoo()\nc", "\n}\nfoo()\n", "a"),
        # The suffix continues the line of the cursor.
        ("a, b) + foo(c)\nbar()", " + foo(c)\n", "a, b)"),
        ("xfoo = 1\nfoo = 1\n", "foo = 1\n", "xfoo = 1\n"),
        # Brackets and quotes that the editor closed, and the completion goes on.
        ('"a")\nprint("b")', ")\n", '"a"'),
        ("a, b):\n    return a", "):\n", "a, b"),
        ('hello")\nprint(1)', '")\n', "hello"),
        ("f(x)\ng(y)\n", ")\n", "f(x)\ng(y)\n"),
        ("\n    body();\n}\nnext();", "}\n", "\n    body();\n"),
        ("text", "", "text"),
    ],
)
def test_completion_is_cut_where_it_reaches_the_suffix(text: str, suffix: str, expected: str) -> None:
    assert cut_where_suffix_begins(text, suffix) == expected


@pytest.mark.parametrize(
    ("prefix", "text", "suffix", "expected"),
    [
        ("    a = 1\n    ", "b = 2", "\n    b = 2\n", True),
        ("    a = 1\n    ", "a = 1", "\n    b = 2\n", True),
        ("    a = 1\n    ", "b = 2\n    c = 3", "\n\n    b = 2\n", True),
        ("    a = 1", "\n    a = 1", "\n", True),
        ("    a = 1\n", "\n    c = 1", "\n    b\n", False),
        ("    x = ", "1", "\n    x = 1\n", True),
        ("    x = ", "1", " + 2\n    x = 1\n", False),
        ("    a = 1\n    ", "c = 3", "\n    b = 2\n", False),
        ("a", "", "b", False),
        # Brackets: a duplicate only if nothing is left to close.
        ("f() {\n    y();\n    ", "}", "\n}\n", True),
        ("f() {\n  if (x) {\n    y();\n  ", "}", "\n}\n", False),
        ("if x\n  if y\n    z\n  ", "end", "\nend\n", True),
        ("}\n", "}", "\n", False),
        ("# ----\n", "# ----", "\n", False),
    ],
)
def test_repeated_next_or_last_line_is_a_duplicate(prefix: str, text: str, suffix: str, expected: bool) -> None:
    assert is_duplicate(prefix, text, suffix) == expected


SCOPES = [
    ("def f():\n    ", "x = 1\n    return x\n\n\nclass A:\n    y = 2", "\n", "x = 1\n    return x\n\n"),
    ("def f():\n", "    x = 1\n    return x\nf()", "\n", "    x = 1\n    return x"),
    ("def f():", "\n    return 1\n\n\ndef g():", "\n", "\n    return 1\n\n\ndef g():"),
    ("x = ", "1\ny = 2", "\n", "1\ny = 2"),
    # The bracket of the block is kept once, unless the suffix has it or continues the block.
    ("f() {\n    ", "y();\n}\nz();", "\n", "y();\n}"),
    ("f() {\n    ", "y();\n}\nz();", "\n}\n", "y();"),
    ("f() {\n    ", "y();\n}\nz();", "\n    more();\n}\n", "y();"),
    ("f() {\n\t", "y();\n\tz();\n}\n}", "\n", "y();\n\tz();\n}"),
    ("f() {\n    try {\n        ", "a();\n    }\n}", "\n", "a();\n    }"),
]


@pytest.mark.parametrize(("prefix", "text", "suffix", "expected"), SCOPES)
def test_scope_ends_where_the_indentation_falls(prefix: str, text: str, suffix: str, expected: str) -> None:
    assert limit_to_scope(prefix, text, suffix) == expected


@pytest.mark.parametrize(
    ("prefix", "text", "suffix", "expected"),
    [
        # The body of a block that the line of the cursor opens.
        ("def f():", "\n    x = 1\n    return x\nf()\n", "\n", "\n    x = 1\n    return x"),
        ("def f():", "\n    x = 1\n\n    return x\n", "\n", "\n    x = 1"),
        ("def f(", "a):\n    return a\nf(1)\n", "\n", "a):\n    return a"),
        ("for", " (;;) {\n    a();\n}\nb();", "\n", " (;;) {\n    a();\n}"),
        ("    if x:", "\n        a\n    else:\n        b\n    c", "\n", "\n        a\n    else:\n        b"),
        ("if (x) {", "\n    a();\n} else {\n    b();\n}\nc();", "\n", "\n    a();\n} else {\n    b();\n}"),
        # The rest of a statement.
        ("let a =", " 1;\nlet b = 2;", "\n", " 1;"),
        ("a = foo(", "\n    1,\n    2,\n)\nb = 3", "\n", "\n    1,\n    2,\n)"),
        # The lines up to a blank line, or to less indentation.
        (
            "    x = 1\n    ",
            "y = 2\n    for z in y:\n        a\n    b\n\n    c",
            "\n",
            "y = 2\n    for z in y:\n        a\n    b",
        ),
        ("def f():\n    ", "return 1\nf()", "\n", "return 1"),
        ("", "import os\nimport sys\n\nx = 1", "\n", "import os\nimport sys"),
        ("f() {\n    ", "y();\n}\n", "\n", "y();\n}"),
        ("x = 1", "", "\n", ""),
        ("x = 1\n", "\n\ny = 2\nz = 3\n\n", "\n", "\n\ny = 2\nz = 3"),
    ],
)
def test_block_ends_with_the_statement_or_a_blank_line(prefix: str, text: str, suffix: str, expected: str) -> None:
    assert limit_to_block(prefix, text, suffix) == expected


def test_line_ends_at_any_line_end() -> None:
    for text in ("a\nb", "a\r\nb", "a\rb", "a"):
        assert limit_to_mode("", text, "", "line") == "a"
    assert limit_to_mode("", "a\nb", "", "hole") == "a\nb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb = 2\nb = 2\nb = 2\n", "a = 1\nb = 2"),
        ("a\nb\na\nb\na\nb\na", "a\nb"),
        ("x\n\ndef f():\n    pass\n\ndef f():\n    pass\n\ndef f():\n    pa", "x\n\ndef f():\n    pass"),
        ("b\nb", "b\nb"),
        ("b\nb\nb\nc\n", "b\nb\nb\nc\n"),  # a repetition that has ended
        ("        }\n    }\n}\n", "        }\n    }\n}\n"),
        ("}\n}\n}\n}\n", "}\n}\n}\n}\n"),
        ("x = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0", "x = [0, "),
        ("# ==============================", "# =============================="),
        ("", ""),
    ],
)
def test_repetition_at_the_end_is_cut(text: str, expected: str) -> None:
    found = cut_repetition(text)
    assert found.rstrip() == expected.rstrip() and text.startswith(found)


def test_space_at_the_end_is_stripped_where_the_line_ends() -> None:
    assert strip_space("x = 1  \t", "\ny") == strip_space("x = 1  ", "") == "x = 1"
    assert strip_space("x = ", "y\n") == "x = "
    assert strip_space("x\n\n", "\ny") == "x\n\n"
    assert strip_space(" \n ", "y") == ""


def test_each_step_can_be_switched_off() -> None:
    prefix, suffix = "def f(a):\n    b = a\n    ", "\n    return b\n"
    text = "c = 1\n    return b\n"
    assert postprocess(prefix, text, suffix, PostProcessing()) == "c = 1"
    assert postprocess(prefix, text, suffix, PostProcessing(cut_at_suffix=False)) == text
    assert postprocess(prefix, text, suffix, RAW) == text
    assert postprocess(prefix, "return b", suffix, PostProcessing()) == ""
    assert postprocess(prefix, "return b", suffix, PostProcessing(drop_duplicates=False)) == "return b"
    assert postprocess(prefix, "b\nb\nb\nb", suffix, PostProcessing()) == "b"
    assert postprocess(prefix, "b\nb\nb\nb", suffix, PostProcessing(cut_repetition=False)) == "b\nb\nb\nb"
    assert postprocess(prefix, "d  ", suffix, PostProcessing()) == "d"
    assert postprocess(prefix, "d  ", suffix, PostProcessing(strip_space=False)) == "d  "
    assert postprocess(prefix, "d\n    e\n\n    f  ", suffix, PostProcessing.raw("block")) == "d\n    e"


@pytest.mark.parametrize(("prefix", "text", "suffix", "expected"), SCOPES)
def test_generation_may_stop_as_soon_as_it_is_finished(prefix: str, text: str, suffix: str, expected: str) -> None:
    """What comes after the place where generation stops changes nothing."""
    for mode in ("block", "scope", "hole"):
        settings = PostProcessing.raw(mode)
        whole = postprocess(prefix, text, suffix, settings)
        for n in range(len(text)):
            if is_finished(prefix, text[:n], suffix, settings):
                assert postprocess(prefix, text[:n], suffix, settings) == whole
    assert expected == limit_to_scope(prefix, text, suffix)


def test_generation_stops_after_the_line_that_ends_the_block() -> None:
    prefix, suffix = "def f(a):\n    ", "\n    return b\n"
    block, hole = PostProcessing(mode="block"), PostProcessing()
    text = "b = a\n    return b\n"
    reached = [n for n in range(len(text) + 1) if is_finished(prefix, text[:n], suffix, hole)]
    assert reached == [len(text)]
    assert not is_finished(prefix, "b = a\n    c = b", suffix, block)
    assert is_finished(prefix, "b = a\n\n", suffix, block) and not is_finished(prefix, "b = a\n", suffix, block)
    assert is_finished(prefix, "b = a\nf(", suffix, block) is False  # the line is not complete
    assert is_finished(prefix, "b = a\nf()\n", suffix, block)


PIECES = st.lists(
    st.sampled_from(["a", "b1", " ", "    ", "\t", "\n", "\r\n", "(", ")", "{", "}", '"', "'", "\\", ";", ":", "end"])
)
TEXTS = PIECES.map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.sampled_from(["line", "block", "scope", "hole"]), st.integers(0, 15))
def test_any_result_is_a_beginning_of_the_text(prefix: str, text: str, suffix: str, mode: Mode, flags: int) -> None:
    names = ("cut_at_suffix", "drop_duplicates", "cut_repetition", "strip_space")
    switches = {name: bool(flags >> k & 1) for k, name in enumerate(names)}
    found = postprocess(prefix, text, suffix, PostProcessing(mode=mode, **switches))
    assert text.startswith(found)
    assert flags or found == limit_to_mode(prefix, text, suffix, mode)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.sampled_from(["block", "scope", "hole"]), st.integers(0, 60))
def test_text_after_the_place_where_generation_stops_changes_nothing(
    prefix: str, text: str, suffix: str, mode: Mode, n: int
) -> None:
    steps = PostProcessing(mode=mode, drop_duplicates=False, cut_repetition=False, strip_space=False)
    if is_finished(prefix, text[:n], suffix, steps):
        assert postprocess(prefix, text[:n], suffix, steps) == postprocess(prefix, text, suffix, steps)


def test_a_suffix_without_words_takes_no_longer_than_it_is_long() -> None:
    """Of the lines before the first word, each was once joined with all before it, which took minutes."""
    cursor = Cursor.of("x = {\n" * 200_000, "}\n" * 500_000, PostProcessing())
    for text in ("}\n", "  a = 1\n}", "}" * 200):
        assert isinstance(cursor(text), bool)
        assert cursor.postprocess(text) in text
    one_line = Cursor.of("x = ", "y" * 1_000_000 + "\n", PostProcessing())
    assert one_line.postprocess("f(y)") == "f(y)"


def test_text_far_from_the_cursor_does_not_count() -> None:
    near, far = "\nend_of_it()\n", "x = 1\n" * MAX_AROUND
    assert Cursor.of(far + "a = ", near + far, RAW) == Cursor.of(
        (far + "a = ")[-MAX_AROUND:], (near + far)[:MAX_AROUND], RAW
    )
    assert Cursor.of(far + "a = ", near + far, PostProcessing()).postprocess("1\nend_of_it()\nmore") == "1"
