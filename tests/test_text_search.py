"""Texts in the documents of an index, and where a written text is from, against plain searches."""

import random
import re
from pathlib import Path

import pytest

from codekiln.corpus.documents import Document, read_documents
from codekiln.errors import ConfigError
from codekiln.index.build import IndexedTokens, build_index
from codekiln.index.config import IndexConfig
from codekiln.index.provenance import count_memorized, find_verbatim
from codekiln.index.search import Index, open_run_index
from codekiln.index.text_search import TextSearch
from codekiln.tokenizer.bpe import Tokenizer
from tests.test_index import INPUTS, names_of, tokens_of


@pytest.fixture(scope="module")
def run_index(small_run: Path) -> Index:
    return open_run_index(small_run, small_run / "tokenizer.json")


@pytest.fixture(scope="module")
def documents(small_run: Path) -> list[Document]:
    return list(read_documents(small_run / "corpus", "train"))


def plain_search(documents: list[str], text: str) -> list[tuple[int, int]]:
    """Document and byte of each occurrence, overlaps included."""
    wanted = re.compile(b"(?=" + re.escape(text.encode()) + b")")
    return [(k, match.start()) for k, document in enumerate(documents) for match in wanted.finditer(document.encode())]


def assert_finds_all(search: TextSearch, documents: list[str], text: str) -> None:
    expected = plain_search(documents, text)
    found = search.find(text, limit=7)
    assert found.count == len(expected), text
    assert [(place.document, place.byte_offset) for place in found.places] == expected[:7], text
    for place in found.places:
        before = documents[place.document].encode()[: place.byte_offset]
        assert place.line == before.count(b"\n") + 1
        line = documents[place.document].split("\n")[place.line - 1]
        assert place.excerpt == line.strip()


def test_a_search_finds_every_occurrence_of_a_text(
    run_index: Index, run_tokenizer: Tokenizer, documents: list[Document]
) -> None:
    """Of substrings that begin and end anywhere, of texts that occur nowhere, and of whole documents."""
    search = TextSearch(run_index, run_tokenizer.token_bytes, run_tokenizer.document_start)
    texts, rng = [document.text for document in documents], random.Random(0)
    assert [document.path for document in documents] == [run_index.name(k).path for k in range(len(documents))]
    for _ in range(150):
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        piece = text[start : start + rng.choice([1, 1, 2, 3, 5, 9, 20, 60])]
        assert_finds_all(search, texts, piece)
        assert_finds_all(search, texts, piece + rng.choice("xé\n "))
    for text in (texts[0], texts[-1], "no such text", "    ", "\n\n", "def ", "\u20ac"):
        assert_finds_all(search, texts, text)
    with pytest.raises(ConfigError, match="empty"):
        search.find("", 5)


def test_a_search_finds_every_occurrence_of_repeated_text(tmp_path: Path) -> None:
    """In documents of few different tokens that overlap each other, and with text before each document."""
    token_bytes = [b"", b"a", b"b", b"aa", b"ab", b"aab", b"ba", b" ", b" a", b"a"]
    rng = random.Random(1)
    rows = [[7, *rng.choices(range(1, 10), k=rng.randrange(12))] for _ in range(60)]
    build_index(tmp_path, tokens_of(rows, 10), names_of(rows), IndexConfig(memory_bytes=16_000_000), INPUTS)
    texts = [b"".join(token_bytes[i] for i in row).decode()[1:] for row in rows]
    search = TextSearch(Index(tmp_path), token_bytes, " ")
    for _ in range(200):
        text = "".join(rng.choices("aab ", k=rng.randrange(1, 9)))
        expected = plain_search(texts, text)
        found = search.find(text, limit=5)
        assert found.count == len(expected)
        assert [(place.document, place.byte_offset) for place in found.places] == expected[:5]


def test_verbatim_stretches_are_the_longest_that_do_not_overlap(tmp_path: Path) -> None:
    rows = [list(range(100)), [*range(200, 240), *range(40, 90)], [*range(200, 240)]]
    tokens: IndexedTokens = tokens_of(rows, 1000)
    build_index(tmp_path, tokens, names_of(rows), IndexConfig(memory_bytes=16_000_000), INPUTS)
    index = Index(tmp_path)
    written = [500, *range(230, 240), *range(40, 70), 501, *range(205, 230), 502, *range(7, 20)]
    found = find_verbatim(index, written, min_tokens=16)
    assert [(each.start, each.stop, each.count) for each in found] == [(1, 41, 1), (42, 67, 2)]
    assert [source.name.path for source in found[0].sources] == ["1.py"]
    assert [(source.document, source.offset) for source in found[1].sources] == [(1, 5), (2, 5)]
    assert found[1].licenses == {"MIT": 2}
    assert [(each.start, each.stop) for each in find_verbatim(index, written, min_tokens=10)] == [
        (1, 41),
        (42, 67),
        (68, 81),
    ]
    assert find_verbatim(index, written, min_tokens=41) == []
    assert find_verbatim(index, []) == []


def test_parts_of_overlapping_stretches_are_reported(tmp_path: Path) -> None:
    rows = [list(range(0, 30)), list(range(20, 60))]
    build_index(tmp_path, tokens_of(rows, 100), names_of(rows), IndexConfig(memory_bytes=16_000_000), INPUTS)
    found = find_verbatim(Index(tmp_path), list(range(60)), min_tokens=16)
    assert [(each.start, each.stop) for each in found] == [(0, 20), (20, 60)]


def test_memorized_tokens_are_counted_once(tmp_path: Path) -> None:
    rows = [list(range(0, 30)), list(range(20, 60))]
    build_index(tmp_path, tokens_of(rows, 100), names_of(rows), IndexConfig(memory_bytes=16_000_000), INPUTS)
    index = Index(tmp_path)
    assert count_memorized(index, [*range(60), *[90] * 20], min_tokens=30) == 60
    assert count_memorized(index, list(range(60)), min_tokens=31) == 40
    assert count_memorized(index, list(range(60))) == count_memorized(index, []) == 0


def plain_verbatim(
    rows: list[list[int]], ids: list[int], n_context: int, min_tokens: int
) -> list[tuple[int, int, int]]:
    """Start, stop and tokens before, by trying every range: the most tokens of the text first, then the first range."""
    held = {tuple(row[i:j]) for row in rows for i in range(len(row)) for j in range(i + 1, len(row) + 1)}
    free = [False] * n_context + [True] * (len(ids) - n_context)
    found: list[tuple[int, int, int]] = []
    while True:
        best = (0, 0, 0, 0)
        for start in range(n_context, len(ids)):
            for stop in range(start + 1, len(ids) + 1):
                if not all(free[start:stop]) or tuple(ids[start:stop]) not in held:
                    continue
                n_before = 0
                while start == n_context and n_before < n_context and tuple(ids[start - n_before - 1 : stop]) in held:
                    n_before += 1
                if stop - start + n_before >= min_tokens and stop - start > best[0]:
                    best = (stop - start, start, stop, n_before)
        if best[0] == 0:
            return sorted(found)
        found.append((best[1] - n_context, best[2] - n_context, best[3]))
        free[best[1] : best[2]] = [False] * best[0]


def test_stretches_with_a_context_are_those_of_a_plain_search(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = [rng.choices(range(4), k=rng.randrange(3, 25)) for _ in range(12)]
    build_index(tmp_path, tokens_of(rows, 5), names_of(rows), IndexConfig(memory_bytes=16_000_000), INPUTS)
    index = Index(tmp_path)
    n_with_context = 0
    for _ in range(150):
        row = rng.choice(rows)
        ids = [*rng.choices(range(5), k=rng.randrange(6)), *row[: rng.randrange(len(row))], *rng.choices(range(4), k=8)]
        n_context, min_tokens = rng.randrange(len(ids)), rng.randrange(3, 8)
        found = find_verbatim(index, ids, n_context=n_context, min_tokens=min_tokens)
        expected = plain_verbatim(rows, ids, n_context, min_tokens)
        assert [(each.start, each.stop, each.n_before) for each in found] == expected
        for each in found:
            part = ids[n_context + each.start - each.n_before : n_context + each.stop]
            n = len(part)
            assert each.count == sum(row[i : i + n] == part for row in rows for i in range(len(row)))
            n_with_context += each.n_before > 0
    assert n_with_context > 20, "the texts of this test do not continue their contexts"
