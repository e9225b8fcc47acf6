"""Recall: what followed the same tokens elsewhere is mixed into the distribution of the next token.

Three kinds of text are searched for the longest end of what was written so far: an index of the training corpus, an index of a
workspace, and the text of the request itself (what is before and after the cursor, and files that the editor sends). Each match
predicts the tokens that followed it. A gate, a network with one hidden layer, weighs these predictions and the model's own by
the lengths of the matches, their counts, and how sure each is:

    p(v) = w_0 p_model(v) + (1 - p_model(stop)) * sum_k w_k q_k(v)        for tokens v that do not end the text

Tokens that end a text keep the model's probability, except inside a word that is longer at the places where it was found:
there, the odds that the text ends are multiplied by the fraction of places where the word ends too.

Related: kNN-LM (Khandelwal et al. 2020), infini-gram (Liu et al. 2024), and the mixing of contexts in PAQ (Mahoney 2005).
B rows, V vocabulary, K predictions, F gate inputs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codekiln.arrays import load_arrays, save_arrays
from codekiln.errors import InvalidFileError, MissingFileError
from codekiln.generate.recall_kernels import N_INPUTS, N_PREDICTIONS, gate_inputs, mix_row
from codekiln.index.continuations import (
    GUESS,
    MAX_LENGTH,
    NONE,
    Continuations,
    SortedTokens,
    find_continuations,
    find_in_text,
)

SHORT_LENGTH = 4  # of the second match in an index, which has more places than the longest one
MIN_LENGTH = 2  # shorter matches in an index say less than the model
MIN_DRAFT_LENGTH = 2  # of a match that is worth a draft
MIN_WORD_LENGTH = 3  # of a match that says whether a word goes on
MIN_ENDING = 1e-4  # what the odds of an end are multiplied by, at least
MAX_DRAFT = 16  # tokens
MAX_OTHER_TOKENS = 32_768  # of a request's other texts; the first ones are left out
N_HIDDEN = 32
GATE_FILE = "gate.safetensors"
DEFAULT_GATE = Path(__file__).parent / GATE_FILE  # fitted on the demo's model before it had convolutions

Array = npt.NDArray[Any]


class Evidence(NamedTuple):
    """What was found for the next token. `predictions` (K,): corpus longest and short, workspace longest and short, request.

    `goes_on` is 0 if the text does not end in a word; else, of the places of the longest match, the fraction where the word has
    more characters.
    """

    predictions: tuple[Continuations, ...]
    goes_on: float = 0.0


@dataclass(frozen=True)
class TokenKinds:
    """What each id is, (V + 1,) each: the last one is -1, which separates texts.

    Ids that are no text are in no match. An id begins or ends in a word if its first or last character is a letter, digit or
    underscore.
    """

    is_text: Array
    begins_in_word: Array
    ends_in_word: Array

    @classmethod
    def of(cls, n_ids: int, not_text: Iterable[int] = (), token_bytes: Sequence[bytes] = ()) -> "TokenKinds":
        """The kinds of `n_ids` ids, of which `token_bytes` are the text; without them, none is in a word."""
        kinds = cls(*(np.full(n_ids + 1, is_text) for is_text in (True, False, False)))
        kinds.is_text[[*not_text, -1]] = False
        for number, data in enumerate(token_bytes):
            if data:
                text = data.decode(errors="replace")  # a part of a character is in no word
                kinds.begins_in_word[number], kinds.ends_in_word[number] = _is_in_word(text[0]), _is_in_word(text[-1])
        return kinds


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def next_draft_limit(limit: int, n_drafted: int, n_accepted: int) -> int:
    """How many tokens the next draft may have: more after one that was right, fewer after one that was wrong."""
    if n_accepted == n_drafted:
        return min(limit + 2, MAX_DRAFT)
    return limit if n_accepted else max(limit // 2, 1)


class Searched(Protocol):
    """An index, whose shards may change between steps."""

    @property
    def shards(self) -> Sequence[SortedTokens]:
        """The shards, which are searched as one."""


@dataclass(frozen=True)
class SearchedTogether:
    """Several indexes as one."""

    sources: tuple[Searched, ...]

    @property
    def shards(self) -> Sequence[SortedTokens]:
        """Those of all indexes."""
        return [shard for source in self.sources for shard in source.shards]


@dataclass(frozen=True)
class RequestText:
    """All text of a request as ids: `before` the new tokens, also what the context has no room for, and other texts.

    `is_in_word` says that the text after the new tokens begins in a word.
    """

    before: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()
    is_in_word: bool = False


@dataclass(frozen=True)
class Gate:
    """The network that weighs predictions: inputs are scaled, one hidden layer with SiLU, K + 1 logits."""

    mean: Array  # (F,) float32
    scale: Array  # (F,)
    hidden_weight: Array  # (F, N_HIDDEN)
    hidden_bias: Array  # (N_HIDDEN,)
    output_weight: Array  # (N_HIDDEN, K + 1)
    output_bias: Array  # (K + 1,)

    @classmethod
    def load(cls, path: Path = DEFAULT_GATE) -> "Gate":
        """Reads a gate. Raises MissingFileError or InvalidFileError that names the file."""
        if not path.is_file():
            raise MissingFileError(f"{path} is missing: no gate was fitted for this model")
        shapes = {
            "mean": (N_INPUTS,),
            "scale": (N_INPUTS,),
            "hidden_weight": (N_INPUTS, N_HIDDEN),
            "hidden_bias": (N_HIDDEN,),
            "output_weight": (N_HIDDEN, N_PREDICTIONS + 1),
            "output_bias": (N_PREDICTIONS + 1,),
        }
        try:
            arrays = load_arrays(path)
        except Exception as error:  # safetensors has an exception of its own
            raise InvalidFileError(f"{path} is damaged: {error}") from error
        is_whole = {name: array.shape for name, array in arrays.items()} == shapes
        if not is_whole or any(a.dtype != np.float32 or not np.isfinite(a).all() for a in arrays.values()):
            raise InvalidFileError(f"{path} is damaged or of another version of Codekiln: fit the gate again")
        return cls(**arrays)

    def save(self, path: Path) -> None:
        """Writes a file for `load`."""
        save_arrays(path, vars(self))

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array, Array, Array]:
        """The last arguments of `mix_row`."""
        return self.mean, self.scale, self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias


def run_gate(run: Path) -> Path:
    """The gate that was fitted for a run."""
    return run / "recall" / GATE_FILE


class SampleText:
    """The tokens of a request, and those of one of its samples, in which matches are searched and which they end."""

    def __init__(self, text: RequestText, kinds: TokenKinds) -> None:
        self._kinds, self._is_in_word = kinds, text.is_in_word
        n_others = 0
        others: list[int] = []
        for other in reversed(text.others):
            if n_others + len(other) > MAX_OTHER_TOKENS:
                break
            others = [*other, -1, *others]
            n_others += len(other)
        self._n_others = len(others)
        self._buffer = np.empty(len(others) + len(text.before) + 64, np.int64)
        self._n_start = len(others) + len(text.before)
        self._set(0, [*others, *text.before])
        self._n_written = 0
        self._guess = GUESS
        self._last: tuple[tuple[Recall, int, tuple[int, ...]], Evidence] | None = None

    def _write(self, generated: Sequence[int]) -> int:
        """Sets the new tokens. Returns the number of all tokens."""
        n = self._n_start + len(generated)
        if n > len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(n, np.int64)])
        first = max(0, min(self._n_written, len(generated)) - MAX_DRAFT)  # tokens of a draft may have been others
        self._set(self._n_start + first, generated[first:])
        self._n_written = len(generated)
        return n

    def _set(self, start: int, ids: Sequence[int]) -> None:
        array = np.array(ids, np.int64)
        self._buffer[start : start + len(array)] = np.where(self._kinds.is_text[array], array, -1)

    def draft(self, recall: "Recall", generated: Sequence[int], n: int) -> list[int]:
        """Up to `n` tokens that followed the longest match; the request's own text comes first, then the workspace."""
        corpus, _, workspace, _, own = self.find(recall, generated).predictions
        best = max(own, workspace, corpus, key=lambda each: each.length)
        return best.draft(n) if best.length >= MIN_DRAFT_LENGTH else []

    def find(self, recall: "Recall", generated: Sequence[int]) -> Evidence:
        """All predictions of the next token."""
        key = (recall, len(generated), tuple(generated[-MAX_DRAFT:]))
        if self._last is not None and self._last[0] == key:  # a draft was made from it
            return self._last[1]
        n = self._write(generated)
        context = self._buffer[max(self._n_others, n - MAX_LENGTH) : n]
        found = [each for source in (recall.corpus, recall.workspace) for each in self._search(source, context)]
        predictions = (*found, find_in_text(self._buffer, n))
        evidence = Evidence(predictions, self._goes_on(predictions, n))
        self._last = key, evidence
        return evidence

    def _goes_on(self, predictions: Sequence[Continuations], n: int) -> float:
        """`Evidence.goes_on` after `n` tokens."""
        if self._is_in_word or n == self._n_others or not self._kinds.ends_in_word[self._buffer[n - 1]]:
            return 0.0
        longest = max(predictions, key=lambda each: each.length)
        if longest.length < MIN_WORD_LENGTH:
            return 0.0
        return float(longest.fractions[self._kinds.begins_in_word[longest.ids]].sum())

    def _search(self, source: Searched | None, context: Array) -> tuple[Continuations, Continuations]:
        shards = source.shards if source is not None else ()
        if not shards:
            return NONE, NONE
        longest = find_continuations(shards, context, guess=self._guess)
        self._guess = min(longest.length + 1, MAX_LENGTH)
        if longest.length < MIN_LENGTH:
            return NONE, NONE
        if longest.length <= SHORT_LENGTH:
            return longest, NONE
        return longest, find_continuations(shards, context, SHORT_LENGTH, guess=SHORT_LENGTH)


class Recall:
    """The sources that an engine searches, and the gate. Without a gate nothing is mixed, and only drafts use the sources.

    `names` gives the names of the workspace that begin with a text.
    """

    def __init__(
        self,
        gate: Gate | None = None,
        *,
        corpus: Searched | None = None,
        workspace: Searched | None = None,
        names: Callable[[str], Iterable[str]] = lambda begun: (),
    ) -> None:
        self.gate, self.corpus, self.workspace, self.names = gate, corpus, workspace, names
        self.record: list[GateRow] | None = None  # of scored tokens, to fit a gate

    @property
    def is_scoring(self) -> bool:
        """Whether scored tokens are mixed or recorded."""
        return self.gate is not None or self.record is not None

    def mix(self, logits: Tensor, found: Sequence[Evidence], stop_ids: Tensor) -> Tensor:
        """The logits of the mixture from those of the model (B, V), in float32. Rows without evidence stay as they are."""
        rows = [number for number, each in enumerate(found) if any(len(c.ids) for c in each.predictions)]
        if self.gate is None or not rows:
            return logits
        array, stops = logits.cpu().numpy().copy(), stop_ids.cpu().numpy()
        for row in rows:
            ids, values, stop = mix_row(*_view(array[row], found[row].predictions, stops).inputs, *self.gate.arrays)
            array[row, ids] += values
            array[row, stops] += stop + math.log(max(1 - found[row].goes_on, MIN_ENDING))
        return torch.from_numpy(array).to(logits.device)

    def add_rows(self, logits: Tensor, found: Sequence[Evidence], targets: Sequence[int], stop_ids: Tensor) -> None:
        """Records what a gate is fitted to, if that is wanted, for one target per row of logits (B, V)."""
        if self.record is None:
            return
        array, stops = logits.cpu().numpy(), stop_ids.cpu().numpy()
        for row, evidence, target in zip(array, found, targets, strict=True):
            view = _view(row, evidence.predictions, stops)
            predicted = [float(each.fractions[each.ids == target].sum()) for each in evidence.predictions]
            logprob = float(row[target]) - view.log_total
            self.record.append(GateRow(gate_inputs(*view.inputs), np.array(predicted), logprob))


@dataclass(frozen=True)
class GateRow:
    """A scored token: gate inputs (F,), the probability that each prediction gave it (K,), and the model's log-probability."""

    inputs: Array
    predicted: Array
    logprob: float


class _View(NamedTuple):
    """What the gate sees of a row: the first arguments of `mix_row`, and the logarithm of the sum of exp(logits)."""

    inputs: tuple[Array, Array, Array, Array, Array, Array, Array]
    log_total: float


def _view(logits: Array, predictions: Sequence[Continuations], stops: Array) -> _View:
    """`logits` (V,) in float32. Works in NumPy, whose calls take less time than PyTorch's for one row."""
    top_id = int(logits.argmax())
    top = float(logits[top_id])
    shares = np.exp(logits - top)
    total = float(shares.sum())
    # An id that cannot be generated has the logit -inf, and 0 * -inf is no number.
    finite = logits if logits.min() > -np.inf else np.maximum(logits, -1e9)
    mean = float(shares @ finite) / total
    log_total = top + float(np.log(total))
    ids = np.concatenate([each.ids for each in predictions])
    inputs = (
        np.array([each.length for each in predictions], np.float64),
        np.array([each.count for each in predictions], np.float64),
        np.cumsum([0, *(len(each.ids) for each in predictions)]),
        ids,
        np.concatenate([each.fractions for each in predictions]),
        logits[ids].astype(np.float64) - log_total,
        np.array([log_total - mean, top - log_total, top_id, shares[stops].sum() / total]),
    )
    return _View(inputs, log_total)
