"""Contamination: problems that share runs of words with training documents."""

import re

from codekiln.corpus.documents import Document
from codekiln.evaluate.contamination import find_contamination
from codekiln.evaluate.problems.holes import HoleProblem


def problem(name: str, text: str) -> HoleProblem:
    """A problem whose prompt, reference and suffix are a third of the text each."""
    third = len(text) // 3
    return HoleProblem(
        task_id=name,
        group=name,
        prompt=text[:third],
        suffix=text[2 * third :],
        reference=text[third : 2 * third],
        unit="span",
        max_new_tokens=9,
    )


def words(start: int, n: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + n))


def document(name: str, text: str) -> Document:
    return Document(text, "tree", name, "-", "MIT", "a.py", "Python")


def shares(one: str, other: str, n: int) -> bool:
    """Whether two texts share a run of n words, by sets."""
    runs = []
    for text in (one, other):
        found = re.findall(r"\w+", text)
        runs.append({tuple(found[at : at + n]) for at in range(len(found) - n + 1)})
    return bool(runs[0] & runs[1])


def test_runs_are_found_as_with_sets() -> None:
    problems = [problem(f"p{n}", words(1000 * n, 120)) for n in range(6)]
    problems += [problem(f"short{n}", words(10_000 + 1000 * n, 30)) for n in range(3)]
    problems += [problem("tiny", words(90_000, 5))]
    documents = [
        document("whole", f"x = 1\n{words(0, 120)}\n"),
        document("part", words(1000, 49) + " other " + words(1049, 49)),  # two runs of 49 words
        document("fifty", "def f():\n    " + words(2030, 50).replace(" ", "\n    ")),
        document("across", words(3035, 50)),  # prompt and reference together
        document("short", words(10_000, 26)),
        document("shorter", words(11_000, 24)),
        document("tiny", words(90_000, 5)),
    ]
    found = find_contamination(problems, documents)
    for each in problems[:-1]:
        text = each.prompt + each.reference + each.suffix
        n = 50 if each.task_id.startswith("p") else 25
        expected = tuple(d.name for d in documents if shares(text, d.text, n))
        assert found.documents.get(each.task_id, ()) == expected, each.task_id
    assert set(found.documents) == {"p0", "p2", "p3", "short0"}
    assert found.clean == ("p1", "p4", "p5", "short1", "short2")
    assert found.unchecked == ("tiny",)


def test_length_of_runs_can_be_set() -> None:
    problems, documents = [problem("p", words(0, 120))], [document("part", words(0, 15))]
    assert find_contamination(problems, documents).clean == ("p",)
    assert find_contamination(problems, documents, run_words=15).documents == {"p": ("part@-/a.py",)}


def test_listed_documents_are_limited() -> None:
    text = words(0, 60)
    found = find_contamination([problem("p", text)], [document(str(n), text) for n in range(20)])
    assert found.documents["p"] == tuple(f"{n}@-/a.py" for n in range(5))
    assert find_contamination([], [document("a", text)]).clean == ()
