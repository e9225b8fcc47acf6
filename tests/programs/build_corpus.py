"""Builds a corpus of a folder, in small work units, and prints the SHA-256 of each of its files as JSON.

    python tests/programs/build_corpus.py FOLDER OUTPUT native|ray|ADDRESS N_PROCESSORS

With an address, the corpus is built on the workers of that Ray cluster.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from codekiln.corpus.config import DEFAULT_STEPS, CorpusConfig
from codekiln.corpus.engine import Engine
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources import files
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.caps import RepositoryCap


def main() -> None:
    code, out, where, n_processors = sys.argv[1:]
    files.UNIT_BYTES = 200_000
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(n_processors)])
    engine = Engine() if where == "native" else Engine(kind="ray", ray_address=None if where == "ray" else where)
    config = CorpusConfig(
        sources=(LocalRepositories(folder=Path(code), license="MIT"),),
        steps=(*DEFAULT_STEPS[:-1], RepositoryCap(max_bytes=600_000), DEFAULT_STEPS[-1]),
        validation_fraction=0.1,
    )
    build_corpus(config, Path(out), engine, keep_dropped=True)
    paths = sorted(path for path in Path(out).rglob("*") if path.is_file())
    found = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
