"""Text in, text out: complete what comes after, or fill the holes of a document."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from codekiln.files import read_json
from codekiln.generate.engine import generate
from codekiln.generate.sampling import SamplingParams
from codekiln.model.huggingface import CONFIG, TOKENIZER, load_model, resolve_model_dir, token_ids_of
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import N_FIM_SENTINELS, bos_ids, infill_prompt, stop_token_ids_of

DEFAULT_MAX_NEW_TOKENS = 64  # where nothing else is asked for
SUFFIX_FRACTION = 0.25  # of the room for context: what comes before a hole says more than what comes after


@dataclass(frozen=True)
class InfillRequest:
    """Text around a hole; `suffix` None means that nothing is known of what comes after, and nothing is infilled."""

    prompt: str
    suffix: str | None = None


@dataclass(frozen=True)
class Completion:
    """`is_finished`: the model, or a stop string, ended it, not the limit. `prompt_tokens` were read."""

    text: str
    is_finished: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class CompletionChunk:
    """Text of one request as it comes; the last piece of a request carries its answer."""

    index: int
    text: str
    completion: Completion | None = None


class Completer:
    """A model and its tokenizer. One call at a time. `stop_token_ids` end an answer beside the tokenizer's own ends."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, stop_token_ids: frozenset[int] = frozenset()) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size} rows: "
                "use the tokenizer saved with this model"
            )
        self.model, self.tokenizer = model, tokenizer
        self.context_length = model.config.context_length
        self._stop_token_ids = stop_token_ids_of(tokenizer) | (stop_token_ids & tokenizer.special_ids)
        # Rows that no text has: control tokens, and those beyond the tokenizer's ids or in a gap of them.
        silent = {i for i, data in enumerate(tokenizer.token_bytes) if not data}
        beyond = range(tokenizer.vocab_size, model.config.vocab_size)
        self._forbidden_token_ids = frozenset(silent.union(beyond)) - self._stop_token_ids

    @property
    def max_new_tokens_limit(self) -> int:
        """Below a half of the context, so that at least as much is left for the prompt."""
        return self.context_length // 2 - 1

    @classmethod
    def load(cls, folder: Path) -> "Completer":
        """From a run or a model directory. Raises OSError or ValueError."""
        inner = resolve_model_dir(folder)
        model, tokenizer = load_model(inner), Tokenizer.load(inner / TOKENIZER)
        return cls(model, tokenizer, token_ids_of(read_json(inner / CONFIG), "eos_token_id"))

    def stream(
        self,
        requests: Sequence[InfillRequest],
        *,
        max_new_tokens: int | None,
        sampling: SamplingParams,
        stop: Sequence[str] = (),
    ) -> Iterator[CompletionChunk]:
        """Pieces of all requests, which are decoded together, one a token, also where its text waits for the next one.

        An answer ends before the first stop string in it, and where `max_new_tokens` is None at `DEFAULT_MAX_NEW_TOKENS`, or at as many as
        the model can make. Raises ValueError at once for what cannot be answered, before the first piece is asked for.
        """
        if max_new_tokens is None:
            max_new_tokens = min(DEFAULT_MAX_NEW_TOKENS, self.max_new_tokens_limit)
        if max_new_tokens > self.max_new_tokens_limit:
            raise ValueError(
                f"{max_new_tokens} new tokens: ask for fewer than half of the context of {self.context_length}"
            )
        prompts = [self.prompt_ids(request, max_new_tokens) for request in requests]
        if not all(prompts):
            raise ValueError("the prompt is empty: this model needs at least one token to go on with")
        return self._chunks(prompts, max_new_tokens, sampling, stop)

    def _chunks(
        self, prompts: list[list[int]], max_new_tokens: int, sampling: SamplingParams, stop: Sequence[str]
    ) -> Iterator[CompletionChunk]:
        """Decodes prompts together; their texts as they come."""
        texts = [StreamDecoder(stop) for _ in prompts]
        counts = [0] * len(prompts)
        is_open = [True] * len(prompts)

        def finish(row: int, *, is_finished: bool) -> CompletionChunk:
            rest = texts[row].rest()
            is_open[row] = False
            return CompletionChunk(row, rest, Completion(texts[row].sent, is_finished, len(prompts[row]), counts[row]))

        steps = generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_token_ids=self._stop_token_ids,
            forbidden_token_ids=self._forbidden_token_ids,
            sampling=sampling,
        )
        for step in steps:
            if not is_open[step.row]:
                continue
            counts[step.row] += 1
            if step.token in self._stop_token_ids:
                yield finish(step.row, is_finished=True)
            else:
                fresh = texts[step.row].add(self.tokenizer.token_bytes[step.token])
                yield CompletionChunk(step.row, fresh)
                if texts[step.row].is_stopped:
                    yield finish(step.row, is_finished=True)
            if not any(is_open):
                return
        for row in range(len(prompts)):
            if is_open[row]:
                yield finish(row, is_finished=False)

    def complete(
        self,
        requests: Sequence[InfillRequest],
        *,
        max_new_tokens: int | None,
        sampling: SamplingParams,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """The answers of all requests, in their order."""
        completions: dict[int, Completion] = {}
        for chunk in self.stream(requests, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop):
            if chunk.completion is not None:
                completions[chunk.index] = chunk.completion
        return [completions[i] for i in range(len(requests))]

    def infill(self, parts: Sequence[str], *, max_new_tokens: int | None, sampling: SamplingParams) -> list[Completion]:
        """The texts of the holes between `parts`, left to right; each sees the ones before it."""
        completions: list[Completion] = []
        for k in range(len(parts) - 1):
            before = parts[0] + "".join(a.text + part for a, part in zip(completions, parts[1:], strict=False))
            request = InfillRequest(before, "".join(parts[k + 1 :]))
            completions += self.complete([request], max_new_tokens=max_new_tokens, sampling=sampling)
        return completions

    def prompt_ids(self, request: InfillRequest, max_new_tokens: int) -> list[int]:
        """The layout's prompt within the context. What is too far away is left out, whole lines where that is possible."""
        room = self.context_length - max_new_tokens - N_FIM_SENTINELS
        prefix, suffix = self.tokenizer.encode(request.prompt), self.tokenizer.encode(request.suffix or "")
        n_suffix = min(len(suffix), max(int(room * SUFFIX_FRACTION), room - len(prefix)))
        suffix = suffix[:n_suffix]
        is_start = len(prefix) <= room - n_suffix
        prefix = prefix if is_start else self._from_line_start(prefix[len(prefix) - (room - n_suffix) :])
        prompt = prefix if request.suffix is None else infill_prompt(self.tokenizer, prefix, suffix)
        return [*bos_ids(self.tokenizer), *prompt] if is_start else prompt

    def _from_line_start(self, ids: list[int]) -> list[int]:
        """Ids from the first whole line on, if at least half of them remain."""
        table = self.tokenizer.token_bytes
        for i, token in enumerate(ids[: len(ids) // 2]):
            if table[token].endswith(b"\n"):
                return ids[i + 1 :]
        return ids


class StreamDecoder:
    """Bytes to text as they come: whole characters only, and nothing that may yet become a stop string."""

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.sent = ""
        self.is_stopped = False

    def add(self, data: bytes) -> str:
        """What can be sent now."""
        self._held += self._decoder.decode(data)
        found = [at for s in self._stop if (at := self._held.find(s)) != -1]
        if found:
            self.is_stopped = True
            return self._send(min(found), keep=False)
        return self._send(len(self._held) - self._possible_stop(), keep=True)

    def rest(self) -> str:
        """What was held back, at the end."""
        if not self.is_stopped:
            self._held += self._decoder.decode(b"", final=True)
        return self._send(0 if self.is_stopped else len(self._held), keep=False)

    def _send(self, n: int, *, keep: bool) -> str:
        fresh, self._held = self._held[:n], self._held[n:] if keep else ""
        self.sent += fresh
        return fresh

    def _possible_stop(self) -> int:
        """The length of the longest end of what is held that begins a stop string."""
        lengths = (
            n for s in self._stop for n in range(min(len(s) - 1, len(self._held)), 0, -1) if self._held.endswith(s[:n])
        )
        return max(lengths, default=0)
