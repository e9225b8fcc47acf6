"""A corpus is the same bytes however it was built: with any number of workers, interrupted, and on Ray with a lost worker."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codekiln.corpus.config import DEFAULT_STEPS, CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.engine import CorpusOptions, Engine, parse_bytes
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.reading import UnitReader
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.sources.files import FileList, ReadFile, SourceFile
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.caps import RepositoryCap
from codekiln.corpus.steps.exact import ExactDuplicates
from codekiln.corpus.steps.generated import GeneratedFiles
from codekiln.corpus.steps.license_gate import LicenseGate
from codekiln.corpus.steps.near import NearDuplicates
from codekiln.corpus.steps.redact import Redact
from codekiln.corpus.steps.step import Draft
from codekiln.errors import ConfigError
from tests.command import assert_refused, codekiln
from tests.small import PROGRAMS, ROOT, write_tree

pytestmark = pytest.mark.process
TIMEOUT = 300


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 files of the standard library in six repositories: about 3 MB, 15 work units."""
    folder = tmp_path_factory.mktemp("engine") / "code"
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    chosen = [path for path in paths if 100 < path.stat().st_size < 60_000][:400]
    for n, path in enumerate(chosen):
        copy = folder / f"repository{n % 6}" / f"{n:03}_{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def start(code: Path, out: Path, where: str, n_processors: int) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, (PROGRAMS / "build_corpus.py", code, out, where, n_processors))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def checksums(process: subprocess.Popen[str]) -> dict[str, str]:
    out, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors[-3000:]
    found: dict[str, str] = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    return found


def wait_for(process: subprocess.Popen[str], out: Path, pattern: str, n: int) -> None:
    """Waits until n files of the scratch folder match, and checks that the process has not finished before."""
    deadline = time.monotonic() + TIMEOUT
    while len(list((out / ".scratch").glob(pattern))) < n:
        assert process.poll() is None and time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def expected(code: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of a corpus that was built without an interruption, by two workers."""
    found = checksums(start(code, tmp_path_factory.mktemp("expected") / "corpus", "native", 2))
    assert {
        "manifest.json",
        "train/part-00000.parquet",
        "near-duplicates.parquet",
        "dropped/part-00000.parquet",
    } <= set(found)
    return found


def test_one_worker_writes_the_same_bytes(code: Path, expected: dict[str, str], tmp_path: Path) -> None:
    assert checksums(start(code, tmp_path / "corpus", "native", 1)) == expected


def test_a_corpus_that_was_killed_continues(code: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """Killed while it reads, while it compares, and while it writes. What was finished is not done again."""
    out = tmp_path / "corpus"
    kept_times: dict[Path, int] = {}
    for pattern, n in (("read/*.json", 3), ("*-bands/*", 2), ("*-parts/*", 1)):
        process = start(code, out, "native", 2)
        wait_for(process, out, pattern, n)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        for path, modified in kept_times.items():
            assert path.stat().st_mtime_ns == modified, path
        kept_times = {path: path.stat().st_mtime_ns for path in (out / ".scratch").glob("read/*.json")}
    assert checksums(start(code, out, "native", 1)) == expected


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_writes_the_same_bytes(
    code: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """Two nodes of a real Ray cluster; the process of one is killed while it reads."""
    with ray_cluster() as address:
        process = start(code, tmp_path / "corpus", address, 2)
        wait_for(process, tmp_path / "corpus", "read/*.json", 2)
        names = ("ray::RaySwordfishActor", "UDFProject")  # of a worker that is idle, and of one that runs a task
        workers = [pid for pid in _processes() if any(name in _command_line(pid) for name in names)]
        assert workers
        os.kill(workers[0], signal.SIGKILL)
        assert checksums(process) == expected


@pytest.mark.slow
def test_memory_is_for_each_machine_of_a_cluster() -> None:
    """Not for all of them together: here each of two nodes has one processor."""
    program = (
        "import sys\nfrom codekiln.corpus.engine import Engine\n"
        "engine = Engine(kind='ray', ray_address=sys.argv[1], memory_bytes=10**9)\nengine.start()\n"
        "print(engine.n_workers, engine.worker_memory_bytes)\n"
    )
    with ray_cluster() as address:
        done = subprocess.run(
            [sys.executable, "-c", program, address], capture_output=True, text=True, check=True, timeout=TIMEOUT
        )
    assert done.stdout.split() == ["2", "1000000000"]


class ray_cluster:  # noqa: N801 - used as a function
    """A Ray cluster with two nodes of one processor each, as a context manager. Its value is the address."""

    def __enter__(self) -> str:
        program = (
            "import sys\nfrom ray.cluster_utils import Cluster\n"
            "limits = {'include_dashboard': False, 'object_store_memory': 100_000_000}\n"
            "cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, **limits})\n"
            "for _ in range(2): cluster.add_node(num_cpus=1, object_store_memory=100_000_000)\n"
            "print(cluster.address, flush=True)\nsys.stdin.read()\ncluster.shutdown()\n"
        )
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        assert address, "Ray did not start"
        return address

    def __exit__(self, *exception: object) -> None:
        self._process.communicate("", timeout=TIMEOUT)


def _processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_dropped_documents_are_written_with_reason_and_value(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    text = (code / "repository0" / "open_door.py").read_text(encoding="utf-8")
    (code / "repository1" / "copy.py").write_text(text + "# the end\n", encoding="utf-8")
    (code / "repository1" / "wide.py").write_text("x = '" + "y" * 1200 + "'\n" + "y = 1\n" * 40, encoding="utf-8")
    (code / "repository1" / "large.py").write_text("x = 1\n" * 200_000, encoding="utf-8")
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    manifest = build_corpus(config, tmp_path / "corpus", keep_dropped=True)
    rows = {row["path"]: row for row in pq.read_table(tmp_path / "corpus" / "dropped").to_pylist()}
    assert set(rows) == {"open_door.py", "wide.py", "large.py"}
    wide, large, near = rows["wide.py"], rows["large.py"], rows["open_door.py"]
    assert (wide["step"], wide["reason"], wide["measured"]) == ("Filters", "line too long (characters)", 1206)
    assert wide["text"].startswith("x = 'yyy")
    assert (large["step"], large["text"], large["measured"]) == ("Read", None, 1_200_000)
    assert (near["step"], near["reason"], near["text"]) == ("NearDuplicates", "near-duplicate", text)
    assert 0.7 <= near["measured"] < 1
    n_dropped = [step["documents_in"] - step["documents_out"] for step in manifest["steps"]]
    assert [(step["step"], n) for step, n in zip(manifest["steps"], n_dropped, strict=True) if n] == [
        ("Read", 1), ("Filters", 1), ("NearDuplicates", 1),
    ]  # fmt: skip
    assert manifest["steps"][-1]["documents_out"] == manifest["kept"]["documents"] == 20


def test_partitions_change_nothing(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory, keys and bands are sorted in many partitions."""
    steps = (*DEFAULT_STEPS, RepositoryCap(max_bytes=300_000))
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),), steps=steps)
    found, partitions = [], []
    for fraction in (0.25, 1e-5):
        monkeypatch.setattr("codekiln.corpus.scratch.PARTITION_FRACTION", fraction)
        build_corpus(config, tmp_path / str(fraction))
        scratch = Scratch(tmp_path, tmp_path, Engine(), n_units=0)
        partitions.append(scratch.n_partitions(f"stage-{fraction}", 400 * 200))
        paths = sorted((tmp_path / str(fraction)).rglob("*"))
        found.append({path.name: path.read_bytes() for path in paths if path.is_file()})
    assert found[0] == found[1]
    n_workers = Engine().n_workers
    assert partitions == [n_workers, 4 * n_workers]


def test_other_inputs_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished corpus of other inputs is not continued."""
    code = write_tree(tmp_path / "code")
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    with stopped_at("choose_held_out", monkeypatch):
        build_corpus(config, tmp_path / "corpus")
    (code / "repository0" / "new.py").write_text("def added():\n    return 'new text'\n", encoding="utf-8")
    manifest = build_corpus(config, tmp_path / "corpus")
    assert manifest["read"]["files"] == 21
    assert manifest["kept"]["text_bytes"] == sum(path.stat().st_size for path in code.rglob("*.py"))
    assert not (tmp_path / "corpus" / ".scratch").exists()


@contextlib.contextmanager
def stopped_at(function: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block, building a corpus stops at a function of the pipeline."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("stopped here")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped here"):
        patch.setattr(f"codekiln.corpus.pipeline.{function}", fail)
        yield


def test_a_unit_continues_after_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long stream is one work unit: the documents of parts that are finished are not read again."""
    code = write_tree(tmp_path / "code")
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    monkeypatch.setattr("codekiln.corpus.reading.FLUSH_BYTES", 500)
    build_corpus(config, tmp_path / "whole")
    read: list[str] = []
    original = UnitReader._read

    def fail_once(self: UnitReader, file: object, steps: object) -> object:
        read.append(file.path)  # type: ignore[attr-defined]
        if len(read) == 12:
            raise RuntimeError("stopped here")
        return original(self, file, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(UnitReader, "_read", fail_once)
    with pytest.raises(Exception, match="stopped here"):
        build_corpus(config, tmp_path / "corpus")
    n_before = len(read)
    build_corpus(config, tmp_path / "corpus")
    assert n_before == 12 and len(read) < 12 + 20
    for name in ("train/part-00000.parquet", "validation/part-00000.parquet"):
        assert (tmp_path / "corpus" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sizes_and_engines_are_checked(tmp_path: Path) -> None:
    assert [parse_bytes(text) for text in ("2GB", "500 MB", "1.5gb", "300000000")] == [
        2 * 10**9, 5 * 10**8, 15 * 10**8, 3 * 10**8,
    ]  # fmt: skip
    for text in ("", "two", "2XB", "-1GB", "GB"):
        with pytest.raises(ConfigError, match="2GB"):
            parse_bytes(text)
    with pytest.raises(ConfigError, match="at least 200,000,000"):
        Engine(memory_bytes=1000)
    assert CorpusOptions().engine == Engine()
    assert FileList.of([]).n_bytes == 0
    write_tree(tmp_path / "code")
    train = ("train", "demo", "--out", tmp_path / "run", "--code", tmp_path / "code", "--license", "MIT")
    assert_refused(codekiln(*train, "--memory", "much"), "2GB")
    assert_refused(codekiln(*train, "--ray-address", "127.0.0.1:1"), "--engine ray")
    assert_refused(codekiln(*train, "--engine", "ray", "--ray-address", "127.0.0.1:1"), "127.0.0.1:1")
    assert_refused(codekiln(*train, "--engine", "ray", "--ray-address", "here"), "HOST:PORT")


def test_steps_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="Redact edits texts that NearDuplicates has compared"):
        CorpusConfig(sources=(), steps=(NearDuplicates(), Redact()))
    with pytest.raises(ConfigError, match="two steps write key"):
        CorpusConfig(sources=(), steps=(ExactDuplicates(), ExactDuplicates(key="content")))


def test_near_duplicates_are_found_in_redacted_texts(tmp_path: Path) -> None:
    """A key is one word, and what replaces it four: shingles are those of the text that is kept."""
    code = tmp_path / "code" / "repository"
    code.mkdir(parents=True)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    keys = ["AKIA" + "".join(random.Random(n).choices(letters, k=16)) for n in range(60)]
    text = "".join(f"key_{n} = '{key}'\n" for n, key in enumerate(keys))
    (code / "a.py").write_text(text, encoding="utf-8")
    (code / "b.py").write_text(text + "last = 1\n", encoding="utf-8")
    (code / "c.py").write_text("def other(value):\n    return value * 3 + 1\n", encoding="utf-8")
    source = LocalRepositories(folder=code.parent, license="MIT")
    config = CorpusConfig(sources=(source,), steps=(Redact(), NearDuplicates()), validation_fraction=0.0)
    build_corpus(config, tmp_path / "corpus")
    kept = {document.path: document.text for document in read_documents(tmp_path / "corpus", "train")}
    assert set(kept) == {"b.py", "c.py"} and "removed-aws-access-key" in kept["b.py"]
    names = set(pq.read_table(tmp_path / "corpus" / "redactions.parquet").column("name").to_pylist())
    assert names == {"repository@-/b.py"}  # of documents that are kept


def test_dropped_documents_are_redacted_too(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    (code / "repository0" / "wide.py").write_text(
        "# joe.smith@corp-mail.com\nx = '" + "y" * 1200 + "'\n", encoding="utf-8"
    )
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    build_corpus(config, tmp_path / "corpus", keep_dropped=True)
    (text,) = pq.read_table(tmp_path / "corpus" / "dropped").column("text").to_pylist()
    assert "removed@example.com" in text and "joe" not in text


def test_keep_dropped_is_refused_where_it_comes_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = write_tree(tmp_path / "code")
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    with stopped_at("choose_held_out", monkeypatch):
        build_corpus(config, tmp_path / "corpus")
    read = list((tmp_path / "corpus" / ".scratch" / "read").iterdir())
    with pytest.raises(ConfigError, match="begun without --keep-dropped"):
        build_corpus(config, tmp_path / "corpus", keep_dropped=True)
    assert read == list((tmp_path / "corpus" / ".scratch" / "read").iterdir())
    build_corpus(config, tmp_path / "corpus")
    train = ("train", "demo", "--out", tmp_path / "run", "--code", code, "--license", "MIT", "--stop-after", "corpus")
    assert codekiln(*train).returncode == 0
    assert_refused(codekiln(*train, "--keep-dropped"), "without dropped files")


def test_a_process_stopped_after_the_manifest_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = write_tree(tmp_path / "code")
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    with stopped_at("_remove_scratch", monkeypatch):
        build_corpus(config, tmp_path / "corpus")
    part = tmp_path / "corpus" / "train" / "part-00000.parquet"
    written = part.stat().st_ino
    build_corpus(config, tmp_path / "corpus")
    assert part.stat().st_ino == written and not (tmp_path / "corpus" / ".scratch").exists()


def test_memory_may_change_when_a_corpus_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = write_tree(tmp_path / "code")
    config = CorpusConfig(sources=(LocalRepositories(folder=code, license="MIT"),))
    build_corpus(config, tmp_path / "whole")
    with stopped_at("choose_held_out", monkeypatch):
        build_corpus(config, tmp_path / "corpus", Engine(memory_bytes=10**10))
    build_corpus(config, tmp_path / "corpus", Engine(memory_bytes=200_000_000))
    for name in ("manifest.json", "train/part-00000.parquet"):
        assert (tmp_path / "corpus" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_read_only_their_own_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long stream is one work unit. Its parts do not read all of it again and again."""
    code = tmp_path / "code" / "repository"
    code.mkdir(parents=True)
    for n in range(300):
        (code / f"{n:03}.py").write_text(f"def function_{n}():\n    return {n}\n", encoding="utf-8")
    monkeypatch.setattr("codekiln.corpus.reading.FLUSH_ROWS", 10)
    monkeypatch.setattr("codekiln.corpus.writing.PART_BYTES", 400)
    rows: list[int] = []
    decide = Scratch._decide

    def count(self: Scratch, batch: pa.RecordBatch) -> pa.RecordBatch:
        if "text" in batch.schema.names:
            rows.append(batch.num_rows)
        return decide(self, batch)

    monkeypatch.setattr(Scratch, "_decide", count)
    config = CorpusConfig(
        sources=(LocalRepositories(folder=code.parent, license="MIT"),), steps=(), validation_fraction=0.0
    )
    manifest = build_corpus(config, tmp_path / "corpus")
    assert len(manifest["splits"]["train"]["parts"]) > 20
    assert sum(rows) < 4 * 300  # a part may share a block of ten documents with the one before


def test_prose_is_not_judged_by_the_code_that_it_quotes() -> None:
    file = SourceFile(
        source="stackexchange", repository="a.com", revision="-", license="CC-BY-SA-4.0", path="questions/1", size=1,
        read=ReadFile("none", 0), language="Stack Exchange", is_prose=True,
    )  # fmt: skip
    quoted = "// SPDX-License-Identifier: MIT\n# This file was generated by a tool. Do not edit.\n"
    draft = Draft(file=file, language="Stack Exchange", text=quoted, license=file.license)
    assert LicenseGate(licenses=frozenset({"CC-BY-SA-4.0"})).check_document(draft) is None
    assert draft.license == "CC-BY-SA-4.0" and GeneratedFiles().check_document(draft) is None
