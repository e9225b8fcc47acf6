"""Token shards: the ids of a corpus part, and the offsets of its documents.

`tokens-00000.bin` holds ids (uint16, or uint32 for vocabularies over 65,536). `offsets-00000.bin` holds the offset where each
document ends (int64). Shard k has the documents of corpus part k in their order. It depends on that part and the tokenizer
only, so any number of threads writes the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codekiln.arrays import map_array
from codekiln.corpus.documents import MANIFEST, read_manifest, read_texts
from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.files import (
    JsonObject,
    RecordedFile,
    atomic_write,
    checksum,
    read_json,
    recorded_files,
    sha256_of,
    verify_checksum,
    write_json,
)
from codekiln.progress import progress_bar
from codekiln.threads import results_in_order
from codekiln.tokenizer.bpe import Tokenizer

FORMAT = 1  # of the manifest and of the records of shards
# Shards written in parallel: one reads and writes while the texts of another are encoded, which uses all cores.
N_SHARDS_AT_ONCE = 2


def prepare_shards(corpus: Path, tokenizer_path: Path, folder: Path) -> JsonObject:
    """Writes the token shards of every split in `folder`, and the manifest last. Complete shards are kept."""
    tokenizer = Tokenizer.load(tokenizer_path)
    inputs = {"tokenizer": sha256_of(tokenizer_path)}
    splits: JsonObject = {}
    corpus_splits = read_manifest(corpus)["splits"]
    total = sum(split["documents"] for split in corpus_splits.values())
    with progress_bar("Tokenize", total) as progress:
        for split, entry in corpus_splits.items():
            shards = []
            work = partial(_shard, corpus, folder, split, tokenizer, inputs, entry["parts"])
            for shard in results_in_order(work, len(entry["parts"]), N_SHARDS_AT_ONCE):
                shards.append(shard)
                progress.advance(shard["documents"])
            splits[split] = {
                "documents": sum(shard["documents"] for shard in shards),
                "tokens": sum(shard["tokens"] for shard in shards),
                "text_bytes": entry["text_bytes"],
                "shards": shards,
            }
    manifest = {"format": FORMAT, "dtype": _dtype(tokenizer).name, "vocab_size": tokenizer.vocab_size}
    manifest |= inputs | {"splits": splits}
    write_json(folder / MANIFEST, manifest)
    return manifest


def _shard(
    corpus: Path, folder: Path, split: str, tokenizer: Tokenizer, inputs: JsonObject, parts: list[JsonObject], k: int
) -> JsonObject:
    """The record of a shard, which is written unless a complete one from the same inputs exists."""
    record_path = folder / split / f"shard-{k:05}.json"
    origin = inputs | {"part": parts[k]["sha256"]}
    if (record := _read_record(record_path)) is None or record["inputs"] != origin:
        _write_shard(corpus, split, k, tokenizer, record_path, origin)
        record = read_json(record_path)
    return record


def _read_record(path: Path) -> JsonObject | None:
    """The record of a shard; None if it is missing or damaged, so that the shard is written again."""
    try:
        record = read_json(path)
    except (MissingFileError, InvalidFileError):
        return None
    kinds = {"tokens": int, "documents": int, "inputs": dict, "files": dict}
    is_whole = record.get("format") == FORMAT and all(
        isinstance(record.get(name), kind) for name, kind in kinds.items()
    )
    return record if is_whole else None


def _write_shard(corpus: Path, split: str, k: int, tokenizer: Tokenizer, record_path: Path, origin: JsonObject) -> None:
    tokens_path, offsets_path = record_path.parent / f"tokens-{k:05}.bin", record_path.parent / f"offsets-{k:05}.bin"
    document_offsets = [np.empty(0, np.int64)]
    end = 0
    with atomic_write(tokens_path) as temp_path, temp_path.open("wb") as file:
        for texts in read_texts(corpus, split, k):
            ids, offsets = tokenizer.encode_flat([tokenizer.document_start + text for text in texts])
            file.write(ids.astype(_dtype(tokenizer)).tobytes())
            document_offsets.append(offsets[1:] + end)
            end += len(ids)
    with atomic_write(offsets_path) as temp_path:
        temp_path.write_bytes(np.concatenate(document_offsets).tobytes())
    record = {"format": FORMAT, "tokens": end, "documents": sum(map(len, document_offsets)), "inputs": origin}
    write_json(record_path, record | {"files": {path.name: checksum(path) for path in (tokens_path, offsets_path)}})


@dataclass(frozen=True)
class TokenShards:
    """The shards of a split as one list of documents. `ids[k]` are memory maps, `document_offsets[k]` arrays."""

    ids: tuple[npt.NDArray[np.unsignedinteger], ...]
    document_offsets: tuple[npt.NDArray[np.int64], ...]

    @property
    def n_documents(self) -> int:
        return sum(len(document_offsets) for document_offsets in self.document_offsets)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, in order."""
        return np.concatenate([np.diff(document_offsets, prepend=0) for document_offsets in self.document_offsets])

    def slice(self, document: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids [start, stop) of a document."""
        shard = 0
        while document >= len(self.document_offsets[shard]):
            document -= len(self.document_offsets[shard])
            shard += 1
        first = int(self.document_offsets[shard][document - 1]) if document else 0
        return np.asarray(self.ids[shard][first + start : first + stop], np.int64)


def open_token_shards(folder: Path, split: str, *, rank: int = 0, world_size: int = 1) -> TokenShards:
    """Maps the shards of a split into memory. Raises CodekilnError that names a missing or corrupt file.

    Every shard is verified; several ranks share that work.
    """
    manifest = _read_manifest(folder)
    ids: list[npt.NDArray[np.unsignedinteger]] = []
    document_offsets: list[npt.NDArray[np.int64]] = []
    for k, shard in enumerate(manifest["splits"][split]["shards"]):
        for name, recorded in shard["files"].items() if k % world_size == rank else ():
            verify_checksum(folder / split / name, recorded, folder=folder)
        tokens = folder / split / f"tokens-{k:05}.bin"
        dtype = np.dtype(manifest["dtype"])
        ids.append(map_array(tokens, dtype))
        document_offsets.append(np.fromfile(folder / split / f"offsets-{k:05}.bin", np.int64))
    return TokenShards(tuple(ids), tuple(document_offsets))


def token_files(folder: Path) -> Iterator[RecordedFile]:
    """The files of all shards, with their checksums."""
    for split, entry in _read_manifest(folder)["splits"].items():
        for shard in entry["shards"]:
            yield from recorded_files(folder / split, shard.get("files"), folder / MANIFEST)


def _read_manifest(folder: Path) -> JsonObject:
    if not (folder / MANIFEST).is_file():
        raise MissingFileError(f"{folder} has no finished token shards: run `codekiln train` first")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT or manifest.get("dtype") not in ("uint16", "uint32"):
        raise InvalidFileError(
            f"{folder / MANIFEST} is damaged or of another version of Codekiln (format {FORMAT} is needed): "
            f"remove {folder} and run the same command again"
        )
    return manifest


def _dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
