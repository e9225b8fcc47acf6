"""Data sets in files: megabytes of text per second of each format, next to Daft's own readers.

    archives.py [--megabytes N]

The texts are source files of this machine, each packed once in every format. Codekiln's reader makes the documents in this
process, with all checks. Daft's reader collects the column of texts on its own threads; it has no reader for tar and zip, and
neither limits nor counts for damaged input. Times are processor seconds of this process, all threads together.
"""

import argparse
import gzip
import io
import json
import resource
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import daft
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from codekiln.corpus.sources.archives import Archives, Columns

COLUMNS = Columns(path="meta.path", repository="meta.repo")


def read_texts(n_bytes: int) -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if 0 < len(text) < 900_000:
            yield text
            n_bytes -= len(text.encode())
        if n_bytes <= 0:
            return


def write_formats(folder: Path, texts: list[str]) -> None:
    rows = [{"text": text, "meta": {"path": f"{n}.py", "repo": "r"}} for n, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, 6))
    (folder / "a.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", compression="zstd", row_group_size=1000)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for n, text in enumerate(texts):
            header, content = tarfile.TarInfo(f"r/{n}.py"), text.encode()
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    (folder / "a.tar.zst").write_bytes(pa.compress((folder / "a.tar").read_bytes(), codec="zstd", asbytes=True))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for n, text in enumerate(texts):
            packed.writestr(f"r/{n}.py", text)


def read_with_codekiln(path: Path) -> int:
    source = Archives(paths=(str(path),), columns=COLUMNS, license="MIT")
    return sum(file.size for unit in source.units(Path()) for file in unit.files() if file.read())


def read_with_daft(path: Path) -> int:
    """The bytes of the texts, which are counted from Arrow's arrays and never become Python objects."""
    frame = daft.read_parquet(str(path)) if path.suffix == ".parquet" else daft.read_json(str(path))
    parts = frame.select("text").to_arrow_iter()
    return sum(int(pc.sum(pc.binary_length(part.column(0))).as_py()) for part in parts)


def rate(read: Callable[[Path], int], path: Path, n_bytes: int) -> str:
    """MB of text per processor second, the best of three rounds."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        assert read(path) == n_bytes, path
        best = min(best, time.process_time() - start)
    return f"{n_bytes / 1e6 / best:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50)
    options = parser.parse_args()
    daft.set_runner_native()
    texts = list(read_texts(options.megabytes * 10**6))
    n_bytes = sum(len(text.encode()) for text in texts)
    table = Table(title=f"MB of text per processor second: {n_bytes / 1e6:.0f} MB, {len(texts):,} documents")
    for column in ("", "MB of the file", "Codekiln", "Daft's reader, texts only"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_formats(folder, texts)
        for path in sorted(folder.iterdir()):
            is_table = path.suffix == ".parquet" or ".jsonl" in path.name
            try:
                peer = rate(read_with_daft, path, n_bytes) if is_table else ""
            except daft.exceptions.DaftCoreException as error:
                peer = str(error).splitlines()[0][:40]
            size = f"{path.stat().st_size / 1e6:.1f}"
            table.add_row(path.name, size, rate(read_with_codekiln, path, n_bytes), peer)
    console = Console()
    console.print(table)
    console.print(
        f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, the texts included"
    )


if __name__ == "__main__":
    main()
