"""Names whose beginning stands before the cursor."""

import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codekiln.generate.names import MAX_NAMES, begins_in_name, begun_name, continued, longer_names, names_from, names_in
from codekiln.tokenizer.bpe import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(small_run: Path) -> Tokenizer:
    return Tokenizer.load(small_run / "tokenizer.json")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("x = self.zeb", "zeb"),
        ("zebra_", "zebra_"),
        ("größe2", "größe2"),
        ("x = a.ze", None),
        ("x = 12345", None),
        ("zebra ", None),
        ("", None),
    ],
)
def test_the_name_before_the_cursor(before: str, expected: str | None) -> None:
    assert begun_name(before) == expected


@given(st.lists(st.text("abc_", min_size=4, max_size=7)), st.text("abc", min_size=3, max_size=4))
def test_names_are_found_as_by_comparing_all(names: list[str], begun: str) -> None:
    expected = sorted(name for name in set(names) if name.startswith(begun) and name != begun)
    text = " + ".join(names)
    assert sorted(longer_names(begun, [text], [])) == expected[:MAX_NAMES] or len(expected) > MAX_NAMES
    assert list(names_from(sorted(names_in(text)), begun)) == expected[:MAX_NAMES]


def test_frequent_names_come_first() -> None:
    texts = ["wall walrus_b walrus_b xwalrus_c", "walrus_b walrus_a walrus"]
    assert longer_names("walrus", texts, ["walrus_d"]) == ["walrus_b", "walrus_a", "walrus_d"]
    assert longer_names("a.b", ["a_b a.bc"], []) == ["a.bc"]  # no pattern


def test_data_is_no_name() -> None:
    blob = "a1b2" * 30
    assert names_in(f"blob = '{blob}' + name_of_it") == {"blob", "name_of_it"}
    assert longer_names("a1b", [blob, "a1b2c3"], []) == ["a1b2c3"]
    assert begun_name(blob) is None


@pytest.mark.parametrize(
    ("after", "expected"), [("name()", True), ("_x", True), ("é", True), ("()", False), ("", False)]
)
def test_a_name_goes_on_after_the_cursor(after: str, expected: bool) -> None:
    assert begins_in_name(after) == expected


def test_ids_spell_the_name_from_its_beginning(tokenizer: Tokenizer) -> None:
    """The ids before the cursor stay as they are, however the name is cut."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8")
    table = tokenizer.token_bytes
    for name in sorted(name for name in names_in(text) if len(name) > 8)[:40]:
        for cut in range(3, len(name)):
            before = tokenizer.encode(f"x = [self.{name[:cut]}")
            [ids] = continued(before, name[:cut], [name], tokenizer)
            spelled = b"".join(table[token] for token in ids).decode()
            assert spelled.endswith(name) and len(spelled) < len(name) + 12
            n = next(n for n in range(len(ids), 0, -1) if before[-n:] == ids[:n])
            assert b"".join(table[token] for token in ids[n:]).decode() == name[cut:]
