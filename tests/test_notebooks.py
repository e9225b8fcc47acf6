"""Notebooks as text: both layouts, both formats, kernels, and files that are damaged or hostile."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.documents import read_documents
from codekiln.corpus.html_text import html_to_text
from codekiln.corpus.notebooks import NotebookLayout, notebook_to_text
from codekiln.corpus.pipeline import build_corpus
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.corpus.steps.metadata import FileTags, parse_tags

MARKDOWN = """# Title of *it*

Some **bold** and _slanted_ text with `code`, a [link](https://example.com "hint") and ![a picture](data:image/png;base64,AA).

- one
- two
  1. inner &amp; last

> quoted

```python
if x < 1:

    y = "<b>"
```

<div align="center">A <b>box</b></div>

$x_i \\leq y_j$
"""
PLAIN = """Title of it
Some bold and slanted text with code, a link and .
one
two
inner & last
quoted
if x < 1:

    y = "<b>"
A box
$x_i \\leq y_j$"""


def text_of(notebook: Any, layout: NotebookLayout) -> str | None:
    found = notebook_to_text(json.dumps(notebook), layout)
    return None if found is None else found.text


def kernel_of(metadata: object) -> str:
    found = notebook_to_text(json.dumps({"cells": [], "metadata": metadata}), "cells")
    assert found is not None
    return found.kernel


def test_cells_have_the_layout_of_the_paper() -> None:
    cells = [
        {"cell_type": "markdown", "source": MARKDOWN.splitlines(keepends=True)},
        {
            "cell_type": "code",
            "source": ["import os\n", "\n", "os.name"],
            "outputs": [{"data": {"text/html": "<b>secret</b>"}}],
        },
        {"cell_type": "raw", "source": "raw", "metadata": {"format": "text/restructuredtext"}},
        {"cell_type": "markdown", "source": "![only](a.png)"},
        {"cell_type": "code", "source": "x = 1\n"},
    ]
    expected = f"<text>\n{PLAIN}\n</text>\n<cell>\nimport os\n\nos.name\n</cell>\n<cell>\nx = 1\n</cell>\n"
    assert text_of({"nbformat": 4, "cells": cells}, "cells") == expected


def test_format_3_has_cells_in_worksheets() -> None:
    first = {
        "cells": [
            {"cell_type": "heading", "level": 2, "source": "Plots"},
            {"cell_type": "code", "input": ["f(x)\n", "g(x)"], "language": "julia", "outputs": [{"text": "secret"}]},
        ]
    }
    second = {"cells": [{"cell_type": "html", "source": "<p>a &lt; <i>b</i></p>"}, {"cell_type": "plaintext"}]}
    notebook = {"nbformat": 3, "worksheets": [first, second], "metadata": {"name": ""}}
    found = notebook_to_text(json.dumps(notebook), "cells")
    assert found is not None and found.kernel == "julia"
    assert found.text == "<text>\nPlots\n</text>\n<cell>\nf(x)\ng(x)\n</cell>\n<text>\na < b\n</text>\n"
    assert text_of(notebook, "script") == "# Plots\n\nf(x)\ng(x)\n\n# <p>a &lt; <i>b</i></p>\n"


@pytest.mark.parametrize(
    ("metadata", "kernel"),
    [
        ({"kernelspec": {"language": "R", "name": "ir"}, "language_info": {"name": "other"}}, "r"),
        ({"kernelspec": {"name": "python3"}, "language_info": {"name": "Python"}}, "python"),
        ({"kernelspec": {"name": "python3"}}, "python"),
        ({"kernelspec": {"name": "julia-1.6"}}, "julia"),
        ({"kernelspec": {"name": "xcpp17", "language": "C++"}}, "c++"),
        ({"kernelspec": {"name": "c#"}}, "c#"),
        ({"kernelspec": {"name": ["python"]}, "language_info": 3}, "python"),
        ({"kernelspec": {"name": "two words |> x=1"}}, "python"),
        ({"kernelspec": {"name": "a" * 1000}}, "python"),
        ({"kernelspec": {"name": "3"}}, "python"),
        ([], "python"),
        (None, "python"),
    ],
)
def test_kernel_is_a_language(metadata: object, kernel: str) -> None:
    assert kernel_of(metadata) == kernel


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"cells": {}}',
        '{"cells": [1]}',
        '{"cells": [[]]}',
        '{"cells": [{"source": "x"}]}',
        '{"worksheets": 1}',
        '{"cells": [{"cell_type": "code", "source": "\\ud800"}]}',
        '{"cells": [{"cell_type": "markdown", "source": "\\ud800"}]}',
        '{"cells": ' * 100_000,
        "[" * 1_000_000,
        '{"nbformat": ' + "9" * 10_000 + ', "cells": []}',
    ],
)
def test_other_files_are_no_notebooks(data: str) -> None:
    assert notebook_to_text(data, "cells") is None
    assert notebook_to_text(data, "script") is None


def test_cells_with_missing_fields_are_left_out() -> None:
    cells: list[object] = [
        None,
        {"cell_type": "code"},
        {"cell_type": "code", "source": 7},
        {"cell_type": "markdown", "source": {"text": 1}},
        {"cell_type": 3, "source": "y"},
        {"cell_type": "code", "source": ["a", 1, ["b"], "c"]},
    ]
    assert text_of({"cells": cells}, "cells") == "<cell>\nac\n</cell>\n"
    assert text_of({"cells": []}, "cells") == ""


@pytest.mark.parametrize(
    "unit", [">", "- ", "[", "*a", "`", "![", "<div>", "<pre>", "&", "a**b", "<!--", "|a|\n|-|\n", "\0"]
)
def test_hostile_markdown_takes_linear_time(unit: str) -> None:
    """A megabyte is the largest file that is read."""
    data = json.dumps({"cells": [{"cell_type": "markdown", "source": unit * (1_000_000 // len(unit))}]})
    start = time.process_time()
    assert notebook_to_text(data, "cells") is not None
    assert time.process_time() - start < 20


def test_line_of_50_mb_is_read() -> None:
    line = "word " * 10_000_000
    assert (
        text_of({"cells": [{"cell_type": "markdown", "source": line}]}, "cells")
        == f"<text>\n{line.rstrip()}\n</text>\n"
    )


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["code", "markdown", "<pre>"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cells", "worksheets", "cell_type", "source", "input", "metadata", "kernelspec", "name"]),
            inner,
        )
    ),
)


@given(JSON_VALUES)
def test_no_json_raises(value: object) -> None:
    for data in (value, {"cells": value}, {"cells": [value], "metadata": value}):
        for layout in ("cells", "script"):
            found = notebook_to_text(json.dumps(data), layout)
            assert found is None or isinstance(found.text.encode(), bytes)


@given(st.text(alphabet="<>/&;prescodebdiv lit\n!-a\"'", max_size=300))
def test_text_of_html_does_not_depend_on_what_was_parsed_before(html: str) -> None:
    html_to_text(html, is_code_marked=True)
    assert html_to_text("<p>a</p><pre><code>b\n</code></pre>", is_code_marked=True) == "a\n<code>\nb\n</code>"


def test_kernel_is_in_the_file_tags(tmp_path: Path) -> None:
    cell = {"cell_type": "code", "source": "y <- 1"}
    (tmp_path / "code").mkdir()
    for name, metadata in (("a", {"language_info": {"name": "R"}}), ("b", {})):
        notebook = json.dumps({"cells": [cell], "metadata": metadata})
        (tmp_path / "code" / f"{name}.ipynb").write_text(notebook, encoding="utf-8")
    source = LocalRepositories(folder=tmp_path / "code", license="MIT")
    config = CorpusConfig(sources=(source,), steps=(FileTags(),), notebooks="cells", validation_fraction=0)
    build_corpus(config, tmp_path / "corpus")
    parsed = {document.path: parse_tags(document.text) for document in read_documents(tmp_path / "corpus", "train")}
    assert parsed == {
        "a.ipynb": ("<cell>\ny <- 1\n</cell>\n", {"ext": ".ipynb:r", "filename": "a.ipynb"}),
        "b.ipynb": ("<cell>\ny <- 1\n</cell>\n", {"ext": ".ipynb:python", "filename": "b.ipynb"}),
    }
