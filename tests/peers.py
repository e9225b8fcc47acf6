"""Official code and files of benchmarks that are not part of this repository. Tests that need them are skipped without them.

`CODEKILN_PEERS` is a folder of clones that are named `owner+name`, for example `salesforce+CodeGen`.
"""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

from tests.small import ROOT

DATA = ROOT.parent / "shared" / "data"
PLACES = {
    "HumanEvalPlus-OriginFmt.jsonl.gz": "evalplus+humanevalplus_release",
    "MbppPlus-OriginFmt.jsonl.gz": "evalplus+mbppplus_release",
    "cruxeval.jsonl": "facebookresearch+cruxeval/data",
    "codexglue_return_types_test.json": "Eric-Wallace+codex/data",
}


def peer(path: str) -> Path:
    """A file of a peer. Skips the test if it is not there."""
    folder = os.environ.get("CODEKILN_PEERS")
    if folder is None:
        pytest.skip("CODEKILN_PEERS is not set: it is a folder with the official code of benchmarks")
    found = Path(folder) / path
    if not found.exists():
        pytest.skip(f"{found} does not exist")
    return found


def published(file: str) -> Path:
    """A published file of a benchmark. Skips the test if it is not there."""
    if (DATA / file).is_file():
        return DATA / file
    if file in PLACES:
        return peer(f"{PLACES[file]}/{file}")
    pytest.skip(f"{DATA / file} does not exist: it is a file of a benchmark")


def load_official(path: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Functions, classes and constants of an official file, without its imports. `names` are those that it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign) and _is_plain(node)
    ]
    found = dict(names)
    exec(compile(ast.Module(kept, []), str(path), "exec"), found)  # noqa: S102 - a file that the user chose
    return found


def _is_plain(node: ast.stmt) -> bool:
    """Whether a statement needs no model library: base classes and calls at import time."""
    return "torch" not in ast.unparse(node) and "fairseq" not in ast.unparse(node)
