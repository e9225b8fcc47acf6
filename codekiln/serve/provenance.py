"""Where the completions of an answer come from, for clients: a header, and a field that a request asks for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from codekiln.files import JsonObject
from codekiln.generate.complete import Completion

if TYPE_CHECKING:  # it needs pyarrow and numba
    from codekiln.generate.provenance import Stretch, Tracer

MAX_HEADER_LICENSE = 100  # characters
NO_INDEX = "this server has no index of the training documents"
ProvenanceField = Annotated[
    bool,
    Field(
        description="Report which parts of a completion are verbatim in the training documents. Only Codekiln has it."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a server knows of the training documents: a tracer if it has their index.

    `withheld` is why completions end early, if copying is limited.
    """

    tracer: "Tracer | None" = None
    withheld: str = ""


@dataclass(eq=False)
class Traces:
    """The stretches of the completions of an answer. `contexts` are the ids that they continue, of each prompt."""

    training: Training
    contexts: Sequence[Sequence[int]]
    n_per_prompt: int
    _texts: dict[int, str] = field(default_factory=dict)
    _stretches: dict[int, "list[Stretch]"] = field(default_factory=dict)

    def find(self, texts: Mapping[int, str], completions: Mapping[int, Completion]) -> None:
        """Finds the stretches of some texts, by their numbers. Takes about a millisecond per text, so it needs a thread."""
        tracer = self.training.tracer
        if tracer is None:
            return
        for number, text in texts.items():
            tokens = completions[number].tokens if number in completions else ()
            self._texts[number] = text
            context = tracer.context_ids(self.contexts[number // self.n_per_prompt])
            self._stretches[number] = tracer.find(text, tokens, context)

    def header(self, numbers: Iterable[int]) -> str:
        """The value of the header `Codekiln-Provenance` for some completions that were searched."""
        return header_value([each for number in numbers for each in self._stretches[number]])

    def fields(self, number: int, completion: Completion | None, *, is_wanted: bool, first: int = 0) -> JsonObject:
        """The fields that a completion adds to its record. `first` is where it begins in the text of the record."""
        fields: JsonObject = {}
        if completion is not None and completion.is_withheld:
            fields["withheld"] = self.training.withheld
        if not is_wanted:
            return fields
        if self.training.tracer is None:
            return fields | {"provenance": None, "provenance_note": NO_INDEX}
        found = [each.to_record(self._texts[number], first) for each in self._stretches[number]]
        return fields | {"provenance": found}


def header_value(stretches: "Sequence[Stretch]") -> str:
    """The longest of some stretches as a structured field (RFC 9651): its tokens, its places, and its most frequent license.

    The value is ASCII and has at most 200 characters.
    """
    longest = max(stretches, key=lambda each: each.n_tokens, default=None)
    if longest is None:
        return "tokens=0"
    name = next(iter(longest.verbatim.licenses))
    quoted = "".join(each if " " <= each <= "~" and each not in '"\\' else "?" for each in name[:MAX_HEADER_LICENSE])
    return f'tokens={longest.n_tokens}, count={longest.verbatim.count}, license="{quoted}"'
