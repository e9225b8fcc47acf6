"""What a problem of a benchmark is. The problems of all benchmarks are of one of five kinds.

    completion   one answer after `prompt`, or between `prompt` and `suffix`
    multi-turn   one answer per turn; each turn sees the answers before it
    cloze        the more likely one of a few options, by the likelihood of token sequences
    names        several holes with the same name in each: the most frequent fill is the answer
    text         nothing is generated: the likelihood of a document is measured

`kind` is the tag of the union `Problem`. An answer is always a text. It is judged by `text_scores`, and by the program that
`program` returns, if it returns one.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Protocol

from codekiln.evaluate.problems.text import TextProblem
from codekiln.evaluate.programs import Program
from codekiln.tokenizer.infill import InfillFormat

Kind = Literal["completion", "multi-turn", "cloze", "names", "text"]
ClozeMethod = Literal[
    "left-break",
    "left-token",
    "left-region",
    "left-right-break",
    "left-right",
    "infill-break",
    "infill-token",
    "infill-region",
]


class AnyProblem(Protocol):
    """What problems of all kinds have. `reference` is the right answer, "" if the file has none.

    `task_id` is unique in its benchmark. `group` is the unit of the bootstrap: problems that were made from one function
    share it, because they are not independent of each other.
    """

    @property
    def task_id(self) -> str: ...

    @property
    def group(self) -> str: ...

    @property
    def prompt(self) -> str:
        """The text before the answer: of the first turn, or of the first hole."""

    @property
    def suffix(self) -> str | None:
        """The text after the answer; None if there is no hole."""

    @property
    def reference(self) -> str: ...

    def text_scores(self, answer: str) -> Mapping[str, float]:
        """Scores of an answer by the names of `metrics`, each between 0 and 1. No program runs; {} if only a program judges."""


class CompletionProblem(AnyProblem, Protocol):
    """One answer. If the problem has a suffix, it can be shown to the model or hidden (a left-to-right baseline)."""

    kind: ClassVar[Literal["completion"]]

    @property
    def max_new_tokens(self) -> int:
        """The limit of the paper."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings before which generation may end. Text that was cut there has the same truncated answer as longer text."""

    def truncate(self, text: str, *, with_suffix: bool) -> str:
        """The answer in a generated text. `with_suffix` is whether the model saw the suffix. The text of special tokens, such
        as `<|endoftext|>` or `<|endofmask|>`, is not in `text`."""

    def is_ended(self, text: str, *, with_suffix: bool) -> bool:
        """Whether more text cannot change the truncated answer. It may be asked at line ends, to end generation early."""

    def program(self, answer: str) -> Program | None:
        """The program that judges a truncated answer; None if no program does."""


class MultiTurnProblem(AnyProblem, Protocol):
    """One answer per turn. `prompt` is the header and the first turn, `suffix` is None."""

    kind: ClassVar[Literal["multi-turn"]]

    @property
    def n_turns(self) -> int: ...

    @property
    def max_new_tokens(self) -> int:
        """The limit of each turn."""

    @property
    def stop(self) -> tuple[str, ...]:
        """As in `CompletionProblem`, for the answer to one turn."""

    def truncate(self, text: str) -> str:
        """The answer to one turn in a generated text."""

    def is_ended(self, text: str) -> bool:
        """Whether more text cannot change the truncated answer to the turn."""

    def history(self, answers: Sequence[str]) -> str:
        """The text so far: the prompt of the next turn, or after all turns the complete program.

        `answers` are the truncated answers to the first turns.
        """

    def program(self, answers: Sequence[str]) -> Program:
        """The program that judges the truncated answers to all turns."""


class TokenCodec(Protocol):
    """A tokenizer's `encode`, without special tokens, and `decode_bytes`."""

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes: ...


class ClozeProblem(AnyProblem, Protocol):
    """One of `options` is between `prompt` and `suffix`."""

    kind: ClassVar[Literal["cloze"]]

    @property
    def options(self) -> tuple[str, ...]: ...

    def sequences(
        self, codec: TokenCodec, infill_format: InfillFormat | None, method: ClozeMethod, max_tokens: int
    ) -> list[list[int]]:
        """One sequence of at most `max_tokens` ids per option, whose total log-likelihood is compared. No sequence begins with
        a BOS. Text far from the option is left out where it does not fit.

        Raises ConfigError if the method infills and the model has no infilling format.
        """

    def choose(self, log_likelihoods: Sequence[float]) -> str:
        """The answer: the option whose sequence is most likely, the first of equally likely ones."""


class NamesProblem(AnyProblem, Protocol):
    """`parts` are the texts around the holes, one more than there are holes. A model that cannot infill continues `prompt`, the
    text before the first hole. `suffix` is the rest, with the reference in the other holes: no model sees it."""

    kind: ClassVar[Literal["names"]]

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def max_new_tokens(self) -> int:
        """The limit of each hole."""

    @property
    def stop(self) -> tuple[str, ...]: ...

    def truncate(self, text: str) -> str:
        """The name at the beginning of a generated text, "" if there is none."""

    def vote(self, fills: Sequence[str]) -> str:
        """The answer: the most frequent of the truncated fills that is not "", the first of equally frequent ones."""


Problem = CompletionProblem | MultiTurnProblem | ClozeProblem | NamesProblem | TextProblem
