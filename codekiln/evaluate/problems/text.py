"""Texts whose likelihood is measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from codekiln.corpus.documents import Document


@dataclass(frozen=True, kw_only=True)
class TextProblem:
    """A document. Nothing is generated: the bits of the `reference` are measured."""

    kind: ClassVar[Literal["text"]] = "text"
    prompt: ClassVar[str] = ""
    suffix: ClassVar[None] = None

    task_id: str
    group: str
    reference: str

    def text_scores(self, answer: str) -> dict[str, float]:
        return {}


def texts(documents: Iterable[Document]) -> list[TextProblem]:
    """All documents that are not empty. Those of a repository are a group."""
    return [
        TextProblem(task_id=document.name, group=document.repository, reference=document.text)
        for document in documents
        if document.text
    ]
