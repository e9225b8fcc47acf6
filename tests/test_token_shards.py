"""Token shards: what they hold, how they are written, and how damage is found."""

import dataclasses
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from codekiln.corpus.documents import FORMAT, SCHEMA, read_documents
from codekiln.errors import CorruptFileError
from codekiln.files import write_json
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.prepare import TokenShards, open_token_shards, prepare_shards
from tests.small import SPELLED, run_program, write_parts


def test_shards_hold_every_document_in_order(small_run: Path, shards: TokenShards, run_tokenizer: Tokenizer) -> None:
    documents = list(read_documents(small_run / "corpus", "train"))
    lengths = shards.lengths()
    assert shards.n_documents == len(documents)
    for n, document in enumerate(documents):
        ids = shards.slice(n, 0, int(lengths[n]))
        assert run_tokenizer.decode_bytes(ids.tolist()) == document.text.encode()
        assert run_tokenizer.special_ids.isdisjoint(ids.tolist())
    assert any(SPELLED in document.text for document in documents)


@pytest.mark.process
def test_shards_have_equal_bytes_for_any_number_of_threads_and_after_a_kill(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many parts; one and three threads of the encoder; one and four shards at once; killed after the third shard."""
    texts = [document.text for document in read_documents(small_run / "corpus", "train")] * 3
    rows = [dict.fromkeys(SCHEMA.names, "x") | {"text": text} for text in texts]
    batches = (pa.RecordBatch.from_pylist(rows[k : k + 5], SCHEMA) for k in range(0, len(rows), 5))
    parts = write_parts(tmp_path / "corpus" / "train", batches)
    assert len(parts) > 8
    entry = {"documents": len(rows), "text_bytes": sum(len(text.encode()) for text in texts), "parts": parts}
    write_json(tmp_path / "corpus" / "manifest.json", {"format": FORMAT, "splits": {"train": entry}})

    def written(name: str, *, threads: int, at_once: int, killed_after: int = -1) -> list[bytes]:
        """The bytes of all files that another process wrote."""
        paths = (tmp_path / "corpus", small_run / "tokenizer.json", tmp_path / name)
        arguments = (*paths, at_once, killed_after)
        done = run_program("write_shards.py", *arguments, check=False, RAYON_NUM_THREADS=str(threads))
        assert done.returncode == (0 if killed_after < 0 else -signal.SIGKILL), done.stderr
        return [file.read_bytes() for file in sorted((tmp_path / name).rglob("*.*"))]

    expected = written("one", threads=1, at_once=1)
    assert len(expected) == 3 * len(parts) + 1
    assert written("many", threads=3, at_once=4) == expected
    assert written("killed", threads=2, at_once=2, killed_after=2) != expected
    assert written("killed", threads=2, at_once=2) == expected


def test_complete_shards_are_kept_and_outdated_ones_written_again(small_run: Path, tmp_path: Path) -> None:
    arguments = (small_run / "corpus", small_run / "tokenizer.json", tmp_path / "tokens")
    first = prepare_shards(*arguments)
    tokens = tmp_path / "tokens" / "train" / "tokens-00000.bin"
    before = tokens.stat().st_mtime_ns
    (tmp_path / "tokens" / "manifest.json").unlink()
    assert prepare_shards(*arguments) == first
    assert tokens.stat().st_mtime_ns == before
    record = tmp_path / "tokens" / "train" / "shard-00000.json"
    record.write_text(record.read_text(encoding="utf-8").replace(first["tokenizer"], "0" * 64), encoding="utf-8")
    assert prepare_shards(*arguments) == first
    assert tokens.stat().st_mtime_ns != before


def test_corrupt_shard_is_named(small_run: Path, tmp_path: Path) -> None:
    prepare_shards(small_run / "corpus", small_run / "tokenizer.json", tmp_path)
    tokens = tmp_path / "train" / "tokens-00000.bin"
    data = bytearray(tokens.read_bytes())
    data[7] ^= 1
    tokens.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"tokens-00000\.bin"):
        open_token_shards(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="none"):
        open_token_shards(tmp_path / "none", "train")


def test_shards_are_written_concurrently(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts than threads, each tiny, so that some are being written whenever another one is finished."""
    monkeypatch.setattr("codekiln.train.prepare.N_SHARDS_AT_ONCE", 4)
    batches = [
        pa.RecordBatch.from_pylist([dataclasses.asdict(document)], SCHEMA)
        for document in list(read_documents(small_run / "corpus", "train")) * 6
    ]
    parts = write_parts(tmp_path / "corpus" / "train", iter(batches))
    entry = {"documents": len(batches), "text_bytes": 0, "parts": parts}
    write_json(tmp_path / "corpus" / "manifest.json", {"format": FORMAT, "splits": {"train": entry}})
    manifest = prepare_shards(tmp_path / "corpus", small_run / "tokenizer.json", tmp_path / "tokens")
    assert len(manifest["splits"]["train"]["shards"]) == len(parts) > 40
    assert open_token_shards(tmp_path / "tokens", "train").n_documents == len(batches)
