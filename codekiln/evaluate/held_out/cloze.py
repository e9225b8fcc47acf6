"""Max/min cloze in held-out Python code."""

import ast
from collections.abc import Iterator

from codekiln.evaluate.held_out.holes import context_of
from codekiln.evaluate.problems.cloze import OPTIONS, WordClozeProblem
from codekiln.evaluate.python_code import PythonCode


def cloze_problems(
    code: PythonCode, name: str, context_characters: int, *, calls_only: bool
) -> Iterator[WordClozeProblem]:
    """One problem per name or attribute `max` or `min`; with `calls_only`, per one that is called."""
    called = {id(node.func) for node in ast.walk(code.tree) if isinstance(node, ast.Call)}
    places = []
    for node in ast.walk(code.tree):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) if word in OPTIONS:
                stop = code.span(node)[1]
                # In f-strings, offsets are not true in all versions of Python.
                if code.data[stop - len(word) : stop] == word.encode() and (not calls_only or id(node) in called):
                    places.append((stop, word))
    for stop, word in sorted(places):
        start = len(code.cut(0, stop - len(word)))
        prompt, suffix = context_of(code.text, start, start + len(word), context_characters)
        yield WordClozeProblem(
            task_id=f"{name}/cloze/{start}", group=name, prompt=prompt, suffix=suffix, reference=word
        )
