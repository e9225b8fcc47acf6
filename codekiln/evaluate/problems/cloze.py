"""Max/min cloze (CodeXGLUE, Feng et al. 2020): which of two words was masked, by the likelihood of token sequences.

InCoder's paper (appendix, table 9) scores eight sequences. Left, Option and Right are ids; "break" encodes them on their own,
the others encode the whole text and cut it at the tokens that hold the option. M0, M1 and EOM are InCoder's masks; other
formats use their own prompt.

    left-break         Left Option
    left-token         Left Option                       the score of a left-to-right model
    left-region        Left Option Right[:10]
    left-right-break   Left Option Right
    left-right         Left Option Right                 left-to-right reranking
    infill-break       Left M0 Right M1 M0 Option EOM
    infill-token       Left M0 Right M1 M0 Option EOM
    infill-region      M0 Right[10:] M1 M0 Left Option Right[:10] EOM
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, assert_never

from codekiln.errors import ConfigError, InvalidFileError
from codekiln.evaluate.benchmark_files import Row
from codekiln.evaluate.problems.problem import ClozeMethod, TokenCodec
from codekiln.tokenizer.infill import PSM, SPM, CausalMask, CodeGen2, InfillFormat

OPTIONS = ("max", "min")  # the order of cloze_test_words.txt
MASK, ANSWER_SEPARATOR = "<mask>", "<CODESPLIT>"
REGION_TOKENS = 10
N_EXTRA = 5  # ids that an infilling format adds, at most


@dataclass(frozen=True, kw_only=True)
class WordClozeProblem:
    """One of two words between `prompt` and `suffix`."""

    kind: ClassVar[Literal["cloze"]] = "cloze"
    options: ClassVar[tuple[str, ...]] = OPTIONS

    task_id: str
    group: str
    prompt: str
    suffix: str
    reference: str

    def sequences(
        self, codec: TokenCodec, infill_format: InfillFormat | None, method: ClozeMethod, max_tokens: int
    ) -> list[list[int]]:
        parts = [_split(codec, self.prompt, option, self.suffix, method) for option in self.options]
        room = max_tokens - N_EXTRA - max(len(part.option) for part in parts)
        if room < 0:
            raise ConfigError(f"a cloze of {max_tokens} tokens is too short for its words: use a longer context")
        return [_sequence(part.fit(room), infill_format, method) for part in parts]

    def choose(self, log_likelihoods: Sequence[float]) -> str:
        return self.options[max(range(len(self.options)), key=log_likelihoods.__getitem__)]

    def text_scores(self, answer: str) -> dict[str, float]:
        """{} if the file has no answers."""
        return {"correct": float(answer == self.reference)} if self.reference else {}


@dataclass(frozen=True)
class _Parts:
    """`option` has the ids of the option, and those of its region."""

    left: list[int]
    option: list[int]
    right: list[int]

    def fit(self, room: int) -> "_Parts":
        """Both sides shortened to `room` ids together. A side that is shorter than half leaves its rest to the other."""
        n_right = min(len(self.right), max(room // 2, room - len(self.left)))
        n_left = min(len(self.left), room - n_right)
        return _Parts(self.left[len(self.left) - n_left :], self.option, self.right[:n_right])


def cloze(rows: Sequence[Row], language: str, answers: Mapping[str, str]) -> list[WordClozeProblem]:
    """The problems of one language. Without its answer, a problem has the reference ""."""
    found = []
    for row in rows:
        text = " ".join(row.texts("nl_tokens")) + joined_code(row.texts("pl_tokens"))
        parts = text.split(MASK)
        if len(parts) != 2:
            raise InvalidFileError(f"{row.where}: pl_tokens has {len(parts) - 1} times {MASK}, once is needed")
        task_id = f"cloze-{language}/{row.text('idx')}"
        reference = answers.get(row.text("idx"), "")
        found.append(
            WordClozeProblem(task_id=task_id, group=task_id, prompt=parts[0], suffix=parts[1], reference=reference)
        )
    return found


def read_answers(path: Path) -> dict[str, str]:
    """The answers by `idx` from lines of `idx<CODESPLIT>answer`. Raises InvalidFileError that names the line."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{path}: not UTF-8 ({error.reason})") from None
    for number, line in enumerate(lines, 1):
        name, separator, answer = line.strip().partition(ANSWER_SEPARATOR)
        if not separator or answer not in OPTIONS or name in found:
            raise InvalidFileError(
                f"{path}, line {number}: needed is a new idx, {ANSWER_SEPARATOR} and {' or '.join(OPTIONS)} (got {line[:80]!r})"
            )
        found[name] = answer
    return found


def joined_code(tokens: Sequence[str]) -> str:
    """InCoder's joining of tokens: a space at the beginning, between letters or digits, and for an empty token."""
    text = " "
    for token in tokens:
        is_joined = token and not (text[-1].isalnum() and token[0].isalnum())
        text += token if is_joined else f" {token}"
    return text


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many ids all sequences begin with. They add the same to each likelihood, so they need not be scored."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))


def _split(codec: TokenCodec, prompt: str, option: str, suffix: str, method: ClozeMethod) -> _Parts:
    if method.endswith("-break"):
        right = [] if method == "left-break" else codec.encode(suffix)
        return _Parts(codec.encode(prompt), codec.encode(option), right)
    ids = codec.encode(prompt + option + suffix)
    n_before, n_through = len(prompt.encode()), len((prompt + option).encode())
    ends = list(itertools.accumulate(len(codec.decode_bytes([token])) for token in ids))
    start = sum(end <= n_before for end in ends)
    stop = sum(end < n_through for end in ends) + 1
    if method in ("left-region", "infill-region"):
        stop += REGION_TOKENS
    right = [] if method in ("left-token", "left-region") else ids[stop:]
    return _Parts(ids[:start], ids[start:stop], right)


def _sequence(parts: _Parts, infill_format: InfillFormat | None, method: ClozeMethod) -> list[int]:
    if not method.startswith("infill"):
        return [*parts.left, *parts.option, *parts.right]
    if infill_format is None:
        raise ConfigError(
            f"the method {method} needs a model with an infilling format: choose a method that begins with left"
        )
    if method == "infill-region":
        return [*infill_format.prompt([], parts.right), *parts.left, *parts.option, _end_id(infill_format)]
    return [*infill_format.prompt(parts.left, parts.right), *parts.option, _end_id(infill_format)]


def _end_id(infill_format: InfillFormat) -> int:
    """The id that ends a middle."""
    match infill_format:
        case CausalMask() | CodeGen2():
            return infill_format.end_of_mask_id
        case SPM() | PSM():
            return infill_format.eos_id
        case _:
            assert_never(infill_format)
