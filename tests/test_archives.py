"""Data sets in files: published shapes, every format against the same documents, ranges, and hostile input."""

import functools
import gzip
import http.server
import io
import itertools
import json
import os
import pickle
import random
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.decoding import NOT_UTF8
from codekiln.corpus.documents import read_documents
from codekiln.corpus.languages import LANGUAGES, known_language
from codekiln.corpus.licenses import UNKNOWN
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.reading import NAME_NOT_UTF8, UnitReader, read_document, with_utf8_names
from codekiln.corpus.sources import archives, partitions, records, tar_members
from codekiln.corpus.sources.archives import LONG_NAME, NO_TEXT, OTHER_TYPE, Archives, Columns, license_of
from codekiln.corpus.sources.blobs import BAD_ID, BlobStore
from codekiln.corpus.sources.data_files import find_data_files, format_of
from codekiln.corpus.sources.data_sets import (
    hugging_face_folder,
    pile,
    the_stack,
    the_stack_v2,
    the_stack_v2_repositories,
)
from codekiln.corpus.sources.files import Source, SourceFile
from codekiln.corpus.sources.github_export import BAD_ROW, BINARY, NO_CONTENT, GitHubExport
from codekiln.corpus.sources.ignored import VENDORED_REASON
from codekiln.corpus.sources.members import (
    DAMAGED_MEMBER,
    ENCRYPTED,
    LINK,
    OTHER_METHOD,
    SPARSE,
    UNKNOWN_MEMBER,
    UNSAFE_NAME,
)
from codekiln.corpus.sources.records import NOT_JSON, NOT_OBJECT
from codekiln.corpus.sources.streams import BOMB, DAMAGED
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.errors import ConfigError, InvalidFileError, MissingFileError
from tests.small import ROOT, run_program, write_tree
from tests.test_corpus_sources import MIT_TEXT

TEXTS = Columns(text="text")
PROSE: dict[str, Any] = {"columns": TEXTS, "language": "Text", "languages": ()}


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def json_lines(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def files_of(source: Source, scratch: Path) -> list[SourceFile]:
    """As workers read them: each unit has been pickled."""
    units = [pickle.loads(pickle.dumps(unit)) for unit in source.units(scratch)]  # noqa: S301
    return [file for unit in units for file in unit.files()]


def prose(path: Path, **options: Any) -> Archives:
    return Archives(paths=(str(path),), **PROSE | options)


def read(file: SourceFile) -> bytes | str:
    assert file.problem is None, file
    return file.read()


def texts_of(source: Source, scratch: Path) -> dict[str, bytes | str]:
    return {file.path: read(file) for file in files_of(source, scratch) if file.problem is None}


def problems_of(source: Source, scratch: Path) -> list[tuple[str, str]]:
    """Path and problem, also of those that the reader of a unit finds."""
    found = []
    for file in map(with_utf8_names, files_of(source, scratch)):
        _, _, drop = read_document(file, CorpusConfig(sources=(), steps=()), steps=())
        if drop is not None:
            found.append((file.path, drop.reason))
    return found


# Published shapes


def test_the_pile_has_its_parts(tmp_path: Path) -> None:
    rows = [
        {"text": "def f():\n    return 'ü'\n", "meta": {"pile_set_name": "Github"}},
        {"text": "Q: why?", "meta": {"pile_set_name": "StackExchange"}},
        {"text": "A paper", "meta": {"pile_set_name": "ArXiv"}},
        {"text": "x = 1", "meta": {"pile_set_name": "Github"}},
    ]
    lines = [json_lines([row]) for row in rows]
    (tmp_path / "00.jsonl.zst").write_bytes(zstd(b"".join(lines[:2])) + zstd(b"".join(lines[2:])))  # two frames
    (tmp_path / "01.jsonl.zst").write_bytes(zstd(json_lines([rows[0] | {"text": "other"}])))
    source = pile((str(tmp_path),), parts=("Github", "StackExchange"))
    found = files_of(source, tmp_path)
    last = sum(map(len, lines[:3]))
    assert [(file.repository, file.path, read(file)) for file in found] == [
        ("Github", "00/0", "def f():\n    return 'ü'\n"),
        ("StackExchange", f"00/{len(lines[0])}", "Q: why?"),
        ("Github", f"00/{last}", "x = 1"),
        ("Github", "01/0", "other"),
    ]
    first = found[0]
    assert (first.source, first.language, first.is_prose, first.max_bytes) == ("pile", "Text", True, 100_000_000)
    assert (first.license, first.is_license_given, first.revision, first.size) == (UNKNOWN, False, "-", 25)
    assert len(files_of(pile((str(tmp_path),)), tmp_path)) == 5
    licensed = files_of(pile((str(tmp_path),), license="MIT"), tmp_path)
    assert {(file.license, file.is_license_given) for file in licensed} == {("MIT", True)}
    with pytest.raises(ConfigError, match=r"no part GitHub: its parts are ArXiv.*Github"):
        pile(("x",), parts=("GitHub",))


def test_the_stack_has_the_columns_of_the_repository_with_the_most_stars(tmp_path: Path) -> None:
    rows = [
        {
            "hexsha": "a" * 40, "size": 6, "ext": "py", "lang": "Python", "max_stars_repo_path": "src/a.py",
            "max_stars_repo_name": "ada/one", "max_stars_repo_head_hexsha": "b" * 40,
            "max_stars_repo_licenses": ["MIT", "Apache-2.0"], "max_stars_count": 7.0, "content": "x = 1\n",
        },
        {
            "hexsha": "c" * 40, "size": 2, "ext": "ipynb", "lang": "Jupyter Notebook", "max_stars_repo_path": "n.ipynb",
            "max_stars_repo_name": "ada/two", "max_stars_repo_head_hexsha": "d" * 40,
            "max_stars_repo_licenses": [], "max_stars_count": None, "content": "{}",
        },
        {
            "hexsha": "e" * 40, "size": 2, "ext": "zig", "lang": "Zig", "max_stars_repo_path": "a.zig",
            "max_stars_repo_name": "ada/three", "max_stars_repo_head_hexsha": "f" * 40,
            "max_stars_repo_licenses": ["Foo-1.0", "MIT"], "max_stars_count": 3.0, "content": "z",
        },
    ]  # fmt: skip
    (tmp_path / "data" / "python").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "python" / "train-00000-of-00001.parquet")
    one, two = files_of(the_stack((str(tmp_path / "data"),)), tmp_path)
    assert (one.source, one.repository, one.revision, one.path) == ("github", "ada/one", "b" * 40, "src/a.py")
    assert (one.license, one.stars, one.language, one.size) == ("Apache-2.0 AND MIT", 7, "Python", 6)
    assert (one.is_license_given, one.is_prose, read(one)) == (False, False, "x = 1\n")
    assert (two.license, two.stars, two.language) == (UNKNOWN, None, "Jupyter")
    (zig,) = files_of(the_stack((str(tmp_path / "data"),), languages=("Zig",)), tmp_path)
    assert (zig.path, zig.license) == ("a.zig", UNKNOWN)


def test_contents_of_the_stack_v2_are_read_from_a_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    contents = {"1" * 40: "naïve = 1\n".encode("latin-1"), "2" * 40: b"x" * 50, "3" * 40: b"y" * 3_000_000}
    for blob_id, content in contents.items():
        (store / blob_id).write_bytes(gzip.compress(content))
    (store / ("4" * 40)).write_bytes(gzip.compress(b"truncated")[:-9])
    (store / ("5" * 40)).write_bytes(b"not gzip")
    ids = ["1" * 40, "2" * 40, "3" * 40, "4" * 40, "5" * 40, "6" * 40, "../" + "1" * 40, "1" * 40]
    encodings = ["ISO-8859-1", "UTF-8", "UTF-8", "UTF-8", "UTF-8", "UTF-8", "UTF-8", "rot13"]
    rows = [
        {
            "blob_id": blob_id, "directory_id": "", "path": f"/src/{n}.py", "repo_name": "ada/one", "revision_id": "b" * 40,
            "detected_licenses": ["MIT"], "license_type": "permissive", "src_encoding": encoding, "language": "Python",
            "star_events_count": n, "length_bytes": 10, "extension": "py",
        }
        for n, (blob_id, encoding) in enumerate(zip(ids, encodings, strict=True))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ids.parquet")
    source = the_stack_v2((str(tmp_path / "ids.parquet"),), blobs=BlobStore(url=f"file://{store}"))
    found = files_of(source, tmp_path)
    assert (read(found[0]), found[0].path, found[0].license, found[0].stars) == ("naïve = 1\n", "src/0.py", "MIT", 0)
    assert (found[0].revision, found[0].size, read(found[1])) == ("b" * 40, 10, "x" * 50)
    assert dict(problems_of(source, tmp_path)) == {
        "src/2.py": "over 1,000,000 bytes",
        "src/3.py": "unreadable",
        "src/4.py": "unreadable",
        "src/5.py": "unreadable",
        "src/6.py": BAD_ID,
        "src/7.py": "unknown encoding",
    }


def test_files_of_the_stack_v2_by_repository(tmp_path: Path) -> None:
    """A row has a list of files, as in the training sets of StarCoder2."""
    store = tmp_path / "store"
    store.mkdir()
    (store / ("1" * 40)).write_bytes(gzip.compress(b"one = 1\n"))
    (store / ("2" * 40)).write_bytes(gzip.compress("zwei = 'ä'\n".encode("latin-1")))

    def file(blob_id: str, path: str, language: str, encoding: str = "UTF-8") -> dict[str, Any]:
        return {
            "blob_id": blob_id, "path": path, "content_id": blob_id, "language": language, "length_bytes": 8,
            "detected_licenses": ["MIT", "Apache-2.0"], "license_type": "permissive", "src_encoding": encoding,
            "is_vendor": False, "is_generated": False,
        }  # fmt: skip

    rows = [
        {"repo_name": "ada/one", "revision_id": "a" * 40, "star_events_count": 3, "num_files": 3, "files": [
            file("1" * 40, "/src/one.py", "Python"), file("2" * 40, "/zwei.py", "Python", "ISO-8859-1"),
            file("2" * 40, "/a.txt", "Text"),
        ]},
        {"repo_name": "ada/none", "revision_id": "b" * 40, "star_events_count": 0, "num_files": 0, "files": []},
        {"repo_name": "ada/null", "revision_id": "c" * 40, "star_events_count": 0, "num_files": 0, "files": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ids.parquet")
    source = the_stack_v2_repositories((str(tmp_path / "ids.parquet"),), blobs=BlobStore(url=f"file://{store}"))
    one, two, null = files_of(source, tmp_path)
    assert (one.repository, one.path, one.revision, one.stars) == ("ada/one", "src/one.py", "a" * 40, 3)
    assert (read(one), read(two), one.license) == ("one = 1\n", "zwei = 'ä'\n", "Apache-2.0 AND MIT")
    assert (null.path, null.problem) == ("ids/2/0", NO_TEXT)


def test_a_list_of_files_in_another_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a dot"):
        Columns(files="meta.files", text="meta.files.blob_id")


def test_blobs_are_requested_before_their_turn(tmp_path: Path) -> None:
    """A server holds back all answers until 32 requests have come. Files that are too large are not requested."""
    wanted = [f"{n:040x}" for n in range(40)]
    together, asked = threading.Barrier(32), Counter[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            asked[name] += 1
            if asked[name] == 1 and int(name, 16) < 32:
                together.wait(30)
            content = gzip.compress(f"value = {int(name, 16)}\n".encode())
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    rows = [
        {"blob_id": blob_id, "path": f"{n}.py", "repo_name": "ada/one", "revision_id": "a" * 40,
         "detected_licenses": ["MIT"], "src_encoding": "UTF-8", "language": "Python", "star_events_count": 0,
         "length_bytes": 10 if n < 40 else 2_000_000}
        for n, blob_id in enumerate([*wanted, "f" * 40])
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ids.parquet")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = BlobStore(url=f"http://127.0.0.1:{server.server_port}/content")
        source = the_stack_v2((str(tmp_path / "ids.parquet"),), blobs=store)
        config = CorpusConfig(sources=(source,), validation_fraction=0.0)
        build_corpus(config, tmp_path / "corpus")
        server.shutdown()
    texts = [document.text for document in read_documents(tmp_path / "corpus", "train")]
    assert texts == [f"value = {n}\n" for n in range(40)]
    assert set(asked) == set(wanted)


def test_a_store_that_cannot_be_reached_stops_the_corpus(tmp_path: Path) -> None:
    """Otherwise every content would be counted as missing."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ("1" * 40)).mkdir()  # reading a folder fails with an error other than a missing file
    pq.write_table(
        pa.table({name: ["1" * 40] for name in the_stack_v2(()).columns.names() if name != "length_bytes"}
                 | {"length_bytes": [3], "language": ["Python"]}),
        tmp_path / "ids.parquet",
    )  # fmt: skip
    source = the_stack_v2((str(tmp_path / "ids.parquet"),), blobs=BlobStore(url=f"file://{tmp_path}/store"))
    (file,) = files_of(source, tmp_path)
    with pytest.raises(InvalidFileError, match="then run again"):
        file.read()


def test_a_hugging_face_folder_has_the_files_of_its_split(tmp_path: Path) -> None:
    """As the hub's cache has it: the files of a snapshot are links to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for folder in (blobs, snapshot / "data", snapshot / "holdout"):
        folder.mkdir(parents=True)
    for n, name in enumerate(("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "holdout/x.jsonl")):
        (blobs / f"{n}").write_bytes(json_lines([{"body": name, "repo": "r"}]))
        (snapshot / name).symlink_to(Path("../../../blobs") / f"{n}")
    (tmp_path / "private.jsonl").write_bytes(json_lines([{"body": "private"}]))
    (snapshot / "data" / "train-evil.jsonl").symlink_to(tmp_path / "private.jsonl")
    columns = Columns(text="body", repository="repo")
    assert set(texts_of(hugging_face_folder(snapshot, columns=columns), tmp_path).values()) == {
        "data/train-00000-of-00001.jsonl"
    }
    card = "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path:\n    - holdout/*\n"
    (snapshot / "README.md").write_text(card + "---\n# Card\n", encoding="utf-8")
    (file,) = files_of(hugging_face_folder(snapshot, columns=columns, license="Apache-2.0"), tmp_path)
    assert (read(file), file.repository, file.license, file.is_prose) == ("holdout/x.jsonl", "r", "Apache-2.0", True)
    with pytest.raises(MissingFileError, match="split test"):
        hugging_face_folder(snapshot, columns=columns, split="test")
    (snapshot / "README.md").write_text("---\nconfigs: [\n---\n", encoding="utf-8")
    with pytest.raises(InvalidFileError, match="metadata"):
        hugging_face_folder(snapshot, columns=columns)


def write_export(folder: Path, tables: dict[str, list[dict[str, Any]]], kind: str) -> Path:
    """The tables of the export, each in two files."""
    for name, rows in tables.items():
        (folder / name).mkdir(parents=True)
        for k in range(2):
            part = rows[k::2]
            if kind == "parquet":
                pq.write_table(
                    pa.Table.from_pylist(part, pa.Table.from_pylist(rows).schema), folder / name / f"{k}.parquet"
                )
            else:
                (folder / name / f"{k:012}.json.gz").write_bytes(gzip.compress(json_lines(part)))
    return folder


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_the_github_export_is_joined_as_by_brute_force(kind: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    ids = [f"{n:040x}" for n in range(60)]
    repositories = [f"user{n}/project{n % 3}" for n in range(12)]
    licenses = {name: rng.choice(["mit", "apache-2.0", "gpl-2.0", "artistic-2.0"]) for name in repositories[:9]}
    spdx = {"mit": "MIT", "apache-2.0": "Apache-2.0", "gpl-2.0": "GPL-2.0-only", "artistic-2.0": "Artistic-2.0"}
    copies: list[dict[str, Any]] = [
        {
            "repo_name": rng.choice(repositories), "ref": "refs/heads/master", "id": rng.choice(ids),
            "path": f"src/{rng.randrange(30)}{rng.choice(['.py', '.js', '.png', '.h'])}",
            "mode": rng.choice([33188, 33188, 33188, 40960]), "symlink_target": None,
        }
        for _ in range(300)
    ]  # fmt: skip
    contents: list[dict[str, Any]] = [
        {"id": i, "size": 9, "content": f"text of {i} é", "binary": False, "copies": 1} for i in ids[:55]
    ]
    contents[3] |= {"content": None, "binary": True}
    contents[4]["content"] = None
    rng.shuffle(contents)
    tables = {
        "files": copies,
        "contents": contents,
        "licenses": [{"repo_name": name, "license": key} for name, key in licenses.items()],
    }
    folder = write_export(tmp_path / "export", tables, kind)
    chosen: dict[str, tuple[str, str]] = {}
    for copy in copies:
        name = (copy["repo_name"], copy["path"])
        if copy["mode"] == 33188 and copy["path"].endswith((".py", ".h")):
            chosen[copy["id"]] = min(name, chosen.get(copy["id"], name))
    text_of = {row["id"]: row["content"] for row in contents}
    expected = set()
    for i, (repository, path) in chosen.items():
        license = spdx.get(licenses.get(repository, ""), UNKNOWN)
        problem = NO_CONTENT if i not in text_of else BINARY if i == ids[3] else NO_TEXT if i == ids[4] else None
        expected.add((repository, path, license, problem or text_of[i]))
    for n, partition_bytes in enumerate((2**30, 200)):
        source = GitHubExport(folder=str(folder), languages=("Python", "C"), partition_bytes=partition_bytes)
        units = list(source.units(tmp_path / f"scratch{n}"))
        assert (len(units) == 1) == (n == 0)
        found = [file for unit in units for file in pickle.loads(pickle.dumps(unit)).files()]  # noqa: S301
        read_rows = [(f.repository, f.path, f.license, f.problem or str(f.read())) for f in found]
        assert len(read_rows) == len(set(read_rows)) and set(read_rows) == expected
        assert {(file.source, file.is_license_given, file.languages) for file in found} == {
            ("github", False, ("Python", "C"))
        }
    stamp = (tmp_path / "scratch0" / "github" / "partitions.json").stat().st_mtime_ns
    again = GitHubExport(folder=str(folder), languages=("Python", "C"), partition_bytes=2**30)
    assert len(list(again.units(tmp_path / "scratch0"))) == 1
    assert (tmp_path / "scratch0" / "github" / "partitions.json").stat().st_mtime_ns == stamp
    before = again.fingerprint()
    (folder / "licenses" / ("2.parquet" if kind == "parquet" else "2.json")).write_bytes(b"")
    assert again.fingerprint() != before


@pytest.mark.parametrize("n_writes", [3, 40, 90, 150])
def test_sorting_of_the_github_export_continues(n_writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in each table, and while licenses are looked up: parts that were read are not read again."""
    rows = range(60)
    tables: dict[str, list[dict[str, Any]]] = {
        "files": [{"repo_name": f"user/{n % 7}", "id": f"{n:040x}", "path": f"{n}.py", "mode": 33188} for n in rows],
        "contents": [{"id": f"{n:040x}", "content": f"x = {n}\n", "binary": "false"} for n in rows],
        "licenses": [{"repo_name": f"user/{n}", "license": "mit"} for n in range(5)],
    }
    source = GitHubExport(folder=str(write_export(tmp_path / "export", tables, "json")), partition_bytes=300)

    def rows_of(scratch: Path) -> list[tuple[str, str, str, str]]:
        files = [file for unit in source.units(scratch) for file in unit.files()]
        return [(file.repository, file.path, file.license, str(file.read())) for file in files]

    expected = rows_of(tmp_path / "whole")
    assert len(expected) == 60
    n_left, n_read = n_writes, 0
    write, read_records = partitions.PartitionWriter.write, records.Lines.records

    def write_until_killed(self: partitions.PartitionWriter, partition: int, row: Any) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise KeyboardInterrupt
        write(self, partition, row)

    def counted_records(self: records.Lines, *arguments: Any) -> Any:
        nonlocal n_read
        n_read += 1
        return read_records(self, *arguments)

    monkeypatch.setattr(partitions.PartitionWriter, "write", write_until_killed)
    monkeypatch.setattr(records.Lines, "records", counted_records)
    with pytest.raises(KeyboardInterrupt):
        rows_of(tmp_path / "killed")
    n_left = 10**6
    assert rows_of(tmp_path / "killed") == expected
    assert n_read in (6, 7)  # of two parts of three tables, the one that was being read


def test_damaged_rows_of_the_github_export_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    good = {"id": "1" * 40, "content": "x = 1\n", "binary": "false"}
    lines = [
        json_lines([good]),
        b"{not json}\n",
        json_lines([{"id": 5, "content": "x", "binary": False}, {"content": "x"}, [1]]),
        b'{"id": "' + b"2" * 40 + b'", "content": "\\ud800", "binary": false}\n',
        b'{"id": "\\ud800", "content": "x"}\n',
    ]
    for name in ("files", "contents", "licenses"):
        (folder / name).mkdir(parents=True)
    (folder / "contents" / "0.json").write_bytes(b"".join(lines))
    rows = [{"repo_name": "a/b", "path": f"{n}.py", "id": str(n) * 40, "mode": "33188"} for n in (1, 2)]
    (folder / "files" / "0.json").write_bytes(json_lines([*rows, {"repo_name": "a/b", "path": "c.py"}]))
    (folder / "licenses" / "0.json").write_bytes(json_lines([{"repo_name": "a/b", "license": "mit"}, {"license": 1}]))
    found = files_of(GitHubExport(folder=str(folder)), tmp_path / "scratch")
    problems = sorted((file.problem or "", file.path) for file in found)
    at = [sum(map(len, lines[:k])) for k in range(6)]
    second = at[2] + len(json_lines([{"id": 5, "content": "x", "binary": False}]))
    third = second + len(json_lines([{"content": "x"}]))
    assert problems == sorted([
        ("", "1.py"), (NOT_JSON, f"0.json/{at[1]}"), (BAD_ROW, f"0.json/{at[2]}"), (BAD_ROW, f"0.json/{second}"),
        (NOT_OBJECT, f"0.json/{third}"), (NOT_UTF8, "2.py"), (BAD_ROW, f"0.json/{at[4]}"),
        (BAD_ROW, f"0.json/{len(json_lines(rows))}"),
    ])  # fmt: skip
    (folder / "contents" / "0.json").rename(tmp_path / "0.json")
    with pytest.raises(MissingFileError, match="contents"):
        list(GitHubExport(folder=str(folder)).units(tmp_path / "other"))
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), folder / "contents" / "0.parquet")
    with pytest.raises(InvalidFileError, match="has no column content: it has id, text"):
        list(GitHubExport(folder=str(folder)).units(tmp_path / "other"))


# Every format


def write_packed(code: Path, folder: Path) -> dict[str, Archives]:
    """The files of `write_tree` in each format, written by other libraries than those that read them."""
    paths = sorted(path for path in code.rglob("*") if path.is_file())
    names = [path.relative_to(code).as_posix() for path in paths]
    rows = [
        {
            "text": path.read_text(encoding="utf-8"),
            "meta": {"path": name.partition("/")[2], "repo": name.partition("/")[0]},
        }
        for path, name in zip(paths, names, strict=True)
    ]
    folder.mkdir()
    lines = json_lines(rows)
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.json.gz").write_bytes(gzip.compress(lines))
    (folder / "c.jsonl.zst").write_bytes(zstd(lines))
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet", row_group_size=3)
    for name, mode in (("e.tar", "w:"), ("f.tar.gz", "w:gz"), ("pax.tar", "w:")):
        kind = tarfile.PAX_FORMAT if name == "pax.tar" else tarfile.GNU_FORMAT
        with tarfile.open(folder / name, mode, format=kind) as archive:  # type: ignore[call-overload]
            for path, member in zip(paths, names, strict=True):
                archive.add(path, member)
    (folder / "g.tar.zst").write_bytes(zstd((folder / "e.tar").read_bytes()))
    with zipfile.ZipFile(folder / "h.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for n, (path, member) in enumerate(zip(paths, names, strict=True)):
            packed.write(path, member, zipfile.ZIP_STORED if n % 2 else zipfile.ZIP_DEFLATED)
    columns = Columns(text="text", path="meta.path", repository="meta.repo")
    return {
        path.name: Archives(paths=(str(path),), columns=columns, source="tree", license="MIT")
        for path in sorted(folder.iterdir())
    }


def test_every_format_gives_the_same_corpus(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    long = code / "repository0" / ("folder" * 12) / ("deep" * 12)
    long.mkdir(parents=True)
    (long / "name.py").write_text("def long_name():\n    return 'in extended headers'\n", encoding="utf-8")
    (code / "repository1" / "mark.py").write_text("\ufeffdef marked():\n    return 'ü'\n", encoding="utf-8")
    sources = write_packed(code, tmp_path / "packed")
    expected = build(LocalRepositories(folder=code, license="MIT"), tmp_path / "expected")
    assert expected["manifest.json"]
    for name, source in sources.items():
        assert build(source, tmp_path / f"corpus-{name}") == expected, name


def build(source: Source, out: Path) -> dict[str, bytes]:
    """The files of a corpus, without the plan: it has the checksums of the input."""
    build_corpus(CorpusConfig(sources=(source,), validation_fraction=0.1), out)
    paths = (path for path in out.rglob("*") if path.is_file() and path.name != "plan.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_licenses_in_archives_are_those_of_folders(tmp_path: Path) -> None:
    """The nearest folder counts, in any order of the members: also copies of other projects in a repository."""
    isc = "Permission to use, copy, modify, and/or distribute this software for any purpose\n"
    files = {
        "one/a.py": "x", "one/LICENSE": MIT_TEXT, "one/lib/b.py": "x", "one/lib/gpl/COPYING": "GNU General Public License",
        "one/lib/gpl/deep/c.py": "x", "one/lib/package/package.json": '{"license": "ISC"}', "one/lib/package/d.py": "x",
        "two/pyproject.toml": '[project]\nlicense = {file = "terms.txt"}\n', "two/e.py": "x", "two/LICENSE.md": isc,
        "two/setup.cfg": "[metadata]\nlicense = Apache-2.0\n", "three/f.py": "x",
        "four/g.py": "x", "four/pyproject.toml": '[project]\nlicense = {file = "TERMS"}\n', "four/TERMS": MIT_TEXT,
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(text, encoding="utf-8")
    expected = {
        f"{file.repository}/{file.path}": file.license for file in LocalRepositories(folder=tmp_path / "code").files()
    }
    assert expected["one/lib/gpl/deep/c.py"] == UNKNOWN and expected["one/lib/package/d.py"] == "ISC"
    assert expected["one/lib/b.py"] == expected["four/g.py"] == "MIT" and expected["two/e.py"] == "Apache-2.0"
    for seed in range(4):
        names = sorted(files)
        random.Random(seed).shuffle(names)
        names.sort(key=lambda name: name.split("/")[0])  # as in real archives, a repository is in one place
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in names:
                archive.add(tmp_path / "code" / name, name)
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
            for name in names:
                packed.write(tmp_path / "code" / name, name)
        for name in ("a.tar", "b.zip"):
            found = files_of(Archives(paths=(str(tmp_path / name),)), tmp_path)
            assert {f"{file.repository}/{file.path}": file.license for file in found} == expected, (seed, name)


def test_license_files_that_lead_to_others_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository in many places of the archive, each of which names a file that splits another one."""
    passes = 0
    read_members = tar_members.tar_members

    def counted_members(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return read_members(*arguments)

    monkeypatch.setattr(archives, "tar_members", counted_members)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for k in range(20, 0, -1):
            for name, data in (
                (f"r{k}/pyproject.toml", f'[project]\nlicense = {{file = "x{k}.txt"}}\n'),
                (f"r{k - 1}/x{k - 1}.txt", "x"),
                (f"r{k}/pyproject.toml", f'[project]\nlicense = {{file = "y{k}.txt"}}\n'),
                (f"r{k}/a.py", "a = 1\n"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data.encode()))
    assert len(files_of(Archives(paths=(str(tmp_path / "a.tar"),)), tmp_path)) == 20
    assert passes == 3


def test_lines_are_the_same_in_ranges_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    texts = ["x" * rng.choice([0, 1, 30, 200]) for _ in range(40)]
    data = json_lines({"text": text} for text in texts).replace(b"\n", b"\r\n").rstrip() + b""
    data = b"\n\n" + data.replace(b"\r\n", b"\n\n", 3)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "z" / "a.jsonl.zst").parent.mkdir()
    (tmp_path / "z" / "a.jsonl.zst").write_bytes(zstd(data))
    whole = [(f.path, read(f)) for f in files_of(prose(tmp_path / "z"), tmp_path)]
    assert [text for _, text in whole] == texts
    for size in (1, 2, 3, 7, 64, 211, 1000, len(data), 10**6):
        monkeypatch.setattr(records, "LINES_BYTES", size)
        source = prose(tmp_path / "a.jsonl")
        units = list(source.units(tmp_path))
        assert sum(unit.n_bytes for unit in units) == len(data) and len(units) == -(-len(data) // size)
        assert [(f.path, read(f)) for f in files_of(source, tmp_path)] == whole


def test_row_groups_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    texts = [rng.randbytes(500).hex() for _ in range(40)]
    table = pa.table({"text": texts, "unused": [rng.randbytes(200) for _ in texts]})
    pq.write_table(
        table,
        tmp_path / "a.parquet",
        row_group_size=3,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    monkeypatch.setattr(records, "ROWS_BYTES", 10_000)
    units = list(prose(tmp_path / "a.parquet").units(tmp_path))
    assert len(units) == 5  # groups of about 3,700 bytes
    assert texts_of(prose(tmp_path / "a.parquet"), tmp_path) == {f"a/{n}": text for n, text in enumerate(texts)}


def test_columns_of_other_types_are_read_or_counted(tmp_path: Path) -> None:
    binary = pa.array([b"x = '\xfc'", b"y", None], pa.binary())
    pq.write_table(pa.table({"text": binary}), tmp_path / "a.parquet")
    invalid = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfey")]
    )
    pq.write_table(pa.table({"text": invalid}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"text": pa.array(["large"], pa.large_string())}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"text": pa.array(["twice", "twice"]).dictionary_encode()}), tmp_path / "e.parquet")
    source = prose(tmp_path)
    assert texts_of(source, tmp_path) == {
        "a/0": b"x = '\xfc'", "a/1": b"y", "b/1": "y", "d/0": "large", "e/0": "twice", "e/1": "twice",
    }  # fmt: skip
    assert problems_of(source, tmp_path) == [
        ("a/0", NOT_UTF8), ("a/2", NO_TEXT), ("b/0", NOT_UTF8), ("c/0", OTHER_TYPE), ("c/1", OTHER_TYPE),
    ]  # fmt: skip


def test_licenses_of_columns_are_spdx_expressions() -> None:
    for value, expected in (
        ("mit", "MIT"), ("gpl-2.0", "GPL-2.0-only"), ("MIT OR Apache-2.0", "MIT OR Apache-2.0"), ("other", UNKNOWN),
        (["MIT"], "MIT"), (["MIT", "isc", "MIT"], "ISC AND MIT"), (["MIT", "secret"], UNKNOWN), (["MIT", 3], UNKNOWN),
        ([], UNKNOWN), (None, UNKNOWN), (3, UNKNOWN), ("x" * 10**6, UNKNOWN),
    ):  # fmt: skip
        assert license_of(value) == expected, value
    assert [known_language(name) for name in ("PYTHON", "C-Sharp", "Jupyter Notebook", "Zig")] == [
        "Python", "C#", "Jupyter", "Zig",
    ]  # fmt: skip


def test_the_language_of_rows_must_be_decided(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": "x"}]))
    with pytest.raises(ConfigError, match='language="Text"'):
        list(Archives(paths=(str(tmp_path),)).units(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(
        json_lines([{"text": "x", "p": "a.py"}, {"text": "y", "p": "a.png"}, {"text": "z"}])
    )
    source = Archives(paths=(str(tmp_path),), columns=Columns(path="p"))
    assert texts_of(source, tmp_path) == {"a.py": "x"}
    assert {file.languages for file in files_of(source, tmp_path)} == {LANGUAGES}


# Files


def test_files_are_found_in_a_fixed_order(tmp_path: Path) -> None:
    for name in (
        "b/2.jsonl",
        "b/1.jsonl.zst",
        "a.parquet",
        ".hidden/x.jsonl",
        "b/.x.jsonl",
        "README.md",
        "[1].zip",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "out.jsonl").symlink_to("/etc/hostname")
    (tmp_path / "in.jsonl").symlink_to("b/2.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    # The link inside is the same file as its target, which comes first by name.
    found = find_data_files([str(tmp_path)])
    assert [file.name for file in found] == ["[1].zip", "a.parquet", "b/1.jsonl.zst", "b/2.jsonl"]
    assert [f.name for f in find_data_files([f"{tmp_path}/b/*.jsonl", f"{tmp_path}/**/*.zst", f"{tmp_path}/[1].zip"])] == [
        "2.jsonl", "1.jsonl.zst", "[1].zip",
    ]  # fmt: skip
    for path, error in (
        (f"{tmp_path}/none", MissingFileError), (f"{tmp_path}/*.none", MissingFileError),
        (f"{tmp_path}/.hidden/y", MissingFileError), (f"{tmp_path}/README.md", ConfigError),
        ("memory://none/x.jsonl", MissingFileError), ("nonsense://x", InvalidFileError),
    ):  # fmt: skip
        with pytest.raises(error):
            find_data_files([path])
    assert [format_of(n) for n in ("a.JSONL.GZ", "a.tar", "a.b.json", "a.parquet.gz", "a.txt", ".zip")] == [
        "jsonl", "tar", "jsonl", None, None, None,
    ]  # fmt: skip


def test_other_file_systems_are_read_as_the_disk_is(tmp_path: Path) -> None:
    sources = write_packed(write_tree(tmp_path / "code"), tmp_path / "packed")
    memory = fsspec.filesystem("memory")
    for name, source in sources.items():
        memory.pipe(f"/bucket/data/{name}", (tmp_path / "packed" / name).read_bytes())
        options: dict[str, Any] = {"columns": source.columns, "license": "MIT"}
        expected = texts_of(Archives(paths=(str(tmp_path / "packed" / name),), **options), tmp_path)
        for path in (f"memory://bucket/data/{name}", f"file://{tmp_path}/packed/{name}"):
            assert texts_of(Archives(paths=(path,), **options), tmp_path) == expected and expected
    source = Archives(paths=("memory://bucket/data", "memory://bucket/*/a.jsonl"), columns=TEXTS, language="Text")
    found = find_data_files(source.paths)
    assert [file.name for file in found] == sorted(sources)
    assert found[0].location == "memory:///bucket/data/a.jsonl" or found[0].location == "memory://bucket/data/a.jsonl"
    before = source.fingerprint()
    assert before == source.fingerprint()
    memory.pipe("/bucket/data/a.jsonl", b"{}")
    assert source.fingerprint() != before
    memory.rm("/bucket", recursive=True)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_a_web_server_is_read_as_the_disk_is(tmp_path: Path) -> None:
    sources = write_packed(write_tree(tmp_path / "code"), tmp_path / "packed")
    handler = functools.partial(_Quiet, directory=str(tmp_path / "packed"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name in ("a.jsonl", "c.jsonl.zst", "g.tar.zst"):
            source = sources[name]
            expected = texts_of(source, tmp_path)
            remote = Archives(paths=(f"{address}/{name}",), columns=source.columns, license="MIT")
            assert texts_of(remote, tmp_path) == expected and expected
            assert remote.fingerprint()["files"] == 1
        with pytest.raises(MissingFileError, match="does not exist"):
            find_data_files([f"{address}/none.jsonl"])
        server.shutdown()
    reader, _ = BlobStore(url=address).reader("1" * 40, None, 1000)
    for use in (lambda: find_data_files([f"{address}/a.jsonl"]), reader):  # the server is gone
        with pytest.raises(InvalidFileError, match="check the network"):
            use()


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": "x"}]))
    source = prose(tmp_path)
    before = source.fingerprint()
    assert json.loads(json.dumps(before)) == before == source.fingerprint()
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": "y"}]))
    assert source.fingerprint() != before


# Hostile tables


def test_bad_lines_are_counted_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}', b"{not json", b"[1, 2]", b'"text"', b"null", b'{"text": "\xff"}', b"{}",
        b'{"text": 3}', b'{"text": null}', b'{"text": ["x"]}', b'{"text": "' + b"y" * 50_000_000 + b'"}', b"[" * 100_000,
        b'{"text": "\\ud800"}', b'{"text": 1' + b"0" * 10_000 + b"}", b'{"text": "last", "text2": NaN}', b'{"text": "cut',
    ]  # fmt: skip
    expected = [
        NOT_JSON, NOT_OBJECT, NOT_OBJECT, NOT_OBJECT, NOT_UTF8, NO_TEXT, OTHER_TYPE, NO_TEXT, OTHER_TYPE,
        "line over 4,048,576 bytes", NOT_JSON, NOT_UTF8, NOT_JSON, NOT_JSON,
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = files_of(prose(tmp_path / "a.jsonl"), tmp_path)
    assert [file.path for file in found] == [f"a/{sum(len(line) + 1 for line in lines[:k])}" for k in range(len(lines))]
    assert [reason for _, reason in problems_of(prose(tmp_path / "a.jsonl"), tmp_path)] == expected
    assert set(texts_of(prose(tmp_path / "a.jsonl"), tmp_path).values()) == {"first", "last", "\ud800"}


def test_names_of_rows_are_limited(tmp_path: Path) -> None:
    rows = [
        {"text": "x", "path": "p" * 5000 + ".py", "repo": "r", "stars": 10**30},
        {"text": "x", "path": "a.py", "repo": "\ud800", "stars": True},
        {"text": "x", "path": "/b.py", "repo": 7, "stars": -1},
        {"text": "x", "path": "c.py", "repo": "r", "stars": 2**60},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = Columns(path="path", repository="repo", stars="stars")
    source = Archives(paths=(str(tmp_path),), columns=columns)
    assert problems_of(source, tmp_path) == [("p" * 1000, LONG_NAME), ("a.py", NAME_NOT_UTF8)]
    found = files_of(source, tmp_path)
    assert [(file.repository, file.path, file.stars) for file in found[2:]] == [
        ("a", "b.py", None),
        ("r", "c.py", 2**60),
    ]


@pytest.mark.parametrize("kind", ["zst", "gz"])
def test_truncated_and_damaged_streams_give_what_is_before_the_damage(kind: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [rng.randbytes(500).hex() for _ in range(1000)]
    data = json_lines({"text": text} for text in texts)
    packed = zstd(data) if kind == "zst" else gzip.compress(data)
    path = tmp_path / f"a.jsonl.{kind}"
    for broken in (
        packed[: len(packed) // 2],
        packed[:-3],
        packed + b"garbage",
        packed[:70_000] + b"\xff" * 70_000 + packed[140_000:],
    ):
        path.write_bytes(broken)
        found = files_of(prose(path), tmp_path)
        assert [file.problem for file in found if file.problem] == [DAMAGED]
        assert [file.read() for file in found[:-1]] == texts[: len(found) - 1]
    assert len(found) < 1000
    path.write_bytes(packed[: len(packed) // 2])
    assert len(files_of(prose(path), tmp_path)) > 300
    for broken in (b"", b"\n"):
        path.write_bytes(zstd(broken) if kind == "zst" else gzip.compress(broken))
        assert files_of(prose(path), tmp_path) == []
    path.write_bytes(b"this is neither")
    assert [file.problem for file in files_of(prose(path), tmp_path)] == [DAMAGED]


@pytest.mark.parametrize("kind", ["zst", "gz"])
def test_a_bomb_is_not_read_to_its_end(kind: str, tmp_path: Path) -> None:
    """A gigabyte of zeros in one line, and documents that repeat one byte."""
    zeros = b"\0" * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(zeros) for _ in range(300)) + packer.flush()
    bomb = packed if kind == "gz" else zstd(zeros * 64) * 20
    (tmp_path / f"a.jsonl.{kind}").write_bytes(bomb)
    assert [file.problem for file in files_of(prose(tmp_path), tmp_path)] == [BOMB]


def test_damaged_parquet_files_are_counted_after_the_first(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for name, data in (("b", whole[:-10]), ("c", b""), ("d", whole[:4] + b"\xff" * 20 + whole[24:])):
        (tmp_path / f"{name}.parquet").write_bytes(data)
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "e.parquet")
    pq.write_table(table, tmp_path / "f.parquet")
    assert [(file.path, file.problem) for file in files_of(prose(tmp_path), tmp_path)] == [
        ("a/0", None), ("a/1", None), ("b/0", DAMAGED), ("c/0", DAMAGED), ("d/0", DAMAGED), ("e/0", "no column text"),
        ("f/0", None), ("f/1", None),
    ]  # fmt: skip
    with pytest.raises(InvalidFileError, match=r"e\.parquet has no column text: it has body"):
        files_of(prose(tmp_path / "e.parquet"), tmp_path)
    with pytest.raises(InvalidFileError, match=r"b\.parquet is no Parquet file"):
        files_of(prose(tmp_path / "b.parquet"), tmp_path)


@pytest.mark.parametrize("kind", ["snappy", "zstd", "tar", "pax"])
def test_any_damage_ends_without_an_exception(kind: str, tmp_path: Path) -> None:
    """pyarrow ends the whole process for damaged metadata of a column chunk, so that is never read."""
    rows = [{"text": f"text {n} " * 50, "path": f"{n}.py"} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    if kind in ("tar", "pax"):
        path = tmp_path / "x.tar"
        names = ("r/a.py", "r/" + "long" * 40 + ".py")
        options = {"format": tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT}
        whole = tar_of(*((name, tarfile.REGTYPE, b"x" * 700) for name in names), **options)
    else:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, compression=kind, row_group_size=20)
        whole = path.read_bytes()
    source = Archives(paths=(str(tmp_path / "0.parquet"), str(path)), columns=Columns(path="path"))
    rng = random.Random(0)
    n_damaged = 0
    for _ in range(200):
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 3, 10])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken)
        n_damaged += any(file.problem == DAMAGED for file in files_of(source, tmp_path))
    assert n_damaged > 20


# Hostile archives


def tar_of(*members: tuple[str, bytes, bytes], **options: Any) -> bytes:
    """A tar archive of members: name, type and content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, kind, content in members:
            header = tarfile.TarInfo(name)
            header.type, header.size, header.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(header, io.BytesIO(content))
    return out.getvalue()


def archive_files(path: Path, **options: Any) -> list[SourceFile]:
    return files_of(Archives(paths=(str(path),), **{"license": "MIT"} | options), path.parent)


def test_members_of_a_tar_that_are_no_plain_files_are_counted(tmp_path: Path) -> None:
    regular = tarfile.REGTYPE
    members = [
        ("repo/a.py", regular, b"good"), ("../up.py", regular, b"x"), ("/abs.py", regular, b"x"),
        ("repo/../../c.py", regular, b"x"),
        ("repo/link.py", tarfile.SYMTYPE, b""), ("repo/hard.py", tarfile.LNKTYPE, b""), ("repo/dev.py", tarfile.CHRTYPE, b""),
        ("repo/fifo.py", tarfile.FIFOTYPE, b""), ("repo/dir.py", tarfile.DIRTYPE, b""), ("repo/odd.py", b"Z", b"odd"),
        ("repo/vendor/b.py", regular, b"x"), ("repo/.git/c.py", regular, b"x"), ("repo/image.png", regular, b"x"),
        ("repo/large.py", regular, b"y" * 1_000_001), ("./repo//d.py", regular, b"last"), ("e.py", regular, b"\xff"),
    ]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_of(*members, format=tarfile.GNU_FORMAT))
    found = archive_files(tmp_path / "a.tar")
    assert [(file.repository, file.path, file.problem) for file in found] == [
        ("repo", "a.py", None), ("a", "../up.py", UNSAFE_NAME), ("a", "/abs.py", UNSAFE_NAME),
        ("a", "repo/../../c.py", UNSAFE_NAME), ("repo", "link.py", LINK), ("repo", "hard.py", LINK), ("repo", "dev.py", LINK),
        ("repo", "fifo.py", LINK), ("repo", "odd.py", UNKNOWN_MEMBER), ("repo", "vendor/b.py", VENDORED_REASON),
        ("repo", "large.py", None), ("repo", "d.py", None), ("a", "e.py", None),
    ]  # fmt: skip
    assert [file.read() for file in found if file.problem is None and file.size < 10**6] == [b"good", b"last", b"\xff"]
    reasons = dict(problems_of(Archives(paths=(str(tmp_path),), license="MIT"), tmp_path))
    assert (reasons["large.py"], reasons["e.py"]) == ("over 1,000,000 bytes", NOT_UTF8)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar"}


def test_damaged_tars_give_what_is_before_the_damage(tmp_path: Path) -> None:
    whole = tar_of(*((f"r/{n}.py", tarfile.REGTYPE, b"x" * 700) for n in range(5)))
    size_of_one = 512 + 1024
    path = tmp_path / "a.tar"
    for data, n in (
        (whole[:2000], 1), (whole[: 2 * size_of_one], 2), (whole[:size_of_one] + b"\xff" * 512 + whole[2048:], 1), (b"", 0),
        (b"no archive" * 100, 0), (whole[:1100] + b"", 0),
    ):  # fmt: skip
        path.write_bytes(data)
        assert [file.problem for file in archive_files(path)] == [None] * n + [DAMAGED], n
    for packed in (tmp_path / "a.tar.gz", tmp_path / "a.tar.zst"):
        data = gzip.compress(whole) if packed.suffix == ".gz" else zstd(whole)
        packed.write_bytes(data[:-6])
        assert archive_files(packed)[-1].problem == DAMAGED
    huge = tarfile.TarInfo("r/huge.py")
    huge.size = 2**50
    path.write_bytes(huge.tobuf(tarfile.GNU_FORMAT))
    assert [file.problem for file in archive_files(path)] == [DAMAGED]


def test_headers_of_a_tar_are_limited(tmp_path: Path) -> None:
    """A name of 10 MB in an extended header is not held in memory; names that are not UTF-8 are counted."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 10 * 2**20
    member = tarfile.TarInfo("r/a.py")
    member.size = 1
    data = long.tobuf() + b"n" * long.size + member.tobuf() + b"x".ljust(512, b"\0")
    pax = tar_of(("r/b.py", tarfile.REGTYPE, b"x"), format=tarfile.PAX_FORMAT)
    latin = tarfile.TarInfo("r/\udcfc.py")
    latin.size = 1
    data += latin.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + b"x".ljust(512, b"\0")
    sparse = tarfile.TarInfo("r/sparse.py")
    sparse.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    data += bytes(block) + bytes(504) + b"\1" + bytes(7) + bytes(512) + pax
    (tmp_path / "a.tar").write_bytes(data)
    found = [with_utf8_names(file) for file in archive_files(tmp_path / "a.tar")]
    assert [(file.path, file.problem) for file in found] == [
        ("a.py", UNKNOWN_MEMBER), ("\\udcfc.py", NAME_NOT_UTF8), ("sparse.py", SPARSE), ("b.py", None),
    ]  # fmt: skip
    for record in (b"15 path=r/x.py\n", b"path=r/x\n", b"999999 path=r/x\n", b"5 a=b\n6 siz=x\n", b"0 a=b\n"):
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        (tmp_path / "a.tar").write_bytes(header.tobuf() + record.ljust(512, b"\0") + pax)
        problems = [file.problem for file in archive_files(tmp_path / "a.tar")]
        assert problems in ([DAMAGED], [None]) and (problems == [None]) == (record == b"15 path=r/x.py\n")


def test_a_tar_bomb_is_not_read_to_its_end(tmp_path: Path) -> None:
    header = tarfile.TarInfo("r/zeros.py")
    header.size = 2**40
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(header.tobuf()) + b"".join(packer.compress(b"\0" * 2**20) for _ in range(200))
    (tmp_path / "a.tar.gz").write_bytes(bomb + packer.flush())
    assert [file.problem for file in archive_files(tmp_path / "a.tar.gz")] == [BOMB]


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def test_members_of_a_zip_that_are_no_plain_files_are_counted(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("repo/", b"")
        for name in ("repo/a.py", "../up.py", "/abs.py", "repo/image.png", "repo/node_modules/b.py", "repo/ü.py"):
            archive.writestr(name, b"x" * 100)
        link = zipfile.ZipInfo("repo/link.py")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("repo/large.py", b"y" * 1_000_001)
        archive.writestr("repo/bzip.py", b"x", zipfile.ZIP_BZIP2)
        with archive.open("repo/zip64.py", "w", force_zip64=True) as member:
            member.write(b"z" * 10)
    data = out.getvalue()
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + data)  # as archives that extract themselves
    found = archive_files(tmp_path / "a.zip")
    assert [(file.path, file.problem) for file in found] == [
        ("a.py", None), ("../up.py", UNSAFE_NAME), ("/abs.py", UNSAFE_NAME), ("node_modules/b.py", VENDORED_REASON),
        ("ü.py", None), ("link.py", LINK), ("large.py", None), ("bzip.py", OTHER_METHOD), ("zip64.py", None),
    ]  # fmt: skip
    assert [len(file.read()) for file in found if file.problem is None and file.path != "large.py"] == [100, 100, 10]
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip"}


def test_damaged_zips_are_counted(tmp_path: Path) -> None:
    whole = zip_of({f"r/{n}.py": f"text {n}".encode() * 50 for n in range(4)})
    begin = whole.index(b"PK\1\2")
    path = tmp_path / "a.zip"

    def problems(data: bytes) -> list[str | None]:
        path.write_bytes(data)
        return [file.problem for file in map(with_utf8_names, archive_files(path))]

    assert problems(whole) == [None] * 4
    assert problems(whole[:-30]) == problems(b"") == problems(b"PK\5\6") == [DAMAGED]
    assert problems(whole[:40] + b"\0" * 9 + whole[49:])[0] == DAMAGED_MEMBER
    assert problems(b"XX" + whole[2:])[0] == DAMAGED_MEMBER
    assert problems(whole[:begin] + b"XX" + whole[begin + 2 :]) == [DAMAGED]
    encrypted = bytearray(whole)
    encrypted[begin + 8] |= 1
    assert problems(bytes(encrypted)) == [ENCRYPTED, None, None, None]
    declared = bytearray(whole)  # a member that is larger than its header says
    struct.pack_into("<I", declared, begin + 24, 10)
    assert problems(bytes(declared)) == [DAMAGED_MEMBER, None, None, None]
    name = bytearray(zip_of({"r/ü.py": b"x", "r/b.py": b"y"}))
    for _ in range(2):
        at = name.index("ü".encode())
        name[at : at + 2] = b"\xff\xfe"
    assert problems(bytes(name)) == [NAME_NOT_UTF8, None]
    offset = bytearray(whole)  # a list that begins after the end of the file
    struct.pack_into("<I", offset, len(whole) - 6, 2**31)
    assert problems(bytes(offset)) == [DAMAGED]
    far = bytearray(whole)
    struct.pack_into("<I", far, begin + 42, 2**31)
    assert problems(bytes(far))[0] == DAMAGED_MEMBER
    rng = random.Random(0)
    for _ in range(300):  # any damage ends without an exception
        broken = bytearray(whole)
        for _ in range(3):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        problems(bytes(broken))


def test_a_zip_bomb_is_not_read_to_its_end(tmp_path: Path) -> None:
    """All members share one content, as in the bombs that overlap: together they have more than 200 times its size."""
    content = zlib.compress(b"x" * 900_000, 9, -15)
    checksum = zlib.crc32(b"x" * 900_000)
    local = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, checksum, len(content), 900_000, 6, 0) + b"r/a.py" + content
    )
    header = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, checksum, len(content), 900_000, 8, 0, 0, 0, 0, 0, 0
    )
    entries = b"".join(header + f"r/{n:03}.py".encode() for n in range(500))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 500, 500, len(entries), len(local), 0)
    (tmp_path / "a.zip").write_bytes(local + entries + end)
    found = archive_files(tmp_path / "a.zip")
    assert found[-1].problem == BOMB and len(found) == 64 * 2**20 // 900_000 + 1
    assert {file.problem for file in found[:-1]} == {None}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_the_license_of_members_is_that_of_their_repository(kind: str, tmp_path: Path) -> None:
    mit = "Permission is hereby granted, free of charge, to any person obtaining a copy. The above copyright notice and this"
    members = {
        "one/a.py": b"x", "one/LICENSE": mit.encode(), "two/b.py": b"y", "two/sub/LICENSE": mit.encode(),
        "three/c.py": b"z", "three/LICENSE-MIT": mit.encode(), "three/COPYING": b"GNU General Public License", "d.py": b"d",
    }  # fmt: skip
    packed = zip_of(members) if kind == "zip" else tar_of(*((n, tarfile.REGTYPE, c) for n, c in members.items()))
    (tmp_path / f"a.{kind}").write_bytes(packed)
    found = archive_files(tmp_path / f"a.{kind}", license=None)
    assert {(file.repository, file.path): file.license for file in found} == {
        ("one", "a.py"): "MIT", ("two", "b.py"): UNKNOWN, ("three", "c.py"): UNKNOWN, ("a", "d.py"): UNKNOWN,
    }  # fmt: skip
    chosen = archive_files(tmp_path / f"a.{kind}", repositories=("two",))
    assert [(file.path, file.license, file.is_license_given) for file in chosen] == [("b.py", "MIT", True)]


# As a whole


def test_a_stream_continues_after_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"Document {n}: " + " ".join(f"word{n}x{k}" for k in range(30))} for n in range(40)]
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(json_lines(rows)))
    config = CorpusConfig(sources=(prose(tmp_path / "a.jsonl.zst", license="MIT", is_prose=True),), steps=())
    monkeypatch.setattr("codekiln.corpus.reading.FLUSH_BYTES", 1000)
    build_corpus(config, tmp_path / "whole")
    read_paths: list[str] = []
    original = UnitReader._read

    def fail_once(self: UnitReader, file: SourceFile, steps: Any) -> dict[str, Any]:
        read_paths.append(file.path)
        if len(read_paths) == 25:
            raise RuntimeError("stopped here")
        return original(self, file, steps)

    monkeypatch.setattr(UnitReader, "_read", fail_once)
    with pytest.raises(Exception, match="stopped here"):
        build_corpus(config, tmp_path / "corpus")
    build_corpus(config, tmp_path / "corpus")
    assert len(read_paths) < 25 + 20
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.parquet")]
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "corpus" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.process
@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl.zst",
        pytest.param("a.jsonl.gz", marks=pytest.mark.slow),
        pytest.param("a.jsonl", marks=pytest.mark.slow),
        "a.parquet",
        "a.tar.zst",
        "a.zip",
    ],
)
def test_memory_does_not_grow_with_the_input(name: str, tmp_path: Path) -> None:
    """What 100 MB of text may need more than 1 MB. Parquet holds buffers of 1 MB per column, and memory that Arrow keeps."""
    peaks = []
    for n in (100, 10_000):
        rng = random.Random(0)
        texts = (rng.randbytes(5000).hex() for _ in range(n))
        path = tmp_path / f"{n}" / name
        path.parent.mkdir()
        write_texts(path, texts)
        done = run_program("read_archive.py", path)
        found = json.loads(done.stdout)
        assert found["documents"] == n and found["text_bytes"] == n * 10_000
        peaks.append(found["peak_bytes"])
    assert peaks[1] - peaks[0] < (80_000_000 if path.suffix == ".parquet" else 10_000_000), peaks


def write_texts(path: Path, texts: Iterator[str]) -> None:
    if path.suffix == ".parquet":
        schema = pa.schema([("text", pa.string()), ("path", pa.string())])
        with pq.ParquetWriter(path, schema, compression="snappy") as writer:
            while chunk := list(itertools.islice(texts, 2500)):
                paths = [f"{n}.py" for n in range(len(chunk))]
                writer.write_table(pa.table({"text": chunk, "path": paths}), row_group_size=2500)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for n, text in enumerate(texts):
                packed.writestr(f"r/{n}.py", text)
    elif ".tar" in path.name:
        with pa.CompressedOutputStream(str(path), "zstd") as out, tarfile.open(fileobj=out, mode="w|") as archive:
            for n, text in enumerate(texts):
                header = tarfile.TarInfo(f"r/{n}.py")
                header.size = len(text)
                archive.addfile(header, io.BytesIO(text.encode()))
    else:
        codec = {".zst": "zstd", ".gz": "gzip"}.get(path.suffix)
        with pa.CompressedOutputStream(str(path), codec) if codec else path.open("wb") as out:
            for n, text in enumerate(texts):
                out.write(json_lines([{"text": text, "path": f"{n}.py"}]))


@pytest.mark.process
def test_the_recipe_of_the_documentation_is_complete() -> None:
    run_program("run_blocks.py", ROOT / "docs" / "corpus.md", "Data sets in files")
