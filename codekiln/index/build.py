"""Builds an index: shards of consecutive documents, each with its suffix array, and a manifest.

`ranks.bin` holds the rank of each id by frequency (see `codes`). Shard k has `text-k.bin` (the ranks of its tokens, a
separator after each document: uint16, or uint32 for vocabularies of 65,536 and more), `suffixes-k.bin` (int32), `keys-k.bin`
(the first tokens of some suffixes, int64) and `documents-k.bin` (where each document begins, int64). `documents.parquet` has
the names of all documents. The manifest is written last.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from codekiln.errors import ConfigError, InvalidFileError, MissingFileError
from codekiln.extras import import_optional
from codekiln.files import (
    JsonObject,
    RecordedFile,
    atomic_write,
    checksum,
    read_json,
    recorded_files,
    remove_leftovers,
    require_free_space,
    write_json,
)
from codekiln.index.codes import Code, count_ids, encode_ranks, keep_suffixes_of_tokens, shortest_code
from codekiln.index.config import IndexConfig
from codekiln.index.continuations import SortedTokens, ids_of_ranks
from codekiln.index.kernels import join_documents, make_keys, rank_bits
from codekiln.index.names import NAMES_FILE, write_names
from codekiln.progress import progress_bar
from codekiln.threads import results_in_order

FORMAT = 1  # of the manifest and of the records of shards
MANIFEST = "manifest.json"
RANKS_FILE = "ranks.bin"
PARTS = ("text", "suffixes", "keys", "documents")  # of a shard
# Codes have up to 3 bytes per token, and positions of bytes are int32.
MAX_SHARD_TOKENS = 700_000_000
N_SHARDS_AT_ONCE = 2
# Of a byte of a code while its shard is sorted: the byte itself, an int32 and the bits that find tokens.
SORTING_BYTES = 5.2

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class IndexedTokens:
    """The documents to index. Shard k has the ids `ids[k]`, and its documents end at the offsets `document_ends[k]`."""

    ids: Sequence[npt.NDArray[np.unsignedinteger]]
    document_ends: Sequence[npt.NDArray[np.int64]]
    vocab_size: int

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each id occurs, (vocab_size,). Raises InvalidFileError for an id that is not in the vocabulary."""
        total = np.zeros(self.vocab_size, np.int64)
        for ids in self.ids:
            found, highest = count_ids(np.asarray(ids), self.vocab_size)
            if highest >= self.vocab_size:
                raise InvalidFileError(
                    f"the tokens to index have the id {highest}, and the vocabulary has {self.vocab_size} ids: "
                    "they are of another tokenizer"
                )
            total += found
        return total

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, in order."""
        rows = [np.diff(ends, prepend=0) for ends in self.document_ends]
        return np.concatenate([np.empty(0, np.int64), *rows])


@dataclass(frozen=True)
class _Plan:
    """What every shard is built with. `bounds` are the numbers of the documents between shards."""

    folder: Path
    tokens: IndexedTokens
    ranks: npt.NDArray[np.unsignedinteger]
    counts: npt.NDArray[np.int64]  # of each rank, the separator included
    code: Code
    bounds: tuple[int, ...]
    inputs: JsonObject
    shard_tokens: npt.NDArray[np.int64]  # of each shard, with its separators


def build_index(
    folder: Path, tokens: IndexedTokens, names: Iterable[pa.RecordBatch], config: IndexConfig, inputs: JsonObject
) -> JsonObject:
    """Writes the index of `tokens` and returns its manifest. Complete shards from the same inputs are kept.

    `names` has the columns of `names.SCHEMA`, a row for each document. `inputs` identifies what the index is made from; the
    checksum of the tokenizer is its field `tokenizer`. Raises ConfigError if the memory is too small for a document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    plan = _make_plan(folder, tokens, config, inputs)
    n_shards = len(plan.bounds) - 1
    expected = {
        path.name for k in range(n_shards) for path in (*shard_paths(folder, k).values(), _record_path(folder, k))
    }
    for path in folder.glob("*-?????.*"):  # of an unfinished build from other inputs
        if path.name not in expected:
            path.unlink()
    n_tokens = int(plan.shard_tokens.sum())
    require_free_space(folder, n_tokens * (plan.ranks.itemsize + 4))
    with atomic_write(folder / RANKS_FILE) as temp_path:
        temp_path.write_bytes(plan.ranks.tobytes())
    write_names(folder / NAMES_FILE, names, n_documents=plan.bounds[-1])
    shards: list[JsonObject] = []
    n_threads = min(N_SHARDS_AT_ONCE, os.cpu_count() or 1)
    with progress_bar("Index", n_tokens) as progress:
        for shard in results_in_order(partial(_shard, plan), n_shards, n_threads):
            shards.append(shard)
            progress.advance(shard["tokens"])
    manifest: JsonObject = {"format": FORMAT, "dtype": plan.ranks.dtype.name, "vocab_size": tokens.vocab_size}
    manifest |= {"documents": plan.bounds[-1], "tokens": n_tokens - plan.bounds[-1], "inputs": inputs, "shards": shards}
    manifest["files"] = {name: checksum(folder / name) for name in (RANKS_FILE, NAMES_FILE)}
    write_json(folder / MANIFEST, manifest)
    return manifest


def index_files(folder: Path) -> Iterator[RecordedFile]:
    """All files of an index, with their checksums. Raises InvalidFileError for a manifest of another format."""
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("shards"), list):
        raise InvalidFileError(
            f"{folder / MANIFEST} is damaged or of another version of Codekiln (format {FORMAT} is needed)"
        )
    for record in (manifest, *manifest["shards"]):
        yield from recorded_files(folder, record.get("files"), folder / MANIFEST)


def shard_paths(folder: Path, k: int) -> dict[str, Path]:
    """The files of shard k by what they hold."""
    return {part: folder / f"{part}-{k:05}.bin" for part in PARTS}


def _record_path(folder: Path, k: int) -> Path:
    return folder / f"shard-{k:05}.json"


def _make_plan(folder: Path, tokens: IndexedTokens, config: IndexConfig, inputs: JsonObject) -> _Plan:
    """Ranks, codes and shards. They depend on the tokens and the memory, and not on the machine."""
    lengths = tokens.lengths() + 1  # with separators
    ranks, counts = _rank_ids(tokens, len(lengths))
    code = shortest_code(counts)
    bytes_per_token = ranks.itemsize + SORTING_BYTES * code.n_bytes(counts) / max(1, int(counts.sum()))
    # Rare tokens have longer codes, and a shard may have more of them than others. Buffers and names need memory too.
    most = min(MAX_SHARD_TOKENS, int(config.memory_bytes / N_SHARDS_AT_ONCE / (1.4 * bytes_per_token)))
    if len(lengths) and lengths.max() > most:
        raise ConfigError(
            f"document {int(lengths.argmax())} has {int(lengths.max()):,} tokens, and {config.memory_bytes:,} bytes of memory "
            f"are enough for {most:,}: raise index.memory_bytes"
        )
    ends = np.concatenate([[0], np.cumsum(lengths)])
    bounds = [0]
    while bounds[-1] < len(lengths):
        bounds.append(int(np.searchsorted(ends, ends[bounds[-1]] + most, side="right")) - 1)
    plan_inputs = inputs | {"memory_bytes": config.memory_bytes}
    return _Plan(folder, tokens, ranks, counts, code, tuple(bounds), plan_inputs, np.diff(ends[bounds]))


def _shard(plan: _Plan, k: int) -> JsonObject:
    """The record of shard k, which is written unless a complete one from the same inputs exists."""
    record_path = _record_path(plan.folder, k)
    paths = shard_paths(plan.folder, k)
    expected = {
        "format": FORMAT,
        "inputs": plan.inputs,
        "first_document": plan.bounds[k],
        "documents": plan.bounds[k + 1] - plan.bounds[k],
        "tokens": int(plan.shard_tokens[k]),
    }
    try:
        record = read_json(record_path)
        files = record.pop("files", None)
        if record == expected and files == {path.name: checksum(path) for path in paths.values()}:
            return record | {"files": files}
    except (MissingFileError, InvalidFileError, FileNotFoundError):
        pass  # not complete
    for part, array in _sorted_shard(plan, k).items():
        with atomic_write(paths[part]) as temp_path:
            array.tofile(temp_path)
    record = expected | {"files": {path.name: checksum(path) for path in paths.values()}}
    write_json(record_path, record)
    return record


def _sorted_shard(plan: _Plan, k: int) -> dict[str, Array]:
    """The arrays of shard k."""
    first, last = plan.bounds[k], plan.bounds[k + 1]
    separator = plan.tokens.vocab_size
    text = np.empty(plan.shard_tokens[k], plan.ranks.dtype)
    filled = before = 0
    for ids, ends in zip(plan.tokens.ids, plan.tokens.document_ends, strict=True):
        start, stop = max(first - before, 0), min(last - before, len(ends))
        if start < stop:
            filled = join_documents(np.asarray(ids), ends, start, stop, plan.ranks, separator, text, filled)
        before += len(ends)
    suffixes, keys = _sort(text, separator, plan.code)
    separators = np.flatnonzero(text == separator)
    documents = np.concatenate([[0], separators + 1]).astype(np.int64)
    return {"text": text, "suffixes": suffixes, "keys": keys, "documents": documents}


def _sort(text: Array, separator: int, code: Code) -> tuple[Array, Array]:
    """The suffix array of ranks, and its keys."""
    counts, _ = count_ids(text, separator + 1)
    codes, begins = encode_ranks(text, code.n_short, code.n_middle, code.n_bytes(counts))
    suffixes = import_optional("pydivsufsort", "corpus").divsufsort(codes)
    n = keep_suffixes_of_tokens(suffixes, begins)
    assert n == len(text)
    return suffixes[:n], make_keys(text, suffixes[:n], rank_bits(separator))


def sort_documents(documents: Sequence[npt.NDArray[np.unsignedinteger]], vocab_size: int) -> SortedTokens:
    """An index of a few documents, given as their ids, in memory. It needs up to 20 bytes per token while it is built."""
    ids = np.concatenate([np.empty(0, np.int64), *documents])
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    tokens = IndexedTokens([ids.astype(np.uint32)], [ends], vocab_size)
    ranks, counts = _rank_ids(tokens, len(documents))
    text = np.empty(len(ids) + len(documents), ranks.dtype)
    join_documents(tokens.ids[0], ends, 0, len(documents), ranks, vocab_size, text, 0)
    suffixes, keys = _sort(text, vocab_size, shortest_code(counts))
    return SortedTokens(text, suffixes, keys, ranks, ids_of_ranks(ranks))


def _rank_ids(tokens: IndexedTokens, n_documents: int) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64]]:
    """The rank of each id by frequency, and how often each rank occurs, the separator included."""
    by_id = tokens.counts()
    order = np.argsort(-by_id, kind="stable")
    dtype: np.dtype[np.unsignedinteger] = np.dtype(np.uint16 if tokens.vocab_size < 2**16 else np.uint32)
    ranks: npt.NDArray[np.unsignedinteger] = np.empty(tokens.vocab_size, dtype)
    ranks[order] = np.arange(tokens.vocab_size, dtype=dtype)
    return ranks, np.append(by_id[order], n_documents)
