"""Held-out functions for the report: a body to complete and a line to infill, as in an editor."""

import ast
import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from codekiln.corpus.documents import Document


@dataclass(frozen=True)
class Function:
    """A Python function: the end of the text before its body, its body, and the line of it to hide."""

    name: str
    before: str
    body: str
    hidden_line: int


def sample_functions(
    documents: Iterable[Document], n: int, *, seed: int, context_characters: int = 800
) -> list[Function]:
    """`n` functions with bodies of 3 to 12 lines, at most one per document, in an order that the seed decides."""
    found = []
    for document in documents:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings about escapes in the code of others
                tree = ast.parse(document.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        lines = document.text.splitlines(keepends=True)
        if len(lines) != len(document.text.removesuffix("\n").split("\n")):
            continue  # it has a separator that ends a line for Python strings but not for ast: line numbers would differ
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is not None:
                continue
            first, last = node.body[0].lineno, node.end_lineno or 0
            if not 3 <= last - first + 1 <= 12 or first <= node.lineno:
                continue
            body = lines[first - 1 : last]
            hideable = [i for i, line in enumerate(body) if len(line.strip()) >= 8]
            key = hashlib.sha256(f"{seed}:{document.name}:{node.name}:{first}".encode()).digest()
            if hideable:
                before = "".join(lines[: first - 1])[-context_characters:]
                name = f"{document.name}:{node.name}"
                found.append(
                    (key, document.name, Function(name, before, "".join(body), hideable[key[0] % len(hideable)]))
                )
    chosen: dict[str, Function] = {}
    for _, document_name, function in sorted(found, key=lambda entry: entry[0]):
        chosen.setdefault(document_name, function)
    return list(chosen.values())[:n]
