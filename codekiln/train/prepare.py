"""Token shards: the ids of a corpus part, and where its documents end.

`tokens-00000.bin` holds ids (uint16, or uint32 for vocabularies over 65,536), `ends-00000.bin` the running end of each
document (int64); shard k holds part k's documents in their order. A shard is a function of its part and the tokenizer
alone, so any number of threads writes the same bytes.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codekiln.corpus.documents import read_manifest, read_texts
from codekiln.files import Record, check_seal, read_record, replacing, seal, sha256_of, write_record
from codekiln.progress import task
from codekiln.tokenizer.bpe import Tokenizer

MANIFEST = "manifest.json"
# Shards under way at once: one reads and writes while another's texts are encoded, which all cores do.
N_SHARDS_AT_ONCE = 2


def prepare_shards(corpus: Path, tokenizer_path: Path, folder: Path) -> Record:
    """Writes the token shards of every split below `folder`, its manifest last. Whole shards from before are kept."""
    tokenizer = Tokenizer.load(tokenizer_path)
    made_from = {"tokenizer": sha256_of(tokenizer_path)}
    splits: Record = {}
    corpus_splits = read_manifest(corpus)["splits"]
    total = sum(split["documents"] for split in corpus_splits.values())
    with task("Tokens", total) as progress:
        for split, entry in corpus_splits.items():
            shards = []
            work = partial(_shard, corpus, folder, split, tokenizer, made_from)
            with ThreadPoolExecutor(N_SHARDS_AT_ONCE) as pool:
                under_way = [pool.submit(work, k, part) for k, part in enumerate(entry["parts"])]
                try:
                    for future in under_way:
                        shards.append(future.result())
                        progress.advance(shards[-1]["documents"])
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            splits[split] = {
                "documents": sum(shard["documents"] for shard in shards),
                "tokens": sum(shard["tokens"] for shard in shards),
                "text_bytes": entry["text_bytes"],
                "shards": shards,
            }
    manifest = {"dtype": _dtype(tokenizer).name, "vocab_size": tokenizer.vocab_size} | made_from | {"splits": splits}
    write_record(folder / MANIFEST, manifest)
    return manifest


def _shard(
    corpus: Path, folder: Path, split: str, tokenizer: Tokenizer, made_from: Record, k: int, part: Record
) -> Record:
    """The record of a shard: the one that stands if it was made from the same, else of the shard written now."""
    note = folder / split / f"shard-{k:05}.json"
    origin = made_from | {"part": part["sha256"]}
    if not note.is_file() or read_record(note)["made_from"] != origin:
        _write_shard(corpus, split, k, tokenizer, note, origin)
    return read_record(note)


def _write_shard(corpus: Path, split: str, k: int, tokenizer: Tokenizer, note: Path, origin: Record) -> None:
    tokens_path, ends_path = note.parent / f"tokens-{k:05}.bin", note.parent / f"ends-{k:05}.bin"
    ends = [np.empty(0, np.int64)]
    end = 0
    with replacing(tokens_path) as draft, draft.open("wb") as file:
        for texts in read_texts(corpus, split, k):
            ids, offsets = tokenizer.encode_flat(texts)
            file.write(ids.astype(_dtype(tokenizer)).tobytes())
            ends.append(offsets[1:] + end)
            end += len(ids)
    with replacing(ends_path) as draft:
        draft.write_bytes(np.concatenate(ends).tobytes())
    record = {"tokens": end, "documents": sum(map(len, ends)), "made_from": origin}
    write_record(note, record | {"files": {path.name: seal(path) for path in (tokens_path, ends_path)}})


@dataclass(frozen=True)
class Shards:
    """The shards of a split as one sequence of documents. `ids[k]` are memory maps, `ends[k]` arrays."""

    ids: tuple[npt.NDArray[np.unsignedinteger], ...]
    ends: tuple[npt.NDArray[np.int64], ...]

    @property
    def n_documents(self) -> int:
        return sum(len(ends) for ends in self.ends)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, in order."""
        return np.concatenate([np.diff(ends, prepend=0) for ends in self.ends])

    def slice(self, document: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids [start, stop) of a document."""
        shard = 0
        while document >= len(self.ends[shard]):
            document -= len(self.ends[shard])
            shard += 1
        first = int(self.ends[shard][document - 1]) if document else 0
        return np.asarray(self.ids[shard][first + start : first + stop], np.int64)


def open_shards(folder: Path, split: str, part: tuple[int, int] = (0, 1)) -> Shards:
    """Maps the shards of a split. Raises OSError or ValueError naming the one that is not as its seal says.

    Every shard is checked, or of `part[1]` parts of them the `part[0]`-th, where that many processes share the work.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no finished token shards: run `codekiln build` first")
    manifest = read_record(folder / MANIFEST)
    ids: list[npt.NDArray[np.unsignedinteger]] = []
    ends: list[npt.NDArray[np.int64]] = []
    for k, shard in enumerate(manifest["splits"][split]["shards"]):
        for name, sealed in shard["files"].items() if k % part[1] == part[0] else ():
            check_seal(folder / split / name, sealed, folder=folder)
        tokens = folder / split / f"tokens-{k:05}.bin"
        dtype = np.dtype(manifest["dtype"])
        # An empty file cannot be mapped.
        ids.append(np.memmap(tokens, dtype, mode="r") if shard["tokens"] else np.empty(0, dtype))
        ends.append(np.fromfile(folder / split / f"ends-{k:05}.bin", np.int64))
    return Shards(tuple(ids), tuple(ends))


def _dtype(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
