"""The index against brute force."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from codekiln.errors import CodekilnError, ConfigError, CorruptFileError, InvalidFileError, MissingFileError
from codekiln.files import JsonObject, read_json, write_json
from codekiln.index import build as building
from codekiln.index import continuations, search
from codekiln.index.build import MANIFEST, IndexedTokens, build_index
from codekiln.index.codes import encode_ranks, keep_suffixes_of_tokens, shortest_code
from codekiln.index.config import IndexConfig
from codekiln.index.continuations import MAX_READ, find_continuations
from codekiln.index.names import SCHEMA, DocumentName
from codekiln.index.search import Index, Place

Documents = list[list[int]]
MEMORY = IndexConfig(memory_bytes=100_000_000)
INPUTS = {"tokenizer": "0" * 64, "tokens": "1" * 64}


def names_of(documents: Documents) -> list[pa.RecordBatch]:
    rows = [
        {"repository": f"r{k % 3}", "revision": "1", "path": f"{k}.py", "license": "MIT"} for k in range(len(documents))
    ]
    return [pa.RecordBatch.from_pylist(rows[i : i + 3], SCHEMA) for i in range(0, len(rows), 3)]


def tokens_of(documents: Documents, vocab_size: int, n_parts: int = 2) -> IndexedTokens:
    """The documents as token shards: consecutive ids, and the offsets where documents end."""
    dtype: np.dtype[np.unsignedinteger] = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    parts = [documents[k * len(documents) // n_parts : (k + 1) * len(documents) // n_parts] for k in range(n_parts)]
    ids: list[npt.NDArray[np.unsignedinteger]] = [np.array([i for d in part for i in d], dtype) for part in parts]
    return IndexedTokens(ids, [np.cumsum([len(d) for d in part], dtype=np.int64) for part in parts], vocab_size)


def index_of(folder: Path, documents: Documents, vocab_size: int, config: IndexConfig = MEMORY) -> Index:
    build_index(folder, tokens_of(documents, vocab_size), names_of(documents), config, INPUTS)
    return Index(folder)


def places_in(documents: Documents, ids: Sequence[int]) -> list[Place]:
    n = len(ids)
    return [
        Place(k, i)
        for k, document in enumerate(documents)
        for i in range(len(document) - n + 1)
        if n and document[i : i + n] == list(ids)
    ]


def longest_in(documents: Documents, context: list[int], limit: int) -> int:
    lengths = range(min(limit, len(context)), 0, -1)
    return next((n for n in lengths if places_in(documents, context[len(context) - n :])), 0)


def followers_in(documents: Documents, ids: list[int], end_id: int | None) -> dict[int, int]:
    found = Counter[int]()
    for place in places_in(documents, ids):
        rest = documents[place.document][place.offset + len(ids) :]
        if rest or end_id is not None:
            found[rest[0] if rest else int(end_id or 0)] += 1
    return dict(found)


def random_documents(seed: int, n_ids: int, vocab_size: int) -> Documents:
    """Documents over few ids of a vocabulary, many of them equal, empty or of one token."""
    rng = np.random.default_rng(seed)
    alphabet = rng.choice(vocab_size, n_ids, replace=False)
    kinds: list[Callable[[], list[int]]] = [
        lambda: [],
        lambda: [int(rng.choice(alphabet))],
        lambda: rng.choice(alphabet, rng.integers(1, 30)).tolist(),
        lambda: (rng.choice(alphabet, 2).tolist() * 15)[: rng.integers(1, 30)],
        lambda: documents[rng.integers(len(documents))] if documents else [],
    ]
    documents: Documents = []
    for _ in range(40):
        documents.append(list(kinds[rng.integers(len(kinds))]()))
    return documents


SETTINGS = [(2, 2), (1, 1), (3, 300), (5, 65_535), (5, 65_536), (5, 70_000), (200, 2048), (400, 1_000_000)]


@pytest.fixture(params=SETTINGS, ids=str)
def setting(request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    return found


def count_searches_in_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often threads have searched shards since."""
    threads, n_calls = continuations._threads, itertools.count()

    def counted() -> ThreadPoolExecutor:
        next(n_calls)
        return threads()

    monkeypatch.setattr(continuations, "_threads", counted)
    return lambda: next(n_calls)


@pytest.mark.parametrize(("shard_tokens", "memory"), [(10**9, 10**9), (60, 10**9), (60, 100)])
def test_answers_are_those_of_brute_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: tuple[int, int], shard_tokens: int, memory: int
) -> None:
    """For one shard, for many, and for many that do not fit into memory, which threads search."""
    monkeypatch.setattr(building, "MAX_SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr(continuations, "_cached_bytes", lambda: memory)
    n_in_threads = count_searches_in_threads(monkeypatch)
    n_ids, vocab_size = setting
    documents = random_documents(n_ids, n_ids, vocab_size)
    index = index_of(tmp_path / "index", documents, vocab_size)
    assert (len(index.shards) > 1) == (shard_tokens == 60)
    assert index.n_tokens == sum(map(len, documents))
    assert index.n_documents == len(documents)
    rng = np.random.default_rng(1)
    ids = sorted({i for document in documents for i in document})
    for _ in range(60):
        document = documents[rng.integers(len(documents))]
        start = int(rng.integers(len(document) + 1))
        context = document[start : start + int(rng.integers(12))]
        if rng.random() < 0.5:
            context = [*context, int(rng.choice(ids))]
        if rng.random() < 0.2:
            context = [*context[:2], vocab_size, -1, *context[2:]]
        limit = int(rng.choice([1, 3, 8, 64]))
        length = longest_in(documents, context, limit)
        for guess in (1, 6, 100):
            match = index.longest_match(context, limit, guess=guess)
            assert match.length == length
        tail = context[len(context) - length :]
        expected = places_in(documents, tail)
        assert match.count == len(expected)
        assert index.places(match, 5) == expected[:5]
        assert index.count(context) == len(places_in(documents, context))
        assert index.find(tail).ranges == match.ranges
        for with_end in (False, True):
            found = index.next_tokens(match, with_end=with_end)
            followers = followers_in(documents, tail, index.end_id if with_end else None)
            assert dict(zip(found.ids.tolist(), found.counts.tolist(), strict=True)) == followers
            assert sorted(found.ids.tolist()) == sorted(followers)
        predicted = find_continuations(index.shards, np.array(context, np.int64), limit)
        assert (predicted.length, predicted.count) == (match.length, match.count)
        if length and match.count <= MAX_READ:
            followers = followers_in(documents, tail, None)
            expected_fractions = {i: n / sum(followers.values()) for i, n in followers.items()}
            fractions = dict(zip(predicted.ids.tolist(), predicted.fractions.tolist(), strict=True))
            assert fractions == pytest.approx(expected_fractions)
    assert (n_in_threads() > 0) == (memory == 100)
    for number in range(len(documents)):
        assert index.document(number).tolist() == documents[number]
        assert index.name(number) == DocumentName(f"r{number % 3}", "1", f"{number}.py", "MIT")


@pytest.mark.parametrize(("shard_tokens", "long_text"), [(10**9, 1000), (60, 1000), (60, 1)])
def test_longest_matches_of_a_text_are_those_of_its_beginnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_tokens: int, long_text: int
) -> None:
    """For one shard, for many, and for many that threads search."""
    monkeypatch.setattr(building, "MAX_SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr(search, "LONG_TEXT", long_text)
    n_in_threads = count_searches_in_threads(monkeypatch)
    documents = random_documents(3, 4, 10)
    index = index_of(tmp_path / "index", documents, 10)
    rng = np.random.default_rng(2)
    text = [
        i for k in rng.integers(len(documents), size=8) for i in [*documents[k], *rng.integers(-1, 11, size=2).tolist()]
    ]
    for limit in (3, 64):
        found = index.longest_matches(text, limit)
        matches = [index.longest_match(text[: i + 1], limit) for i in range(len(text))]
        assert found.lengths.tolist() == [match.length for match in matches]
        assert found.counts.tolist() == [match.count for match in matches]
    assert n_in_threads() == (2 if long_text == 1 else 0)


@pytest.mark.parametrize("documents", [[], [[]], [[], [], []]], ids=["none", "empty", "all empty"])
def test_an_index_without_tokens_matches_nothing(tmp_path: Path, documents: Documents) -> None:
    index = index_of(tmp_path / "index", documents, 10)
    match = index.longest_match([1, 2, 3])
    assert (match.length, match.count, index.places(match, 5)) == (0, 0, [])
    assert index.next_tokens(match, with_end=True).ids.tolist() == []
    assert index.count([1]) == index.count([]) == 0
    assert index.longest_matches([1, 2]).lengths.tolist() == [0, 0]


def test_frequent_tokens_follow_a_match_in_a_large_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    documents = [rng.zipf(1.5, 4000).clip(max=900).tolist() for _ in range(10)]
    index = index_of(tmp_path / "index", documents, 1000)
    for first in (1, 2, 3, 50):
        found = index.next_tokens(index.find([first]), with_end=True)
        expected = followers_in(documents, [first], index.end_id)
        assert dict(zip(found.ids.tolist(), found.counts.tolist(), strict=True)) == expected


@pytest.mark.parametrize("n_ranks", [1, 2, 200, 256, 257, 2049, 65_537, 200_000])
def test_codes_sort_as_ranks_do(n_ranks: int) -> None:
    counts = np.sort(np.random.default_rng(0).zipf(1.2, n_ranks).clip(max=10**6))[::-1].astype(np.int64)
    code = shortest_code(counts)
    ranks = np.arange(n_ranks, dtype=np.uint32)
    n_bytes = code.n_bytes(np.ones(n_ranks, np.int64))
    data, begins = encode_ranks(ranks, code.n_short, code.n_middle, n_bytes)
    first = [i for i in range(n_bytes) if int(begins[i // 64]) >> (i % 64) & 1]
    assert len(first) == n_ranks
    codes = [data[start:stop].tobytes() for start, stop in zip(first, [*first[1:], n_bytes], strict=True)]
    assert codes == sorted(set(codes))
    assert not [a for a, b in pairwise(codes) if b.startswith(a)]
    positions = np.arange(n_bytes, dtype=np.int32)
    assert keep_suffixes_of_tokens(positions, begins) == n_ranks
    assert positions[:n_ranks].tolist() == list(range(n_ranks))


def test_an_index_builds_within_its_memory(tmp_path: Path) -> None:
    """Shards are as small as the memory needs, and a document that needs more is refused."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 500, 20_000).tolist() for _ in range(60)]
    config = IndexConfig(memory_bytes=16_000_000)
    index = index_of(tmp_path / "index", documents, 500, config)
    assert [len(shard.text) <= 8_000_000 / 12 for shard in index.shards] == [True] * 3
    assert index.count(documents[-1][-9:]) == 1
    with pytest.raises(ConfigError, match=r"document 0 has 1,200,001 tokens.*index\.memory_bytes"):
        index_of(tmp_path / "other", [[i for d in documents for i in d]], 500, config)
    with pytest.raises(ConfigError, match="memory_bytes is 1,000"):
        IndexConfig(memory_bytes=1000)


def test_complete_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MAX_SHARD_TOKENS", 60)
    documents, folder = random_documents(0, 5, 50), tmp_path / "index"
    index_of(folder, documents, 50)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / MANIFEST).unlink()
    (folder / "suffixes-00001.bin").write_bytes(b"cut off")
    (folder / "text-00002.bin").unlink()
    (folder / "shard-00003.json").write_text("{")
    kept = (folder / "text-00000.bin").stat().st_ino
    index_of(folder, documents, 50)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert (folder / "text-00000.bin").stat().st_ino == kept
    documents[3] = [1, 2, 3, *documents[3]]
    build_index(folder, tokens_of(documents, 50), names_of(documents), MEMORY, INPUTS | {"tokens": "2"})
    assert Index(folder).count([1, 2, 3]) == len(places_in(documents, [1, 2, 3]))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index_of(folder, random_documents(0, 5, 50), 50)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("shard-") or path.name == MANIFEST:
            continue  # the records that resume a build are not read
        whole = path.read_bytes()
        flipped = bytes([whole[0] ^ 1, *whole[1:]])
        for damaged in (whole[:-1], flipped, whole + b"x"):
            path.write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=path.name):
                Index(folder)
        path.unlink()
        with pytest.raises(MissingFileError, match=path.name):
            Index(folder)
        path.write_bytes(whole)
    Index(folder)


@pytest.mark.parametrize("change", [{"format": 0}, {"dtype": "float32"}, {"shards": None}, {"files": 3}])
def test_a_damaged_manifest_is_refused(tmp_path: Path, change: JsonObject) -> None:
    folder = tmp_path / "index"
    index_of(folder, [[1, 2]], 50)
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | change)
    with pytest.raises(InvalidFileError, match=r"manifest\.json"):
        Index(folder)


def test_an_index_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", [[1, 2]], 50)
    index.require_inputs({"tokenizer": "0" * 64})
    with pytest.raises(ConfigError, match=r"another tokenizer or run.*tokenizer: found"):
        index.require_inputs({"tokenizer": "5" * 64})
    with pytest.raises(MissingFileError, match="no finished index"):
        Index(tmp_path)


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="the id 9, and the vocabulary has 5"):
        index_of(tmp_path / "a", [[1, 9]], 5)
    with pytest.raises(CodekilnError, match="2 documents are to be indexed, and there are names of 1"):
        build_index(tmp_path / "b", tokens_of([[1], [2]], 5), names_of([[1]]), MEMORY, INPUTS)
