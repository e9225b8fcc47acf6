"""Questions to an index: longest matches, counts, next tokens and places. Several shards answer as one would."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from codekiln.arrays import Array, map_array
from codekiln.errors import ConfigError, InvalidFileError, MissingFileError
from codekiln.files import JsonObject, first_difference, read_json, sha256_of, verify_checksum
from codekiln.index import kernels
from codekiln.index.build import FORMAT, MANIFEST, RANKS_FILE, shard_paths
from codekiln.index.continuations import GUESS, MAX_LENGTH, SortedTokens, each_shard, ids_of_ranks
from codekiln.index.names import NAMES_FILE, DocumentName, DocumentNames

INDEX_FOLDER = "index"  # of a run

Ids = npt.NDArray[np.int64]
NO_RANGE = (0, 0)
LONG_TEXT = 1000  # tokens, which are searched in each shard by a thread of its own
_NONE = np.empty(0, np.int64)


class Match(NamedTuple):
    """A sequence of `length` tokens that occurs `count` times. `ranges` are its suffixes in each shard."""

    length: int
    count: int  # type: ignore[assignment] # hides the method of tuples
    ranges: tuple[tuple[int, int], ...]


class Matches(NamedTuple):
    """The longest match that ends at each token of a sequence, (n,) each."""

    lengths: Ids
    counts: Ids


class NextTokens(NamedTuple):
    """The ids that follow a match, those that are frequent in the corpus first, and how often each does."""

    ids: Ids
    counts: Ids


class Place(NamedTuple):
    """A document by its number in the order of the corpus, and an offset in its tokens."""

    document: int
    offset: int


@dataclass(frozen=True)
class Shard(SortedTokens):
    """A shard whose files are mapped into memory. `documents` are the places where documents begin, and the last end."""

    documents: Array
    first_document: int

    @classmethod
    def open(cls, folder: Path, k: int, record: JsonObject, ranks: Array, ids: Ids) -> "Shard":
        """Shard k of an index, whose ids have these ranks."""
        dtypes: dict[str, npt.DTypeLike] = {
            "text": ranks.dtype,
            "suffixes": np.int32,
            "keys": np.int64,
            "documents": np.int64,
        }
        arrays = {
            part: map_array(path, dtypes[part], is_searched=True) for part, path in shard_paths(folder, k).items()
        }
        return cls(**arrays, ranks=ranks, ids=ids, first_document=int(record["first_document"]))

    def positions(self, low: int, high: int) -> Ids:
        """Where the suffixes of a range begin, in the order of the text."""
        return np.sort(self.suffixes[low:high]).astype(np.int64)

    def places(self, positions: Ids) -> list[Place]:
        """Positions in the text as places."""
        numbers = np.searchsorted(self.documents, positions, side="right") - 1
        offsets = positions - self.documents[numbers]
        return [Place(self.first_document + int(n), int(o)) for n, o in zip(numbers, offsets, strict=True)]


class Index:
    """An index in a folder, mapped into memory.

    Every file is verified when the index is opened. Raises MissingFileError or InvalidFileError that names a file. Its
    methods can be called from several threads. Ids that are not in the vocabulary are in no match.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self.vocab_size: int = self.manifest["vocab_size"]
        self.end_id = self.vocab_size  # represents the end of a document in `next_tokens`
        self.n_documents: int = self.manifest["documents"]
        self.n_tokens: int = self.manifest["tokens"]
        _verify(folder, self.manifest)
        dtype = np.dtype(self.manifest["dtype"])
        self._ranks = np.fromfile(folder / RANKS_FILE, dtype)
        self._id_of_rank = ids_of_ranks(self._ranks)
        self.shards = tuple(
            Shard.open(folder, k, record, self._ranks, self._id_of_rank)
            for k, record in enumerate(self.manifest["shards"])
        )

    def require_inputs(self, inputs: JsonObject) -> None:
        """Raises ConfigError that names the first of `inputs` that the index was not made from."""
        made_from = {key: self.manifest["inputs"].get(key) for key in inputs}
        if difference := first_difference(made_from, inputs):
            raise ConfigError(
                f"the index in {self.folder} is of another tokenizer or run ({difference}): build it again with this one"
            )

    @cached_property
    def names(self) -> DocumentNames:
        """Repository, path and license of each document."""
        return DocumentNames(self.folder / NAMES_FILE)

    def name(self, document: int) -> DocumentName:
        """Where a document is from."""
        return self.names[document]

    def longest_match(self, context: Sequence[int] | Ids, limit: int = MAX_LENGTH, *, guess: int = GUESS) -> Match:
        """The longest end of `context` that occurs in a document, of at most `limit` tokens, and where.

        `guess` is a length to begin with: it changes the time and not the result. After one more token, a match is at most
        one token longer, so `limit` and `guess` of a decoder are the last length + 1.
        """
        ids = np.asarray(context[-limit:], np.int64)
        return _joined(each_shard(self.shards, lambda s: kernels.longest_match(*s.searched, ids, limit, guess)))

    def longest_matches(self, ids: Sequence[int] | Ids, limit: int = MAX_LENGTH) -> Matches:
        """`longest_match` of every beginning of `ids`."""
        array = np.asarray(ids, np.int64)
        lengths, counts = np.zeros(len(array), np.int64), np.zeros(len(array), np.int64)
        for found, lows, highs in each_shard(
            self.shards, lambda s: kernels.longest_matches(*s.searched, array, limit), is_long=len(array) >= LONG_TEXT
        ):
            sizes = highs - lows
            counts = np.where(found > lengths, sizes, counts + np.where(found == lengths, sizes, 0))
            lengths = np.maximum(lengths, found)
        return Matches(lengths, counts)

    def find(self, ids: Sequence[int] | Ids) -> Match:
        """All places of a sequence of ids. An empty one has none."""
        array = np.asarray(ids, np.int64)
        ranges = tuple(each_shard(self.shards, lambda s: kernels.find_sequence(*s.searched, array)))
        return Match(len(array), sum(high - low for low, high in ranges), ranges)

    def count(self, ids: Sequence[int] | Ids) -> int:
        """How often a sequence of ids occurs, overlaps included."""
        return self.find(ids).count

    def next_tokens(self, match: Match, *, with_end: bool = False) -> NextTokens:
        """The ids that follow a match. `with_end` counts ends of documents too, as `end_id`."""
        rows = [
            kernels.next_ranks(*shard.searched, match.length, low, high)
            for shard, (low, high) in zip(self.shards, match.ranges, strict=True)
            if low < high
        ]
        ranks, counts = rows[0] if rows else (_NONE, _NONE)
        for other in rows[1:]:
            ranks, counts = kernels.merge_counts(ranks, counts, *other)
        if not with_end and len(ranks) and ranks[-1] == self.end_id:  # the highest rank
            ranks, counts = ranks[:-1], counts[:-1]
        return NextTokens(self._id_of_rank[ranks], counts)

    def places(self, match: Match, limit: int) -> list[Place]:
        """The first `limit` places of a match, in the order of the corpus."""
        found: list[Place] = []
        for shard, (low, high) in zip(self.shards, match.ranges, strict=True):
            if len(found) < limit:
                found += shard.places(shard.positions(low, high)[: limit - len(found)])
        return found

    def document(self, number: int) -> Ids:
        """The ids of a document."""
        shard = next(each for each in reversed(self.shards) if each.first_document <= number)
        start, stop = shard.documents[number - shard.first_document :][:2]
        return self._id_of_rank[shard.text[start : stop - 1]]

    def ids_of(self, ranks: Ids) -> list[int]:
        """The id of each rank; `end_id` of the separator."""
        ids: list[int] = self._id_of_rank[ranks].tolist()
        return ids

    def ranks_of(self, ids: Sequence[int]) -> list[int]:
        """The rank of each id."""
        return [int(self._ranks[i]) for i in ids]


def open_run_index(run: Path, tokenizer: Path) -> Index:
    """The index of a run. `tokenizer` is the file of the tokenizer whose ids it is asked for.

    Raises MissingFileError, InvalidFileError, or ConfigError if it is of another tokenizer or of other token shards.
    """
    index = Index(run / INDEX_FOLDER)
    tokens = run / "tokens" / MANIFEST
    index.require_inputs(
        {"tokenizer": sha256_of(tokenizer)} | ({"tokens": sha256_of(tokens)} if tokens.is_file() else {})
    )
    return index


def _joined(found: Sequence[tuple[int, int, int]]) -> Match:
    """The longest match in several shards from the length and the range in each."""
    if len(found) == 1:
        length, low, high = found[0]
        return Match(length, high - low, ((low, high),))
    length = max((n for n, _, _ in found), default=0)
    ranges = tuple((low, high) if n == length else NO_RANGE for n, low, high in found)
    return Match(length, sum(high - low for low, high in ranges), ranges)


def _read_manifest(folder: Path) -> JsonObject:
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingFileError(
            f"{folder} has no finished index ({MANIFEST} is missing): run `codekiln train` with a recipe that builds one, or "
            "`codekiln corpus index`"
        )
    manifest = read_json(path)
    kinds = {"vocab_size": int, "documents": int, "tokens": int, "inputs": dict, "shards": list, "files": dict}
    is_whole = all(isinstance(manifest.get(name), kind) for name, kind in kinds.items())
    if not is_whole or manifest.get("format") != FORMAT or manifest.get("dtype") not in ("uint16", "uint32"):
        raise InvalidFileError(
            f"{path} is damaged or of another version of Codekiln (format {FORMAT} is needed): "
            f"remove {folder} and run the same command again"
        )
    return manifest


def _verify(folder: Path, manifest: JsonObject) -> None:
    """Raises MissingFileError or CorruptFileError that names a file of the index."""
    files = {folder / name: manifest["files"].get(name) for name in (RANKS_FILE, NAMES_FILE)}
    for k, record in enumerate(manifest["shards"]):
        files |= {path: record["files"].get(path.name) for path in shard_paths(folder, k).values()}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda item: verify_checksum(item[0], item[1], folder=folder), files.items()))
