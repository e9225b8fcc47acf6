"""Near-duplicates on the Python files of this machine: speed, memory, and quality against brute force; datasketch as the peer.

    near_duplicates.py [--documents N] [--sample N] [--rounds N]

Speed: signatures of the same files by Codekiln and by datasketch, the library of text-dedup and BigCode, alternating, in
processor seconds (median of the rounds). datasketch gets 250 permutations, and a fiftieth of the files, because it is slow.
It is installed into a temporary folder. "Verified clusters" is the whole step: signatures, buckets, shingles of candidates,
verification.
Quality: on a sample in which each second file is an edited copy of another one, all pairs are compared by their shingles.
"""

import argparse
import itertools
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from codekiln.corpus.scratch import Scratch
from codekiln.corpus.shingles import shingle_bands
from codekiln.corpus.steps.near import band_matrix, find_clusters

WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]+")
PEER = """
import sys, re, time, json
from datasketch import MinHash
texts = json.load(open(sys.argv[1]))
word = re.compile(rb"[A-Za-z0-9_\\x80-\\xff]+")
start = time.process_time()
for text in texts:
    words = word.findall(text.encode())
    shingles = {b" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
    MinHash(num_perm=250).update_batch(list(shingles))
print(time.process_time() - start)
"""


def read_texts(n: int) -> list[str]:
    """The texts of files of the standard library and installed packages, in a fixed random order."""
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "purelib")}
    paths = sorted({path for folder in folders for path in Path(folder).rglob("*.py")})
    random.Random(0).shuffle(paths)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return list(itertools.islice((text for text in texts if text.strip() and len(text) < 1_000_000), n))


def edited(text: str, fraction: float, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(
        f"x_{rng.randrange(10**9)} = y_{rng.randrange(10**9)}\n" if rng.random() < fraction else line for line in lines
    )


def cluster(texts: list[str], folder: Path) -> tuple[npt.NDArray[np.int64], float]:
    """The first of the cluster of each text, and the processor seconds of signatures, buckets and verification."""
    folder.mkdir()
    for start in range(0, len(texts), 4096):
        part = texts[start : start + 4096]
        table = pa.table({"order": pa.array(range(start, start + len(part)), pa.int64()), "text": part})
        pq.write_table(table, folder / f"{start:08}.parquet", compression="zstd")
    begun = time.process_time()
    bands = band_matrix(pa.chunked_array([[shingle_bands(text).tobytes() for text in texts]], pa.binary()))
    _, roots = find_clusters(bands, np.arange(len(texts)), Scratch(folder, folder), 0.7)
    return roots, time.process_time() - begun


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--sample", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = read_texts(options.documents)
    size = sum(len(text.encode()) for text in texts) / 1e6
    few = texts[: max(1, len(texts) // 50)]
    few_size = sum(len(text.encode()) for text in few) / 1e6
    shingle_bands(texts[0])
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "peer.py").write_text(PEER, encoding="utf-8")
        (folder / "texts.json").write_text(json.dumps(few), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder / "peer"), "datasketch>=2"]
        subprocess.run(pip, check=True)
        cluster(texts[:500], folder / "warm")  # compiles
        signatures, wholes, peers = [], [], []
        for number in range(options.rounds):
            begun = time.process_time()
            for text in texts:
                shingle_bands(text)
            signatures.append(size / (time.process_time() - begun))
            roots, seconds = cluster(texts, folder / f"round{number}")
            wholes.append(size / seconds)
            done = subprocess.run(
                [sys.executable, folder / "peer.py", folder / "texts.json"],
                env=os.environ | {"PYTHONPATH": str(folder / "peer")},
                capture_output=True,
                text=True,
                check=True,
            )
            peers.append(few_size / float(done.stdout))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rng = random.Random(0)
        sample = [text for text in texts if len(text) < 50_000][: options.sample // 2]
        sample += [edited(text, rng.choice((0.01, 0.03, 0.06, 0.1, 0.15, 0.2)), rng) for text in sample]
        found, _ = cluster(sample, folder / "sample")
    pairs = brute_force(sample)
    together = sum(found[one] == found[other] for one, other in pairs)
    partners = {number for pair in pairs for number in pair}
    dropped = [number for number in range(len(sample)) if found[number] != number]
    table = Table(title=f"{len(texts):,} files, {size:.0f} MB; peak memory {peak:,.0f} MB, the texts included")
    for column in ("", "MB per processor second"):
        table.add_column(column)
    table.add_row("Codekiln, signatures (252 values, 42 bands)", f"{statistics.median(signatures):.0f}")
    table.add_row("datasketch, signatures (250 values)", f"{statistics.median(peers):.2f}")
    table.add_row("Codekiln, signatures, buckets, verified clusters", f"{statistics.median(wholes):.0f}")
    console.print(table)
    console.print(
        f"{int(np.count_nonzero(roots != np.arange(len(texts)))):,} of {len(texts):,} files are near-duplicates of others"
    )
    console.print(
        f"quality on {len(sample):,} files: {len(pairs):,} pairs of similarity 0.7 or more; "
        f"recall {together / len(pairs):.4f}; precision {sum(n in partners for n in dropped) / len(dropped):.4f} "
        f"of {len(dropped):,} dropped files"
    )


if __name__ == "__main__":
    main()
