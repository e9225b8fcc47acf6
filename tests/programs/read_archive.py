"""Reads all documents of a data set in files, and prints their number, their bytes and the peak memory as JSON.

python tests/programs/read_archive.py PATH
"""

import json
import sys
from pathlib import Path

from codekiln.corpus.sources.archives import Archives, Columns


def main() -> None:
    source = Archives(paths=(sys.argv[1],), columns=Columns(path="path"), license="MIT")
    n_documents = n_text_bytes = 0
    for unit in source.units(Path()):
        for file in unit.files():
            assert file.problem is None, file.problem
            n_documents += 1
            n_text_bytes += len(file.read())
    # Not from getrusage, whose peak includes that of the process that started this one.
    peak_bytes = int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    sys.stdout.write(
        json.dumps({"documents": n_documents, "text_bytes": n_text_bytes, "peak_bytes": peak_bytes}) + "\n"
    )


if __name__ == "__main__":
    main()
