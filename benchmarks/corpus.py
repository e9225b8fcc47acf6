"""From a folder of source files to token shards: speed, processor time and peak memory, for inputs of several sizes.

    corpus.py [--megabytes N ...] [--memory SIZE] [--rounds N]

The input is the Python files of this machine. A larger one has them again with other names, so that they are no duplicates: a
number follows every a and every e. Steps are those that `finetune` has (licenses, filters, generated
files, notices, exact and near-duplicates, redaction, the held-out split); then CodeGen's tokenizer writes shards. Each run is a
process of its own; times include imports. The second table has the speed of the filters alone, in one pass over each text, and
of the keys of exact duplicates, in one thread.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from codekiln.corpus.steps.exact import word_key
from codekiln.corpus.steps.filters import CODEGEN_FILTERS, INCODER_FILTERS, first_drop

ROOT = Path(__file__).parent.parent
PROGRAM = """
import json, resource, sys, threading, time
from pathlib import Path
from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.engine import Engine, parse_bytes
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.tokenizer.codegen import load_pretrained
from codekiln.train.prepare import prepare_shards
out = Path(sys.argv[2])
peak = 0
def watch():
    global peak
    while True:  # memory that is mapped from files is not counted: the system takes it back when it needs it
        status = Path("/proc/self/status").read_text()
        peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
source = LocalRepositories(folder=Path(sys.argv[1]), license="MIT")
begun = time.perf_counter()
manifest = build_corpus(CorpusConfig(sources=(source,)), out / "corpus", Engine(memory_bytes=parse_bytes(sys.argv[3])))
corpus = time.perf_counter() - begun
corpus_peak = peak
load_pretrained("codegen").save(out / "tokenizer.json")
prepare_shards(out / "corpus", out / "tokenizer.json", out / "tokens")
seconds = time.perf_counter() - begun
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([manifest["read"]["bytes"] / 1e6, manifest["kept"]["text_bytes"] / 1e6, corpus, seconds,
                  used.ru_utime + used.ru_stime, corpus_peak]))
"""


def read_texts() -> list[str]:
    """Files of the standard library and installed packages, in a fixed random order."""
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "purelib")}
    paths = sorted({path for folder in folders for path in Path(folder).rglob("*.py")})
    random.Random(0).shuffle(paths)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    return [text for text in texts if text.strip() and len(text) < 900_000]


def write_tree(texts: list[str], megabytes: float, folder: Path) -> None:
    """Files of about this size, in 200 repositories."""
    n_bytes = number = 0
    for copy in itertools.count():
        for text in texts:
            content = text if copy == 0 else text.replace("a", f"a{copy}").replace("e", f"e{copy}")
            path = folder / f"repository{number % 200}" / f"{number:06}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8", newline="")
            n_bytes, number = n_bytes + path.stat().st_size, number + 1
            if n_bytes >= megabytes * 1e6:
                return


def measure(function: Callable[[str], object], texts: list[str], n_bytes: int) -> float:
    """MB per processor second of a function of a text, in this thread."""
    function(texts[0])
    begun = time.process_time()
    for text in texts:
        function(text)
    return n_bytes / 1e6 / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[100, 500])
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = read_texts()
    table = Table(title=f"to token shards, --memory {options.memory}, {len(os.sched_getaffinity(0))} processors")
    columns = ("MB read", "MB kept", "corpus, s", "with shards, s", "processor, s", "MB/s to shards")
    for column in (*columns, "MB per processor second", "peak of the corpus, MB"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as temporary:
        for k, megabytes in enumerate(options.megabytes):
            code = Path(temporary, f"code{k}")
            write_tree(texts, megabytes, code)
            rows = []
            for number in range(options.rounds):
                command = [sys.executable, "-c", PROGRAM, str(code), f"{temporary}/out{k}-{number}", options.memory]
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                rows.append(json.loads(done.stdout))
            read, kept, corpus, seconds, processor, peak = (statistics.median(each) for each in zip(*rows, strict=True))
            figures = (read, kept, corpus, seconds, processor)
            table.add_row(
                *(f"{value:,.0f}" for value in figures),
                f"{read / seconds:.1f}",
                f"{read / processor:.1f}",
                f"{peak:,.0f}",
            )
    few = texts[:6000]
    n_bytes = sum(len(text.encode()) for text in few)
    steps = Table("one thread", "MB per processor second")
    filters = CODEGEN_FILTERS + INCODER_FILTERS
    for name, function in (
        ("all filters of both papers", lambda text: first_drop(text, filters)),
        ("InCoder's key of duplicates", lambda text: word_key("a.py", text)),
    ):
        speeds = [measure(function, few, n_bytes) for _ in range(options.rounds)]
        steps.add_row(name, f"{statistics.median(speeds):.0f}")
    console = Console()
    console.print(table)
    console.print(steps)


if __name__ == "__main__":
    main()
