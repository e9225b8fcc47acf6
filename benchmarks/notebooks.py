"""Notebooks as text: megabytes of notebook files per processor second, and markdown-it-py as the peer.

    notebooks.py [--notebooks N]

A generated notebook has 60 cells, half of them code without outputs. The text cells are dense in formatting: it is a hard case.
For comparison, in the same run: Python's `json` reads the files only, and markdown-it-py parses the text cells only.
"""

import argparse
import json
import time
from collections.abc import Callable

from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table

from codekiln.corpus.notebooks import notebook_to_text

MARKDOWN = """# A title

Some *emphasis*, a [link](https://example.com) with `code`, ![a picture](a.png), and $x_i$.

- one
- two

```python
x = 1
```

A longer paragraph of text without any formatting, as most paragraphs are, that is several
lines long, because people write sentences in notebooks that explain what the next cell does.
"""
CODE = "import numpy as np\nvalues = np.zeros((10, 10))\nfor value in values:\n    print(value.sum())\n" * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebooks", type=int, default=300)
    options = parser.parse_args()
    cells = [
        {"cell_type": "markdown", "source": MARKDOWN.splitlines(keepends=True)},
        {"cell_type": "code", "source": CODE.splitlines(keepends=True), "outputs": []},
    ] * 30
    data = json.dumps({"nbformat": 4, "cells": cells}, indent=1)
    peer = MarkdownIt()

    def parse_cells() -> None:
        for _ in range(30):
            peer.parse(MARKDOWN)

    runs: dict[str, tuple[Callable[[], object], int]] = {
        "layout cells": (lambda: notebook_to_text(data, "cells"), options.notebooks),
        "layout script": (lambda: notebook_to_text(data, "script"), options.notebooks),
        "json only": (lambda: json.loads(data), options.notebooks),
        "markdown-it-py, text cells only": (parse_cells, max(1, options.notebooks // 10)),
    }
    table = Table(title=f"{options.notebooks} notebooks of {len(data) / 1e3:.0f} kB")
    for column in ("", "MB of notebooks per processor second"):
        table.add_column(column)
    for name, (run, n) in runs.items():
        run()
        start = time.process_time()
        for _ in range(n):
            run()
        table.add_row(name, f"{n * len(data) / 1e6 / (time.process_time() - start):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
