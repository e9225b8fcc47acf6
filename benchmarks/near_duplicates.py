"""Near-duplicates on the Python files of this machine: speed, memory, and quality against brute force, next to other tools.

    near_duplicates.py [--megabytes N] [--peer-megabytes N] [--sample N] [--rounds N] [--peers NAME ...] [--bigcode SCRIPT]

Speed: each tool reads the same files (Parquet, or a folder for Codekiln) and says which it keeps, in a process of its own. The
processor seconds of the process and its children count, imports and compilation too. Codekiln gets all files, the peers
`--peer-megabytes`, because they are slow; Codekiln's row for as many bytes is there too. The tools alternate; the table has the
median of the rounds, and the largest peak memory of one process. All use runs of five words and a similarity of 0.7. The row
"without steps" reads and writes only: what it takes less is the time of the step.
Peers are installed into temporary folders: text-dedup 0.4, datasketch 2 (MinHashLSH), datatrove (25 buckets of 10 hashes), and
Daft's own MinHash with 25 bands of 10. SCRIPT is near_deduplication/minhash_deduplication.py of BigCode's repository
bigcode-dataset; its row is missing without it.
Quality: on a sample in which each second file is an edited copy of another one, all pairs are compared by their shingles.
"""

import argparse
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from codekiln.corpus.shingles import SHINGLE_WORDS, band_hashes, text_runs

ROOT = Path(__file__).parent.parent
WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
CODEKILN = """
import json, sys
from pathlib import Path
from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.near import NearDuplicates
source = LocalRepositories(folder=Path(sys.argv[1], "code"), license="MIT")
out = Path(sys.argv[2], "corpus")
steps = (NearDuplicates(),) if sys.argv[3:] != ["without"] else ()
build_corpus(CorpusConfig(sources=(source,), steps=steps, validation_fraction=0.0), out)
"""
DATASKETCH = """
import re, sys
import pyarrow.parquet as pq
from datasketch import MinHash, MinHashLSH
word = re.compile(rb"[A-Za-z0-9_\\x80-\\xff]+")
index, kept = MinHashLSH(threshold=0.7, num_perm=250), []
for batch in pq.ParquetFile(sys.argv[1] + "/parquet/texts.parquet").iter_batches(batch_size=256):
    for name, text in zip(batch.column("name").to_pylist(), batch.column("text").to_pylist()):
        words = word.findall(text.encode())
        signature = MinHash(num_perm=250)
        signature.update_batch(list({b" ".join(words[at : at + 5]) for at in range(len(words) - 4)}) or [text.encode()])
        if not index.query(signature):
            index.insert(name, signature)
            kept.append(name)
"""
DAFT = """
import os, sys
os.environ.update(DO_NOT_TRACK="true", DAFT_PROGRESS_BAR="0")
import daft, numpy as np
from daft import col
from daft.functions import minhash, regexp_replace
words = regexp_replace(daft.functions.lower(col("text")), r"[^a-z0-9_]+", " ")
rows = daft.read_parquet(sys.argv[1] + "/parquet/texts.parquet").select(col("name"), words.alias("words"))
rows = rows.with_column("hashes", minhash(col("words"), num_hashes=250, ngram_size=5)).exclude("words").collect()
hashes = np.stack(rows.to_pydict()["hashes"]).reshape(-1, 25, 10)
names = rows.to_pydict()["name"]
parent = list(range(len(names)))
def find(at):
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at
for band in range(25):
    first = {}
    for at, key in enumerate(map(bytes, hashes[:, band])):
        root, other = find(first.setdefault(key, at)), find(at)
        parent[max(root, other)] = min(root, other)
kept = [name for at, name in enumerate(names) if find(at) == at]
"""
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
data, out = sys.argv[1:]
config = MinhashConfig(n_grams=5, num_buckets=25, hashes_per_bucket=10)
read = ParquetReader(f"{data}/parquet", id_key="name")
stages = [
    [read, MinhashDedupSignature(f"{out}/signatures", config)],
    [MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config)],
    [MinhashDedupCluster(f"{out}/buckets", f"{out}/removed", config)],
    [read, MinhashDedupFilter(f"{out}/removed"), ParquetWriter(f"{out}/kept")],
]
for k, steps in enumerate(stages):
    LocalPipelineExecutor(steps, tasks=25 if k == 1 else 1, workers=1, logging_dir=f"{out}/logs{k}").run()
"""
BIGCODE, WITHOUT = "BigCode's script", "Codekiln without steps"
# Packages of each peer, and the program that runs it.
PEERS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "text-dedup 0.4": (("text-dedup==0.4.0",), None),
    BIGCODE: (("datasets<3", "typer", "scipy", "tqdm"), None),
    "datatrove": (("datatrove", "spacy", "orjson", "xxhash<4"), DATATROVE),
    "datasketch 2, MinHashLSH": (("datasketch>=2",), DATASKETCH),
    "Daft, its own MinHash": ((), DAFT),
}


def read_texts(n_bytes: float) -> list[str]:
    """Files of the standard library and installed packages, in a fixed random order."""
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "purelib")}
    paths = sorted({path for folder in folders for path in Path(folder).rglob("*.py")})
    random.Random(0).shuffle(paths)
    texts: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip() and len(text) < 900_000:
            texts.append(text)
            n_bytes -= len(text.encode())
        if n_bytes <= 0:
            break
    return texts


def write_texts(texts: list[str], folder: Path) -> None:
    """The same texts as files and as Parquet."""
    for number, text in enumerate(texts):
        path = folder / "code" / f"repository{number % 50}" / f"{number:06}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    table = pa.table({"name": [f"{number:06}" for number in range(len(texts))], "text": texts})
    (folder / "parquet").mkdir()
    pq.write_table(table, folder / "parquet" / "texts.parquet", compression="zstd", row_group_size=1024)


def edited(text: str, fraction: float, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(
        f"x_{rng.randrange(10**9)} = y_{rng.randrange(10**9)}\n" if rng.random() < fraction else line for line in lines
    )


def run_tool(command: list[str], packages: Path) -> tuple[float, float, float]:
    """Processor seconds of a process and its children, its seconds, and the peak memory of the largest one in MB."""
    measured = "import json,resource,subprocess,sys,time\nbegun = time.perf_counter()\n" + (
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)\n"
        "seconds = time.perf_counter() - begun\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "if done.returncode: sys.exit(done.stderr[-3000:])\n"
        "print(json.dumps([used.ru_utime + used.ru_stime, seconds, used.ru_maxrss / 1024]))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(packages), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", measured, *command], env=environment, capture_output=True, text=True, check=True
    )
    processor_seconds, seconds, peak = json.loads(done.stdout)
    return processor_seconds, seconds, peak


def command_of(name: str, folder: Path, out: Path, bigcode: Path | None = None) -> list[str]:
    """The command that runs a tool on the texts in a folder."""
    out.mkdir()
    if name in ("Codekiln", WITHOUT):
        return [sys.executable, "-c", CODEKILN, str(folder), str(out), *(["without"] if name == WITHOUT else [])]
    if name == BIGCODE:
        options = {"dataset": "parquet", "data-dir": folder / "parquet", "column": "text", "output": out / "kept"}
        options |= {"cache-dir": out / "cache"}
        return [sys.executable, str(bigcode), *(f"--{key}={value}" for key, value in options.items())]
    if (program := PEERS[name][1]) is not None:
        return [sys.executable, "-c", program, str(folder), str(out)]
    options = {
        "path": "parquet", "data_files": folder / "parquet" / "texts.parquet", "split": "train", "column": "text", "ngram": 5,
        "num_perm": 250, "threshold": 0.7, "cache_dir": out / "cache", "output": out / "kept", "num_proc": 2,
    }  # fmt: skip
    pairs = itertools.chain.from_iterable((f"--{key}", str(value)) for key, value in options.items())
    return [sys.executable, "-m", "text_dedup.minhash", *pairs]


def brute_force(texts: list[str]) -> list[tuple[int, int]]:
    """All pairs with a Jaccard similarity of at least 0.7. The shingles of each pair are counted with an inverted index."""
    sets = []
    for text in texts:
        words = WORD.findall(text.encode())
        sets.append({tuple(words[at : at + 5]) for at in range(len(words) - 4)})
    holders: dict[tuple[bytes, ...], list[int]] = {}
    for number, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(number)
    common = np.zeros((len(texts), len(texts)), np.int32)
    for numbers in holders.values():
        if len(numbers) > 1:
            common[np.ix_(numbers, numbers)] += 1
    sizes = np.array([len(each) for each in sets])
    union = sizes[:, None] + sizes[None, :] - common
    first, second = np.nonzero(np.triu(common >= 0.7 * np.maximum(union, 1), 1) & (np.triu(common, 1) > 0))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def measure_quality(texts: list[str], n: int, folder: Path, packages: Path) -> str:
    rng = random.Random(0)
    sample = [text for text in texts if len(text) < 50_000][: n // 2]
    sample += [edited(text, rng.choice((0.01, 0.03, 0.06, 0.1, 0.15, 0.2)), rng) for text in sample]
    write_texts(sample, folder)
    run_tool(command_of("Codekiln", folder, folder / "out"), packages)
    rows = pq.read_table(folder / "out" / "corpus" / "near-duplicates.parquet").to_pylist()
    number = {row["name"]: int(Path(row["name"]).stem) for row in rows}
    kept_of = {number[row["name"]]: row["kept"] for row in rows}
    dropped = [number[row["name"]] for row in rows if row["name"] != row["kept"]]
    pairs = brute_force(sample)
    together = sum(one in kept_of and kept_of[one] == kept_of.get(other) for one, other in pairs)
    partners = {number for pair in pairs for number in pair}
    return (
        f"quality on {len(sample):,} files: {len(pairs):,} pairs of similarity 0.7 or more; recall "
        f"{together / len(pairs):.4f}; precision {sum(n in partners for n in dropped) / len(dropped):.4f} of {len(dropped):,} "
        "dropped files"
    )


def signature_speed(texts: list[str]) -> float:
    """MB per processor second of the signatures alone, in this process."""
    begun = time.process_time()
    for text in texts:
        band_hashes(text_runs(text, SHINGLE_WORDS))
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--peer-megabytes", type=float, default=10)
    parser.add_argument("--sample", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--bigcode", type=Path)
    options = parser.parse_args()
    peers = [name for name in options.peers if name != BIGCODE or options.bigcode is not None]
    console = Console()
    texts = read_texts(options.megabytes * 1e6)
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as temporary:
        folder, packages = Path(temporary), Path(temporary, "packages")
        few = texts[: max(1, round(len(texts) * options.peer_megabytes / size))]
        few_size = sum(len(text.encode()) for text in few) / 1e6
        write_texts(texts, folder / "all")
        write_texts(few, folder / "few")
        for name in peers:
            if names := PEERS[name][0]:
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages / name), *names]
                subprocess.run(pip, check=True, capture_output=True)
        empty = folder / "empty"
        run_tool(command_of("Codekiln", folder / "few", folder / "compile"), empty)  # compiles functions
        tools: list[tuple[str, str, Path, float]] = [
            (name, name, folder / "all", size) for name in ("Codekiln", WITHOUT)
        ]
        tools += [(f"{name} ({few_size:.0f} MB)", name, folder / "few", few_size) for name in ("Codekiln", *peers)]
        speeds: dict[str, list[tuple[float, float]]] = {}
        peaks: dict[str, float] = {}
        signatures = []
        signature_speed(texts[:50])
        for number in range(options.rounds):
            signatures.append(signature_speed(few))
            for k, (title, name, data, megabytes) in enumerate(tools):
                command = command_of(name, data, folder / f"out-{number}-{k}", options.bigcode)
                processor_seconds, seconds, peak = run_tool(command, packages / name)
                speeds.setdefault(title, []).append((megabytes / processor_seconds, megabytes / seconds))
                peaks[title] = max(peak, peaks.get(title, 0))
        quality = measure_quality(texts, options.sample, folder / "sample", empty) if options.sample else ""
    table = Table(title=f"{len(texts):,} files, {size:.0f} MB")
    for column in ("", "MB per processor second", "MB per second", "peak memory, MB"):
        table.add_column(column)
    table.add_row(f"Codekiln, signatures only ({few_size:.0f} MB)", f"{statistics.median(signatures):.0f}", "", "")
    medians = {title: [statistics.median(each) for each in zip(*found, strict=True)] for title, found in speeds.items()}
    step = size / (size / medians["Codekiln"][0] - size / medians[WITHOUT][0])
    table.add_row("Codekiln, the step alone", f"{step:.0f}", "", "")
    for title, (per_processor_second, per_second) in medians.items():
        table.add_row(title, f"{per_processor_second:.2f}", f"{per_second:.2f}", f"{peaks[title]:,.0f}")
    console.print(table)
    console.print(quality)


if __name__ == "__main__":
    main()
