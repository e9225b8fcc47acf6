"""Text in, text out: complete a prompt, or fill the holes of a document."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from codekiln.errors import ConfigError
from codekiln.generate.engine import generate
from codekiln.generate.sampling import SamplingParams
from codekiln.model.huggingface import TOKENIZER, load_model, require_vocabulary, resolve_model_dir, stop_token_ids_in
from codekiln.model.transformer import Transformer
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.infill import N_FIM_SENTINELS

DEFAULT_MAX_NEW_TOKENS = 64
# The suffix gets at least this fraction of the context if it is long enough: the prefix says more about a hole.
SUFFIX_FRACTION = 0.25

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class InfillRequest:
    """Text around a hole. `suffix` None means that nothing is known of what follows: the prompt is completed."""

    prompt: str
    suffix: str | None = None


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is "stop" if the model or a stop string ended the text, and "length" if the token limit did."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class CompletionChunk:
    """A piece of streamed text of request `index`. The last chunk of a request carries its completion."""

    index: int
    text: str
    completion: Completion | None = None


class Completer:
    """A model and its tokenizer. Handles one call at a time. `stop_token_ids` add to those of the tokenizer.

    Raises ConfigError if the tokenizer has more ids than the model.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, stop_token_ids: frozenset[int] = frozenset()) -> None:
        require_vocabulary(tokenizer.vocab_size, model.config)
        self.model, self.tokenizer = model, tokenizer
        self.context_length = model.config.context_length
        self._stop_token_ids = tokenizer.stop_token_ids | (stop_token_ids & tokenizer.special_ids)
        # Ids without text are never sampled: special tokens, gaps in the vocabulary, and unused rows of the embedding.
        without_text = {i for i, data in enumerate(tokenizer.token_bytes) if not data}
        unused = range(tokenizer.vocab_size, model.config.vocab_size)
        self._forbidden_token_ids = frozenset(without_text.union(unused)) - self._stop_token_ids

    @property
    def can_infill(self) -> bool:
        """Whether the tokenizer has an infilling format."""
        return self.tokenizer.infill_format is not None

    @property
    def max_new_tokens_limit(self) -> int:
        """Less than half of the context, so that at least as much is left for the prompt."""
        return self.context_length // 2 - 1

    def limit_new_tokens(self, max_new_tokens: int) -> int:
        """`max_new_tokens`, or the limit of the model if that is lower."""
        return min(max_new_tokens, self.max_new_tokens_limit)

    @classmethod
    def load(cls, folder: Path) -> "Completer":
        """Loads a run or a model directory. Raises CodekilnError or OSError naming the file that is missing or damaged."""
        inner = resolve_model_dir(folder)
        model, tokenizer = load_model(inner), Tokenizer.load(inner / TOKENIZER)
        return cls(model, tokenizer, stop_token_ids_in(inner))

    def stream(
        self,
        requests: Sequence[InfillRequest],
        *,
        max_new_tokens: int | None,
        sampling: SamplingParams,
        stop: Sequence[str] = (),
    ) -> Iterator[CompletionChunk]:
        """Decodes all requests together. Yields one chunk per token; its text may be empty while text is held back.

        A completion ends before the first stop string. `max_new_tokens` None means `DEFAULT_MAX_NEW_TOKENS`, or the limit of
        the model if that is lower. Raises ConfigError when it is called, before the first chunk is requested.
        """
        limit = self.max_new_tokens_limit
        if max_new_tokens is None:
            max_new_tokens = self.limit_new_tokens(DEFAULT_MAX_NEW_TOKENS)
        if not 1 <= max_new_tokens <= limit:
            raise ConfigError(
                f"max_new_tokens must be between 1 and {limit} for this model, less than half of its context "
                f"(got {max_new_tokens})"
            )
        prompts = [self.prompt_ids(request, max_new_tokens) for request in requests]
        if not all(prompts):
            raise ConfigError("the prompt is empty: this model needs at least one token")
        return self._chunks(prompts, max_new_tokens, sampling, stop)

    def _chunks(
        self, prompts: list[list[int]], max_new_tokens: int, sampling: SamplingParams, stop: Sequence[str]
    ) -> Iterator[CompletionChunk]:
        texts = [StreamDecoder(stop) for _ in prompts]
        counts = [0] * len(prompts)
        is_open = [True] * len(prompts)

        def finish(row: int, reason: FinishReason) -> CompletionChunk:
            rest = texts[row].rest()
            is_open[row] = False
            return CompletionChunk(row, rest, Completion(texts[row].sent, reason, len(prompts[row]), counts[row]))

        generated = generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_token_ids=self._stop_token_ids,
            forbidden_token_ids=self._forbidden_token_ids,
            sampling=sampling,
        )
        for new in generated:
            if not is_open[new.row]:
                continue
            counts[new.row] += 1
            if new.token in self._stop_token_ids:
                yield finish(new.row, "stop")
            else:
                yield CompletionChunk(new.row, texts[new.row].add(self.tokenizer.token_bytes[new.token]))
                if texts[new.row].is_stopped:
                    yield finish(new.row, "stop")
            if not any(is_open):
                return
        for row in range(len(prompts)):
            if is_open[row]:
                yield finish(row, "length")

    def complete(
        self,
        requests: Sequence[InfillRequest],
        *,
        max_new_tokens: int | None,
        sampling: SamplingParams,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """The completions of all requests, in order."""
        completions: dict[int, Completion] = {}
        for chunk in self.stream(requests, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop):
            if chunk.completion is not None:
                completions[chunk.index] = chunk.completion
        return [completions[i] for i in range(len(requests))]

    def infill(self, parts: Sequence[str], *, max_new_tokens: int | None, sampling: SamplingParams) -> list[Completion]:
        """Fills the holes between `parts` from left to right. Each hole sees the text of the ones before it."""
        completions: list[Completion] = []
        for k in range(len(parts) - 1):
            before = parts[0] + "".join(a.text + part for a, part in zip(completions, parts[1:], strict=False))
            request = InfillRequest(before, "".join(parts[k + 1 :]))
            completions += self.complete([request], max_new_tokens=max_new_tokens, sampling=sampling)
        return completions

    def prompt_ids(self, request: InfillRequest, max_new_tokens: int) -> list[int]:
        """The prompt in the model's infilling format, cut to the context: far text is left out, by whole lines if possible.

        Raises ConfigError for a suffix if the model cannot infill, and if the new tokens leave no room for a prompt.
        """
        room = self.context_length - max_new_tokens - N_FIM_SENTINELS
        if room < 1:
            raise ConfigError(f"{max_new_tokens} new tokens leave no room in a context of {self.context_length}")
        prefix, suffix = self.tokenizer.encode_document(request.prompt), self.tokenizer.encode(request.suffix or "")
        n_suffix = min(len(suffix), max(int(room * SUFFIX_FRACTION), room - len(prefix)))
        suffix = suffix[:n_suffix]
        is_start = len(prefix) <= room - n_suffix
        prefix = prefix if is_start else self._from_line_start(prefix[len(prefix) - (room - n_suffix) :])
        prompt = prefix
        if request.suffix is not None:
            infill_format = self.tokenizer.infill_format
            if infill_format is None:
                raise ConfigError("this model cannot infill: its tokenizer has no infilling format (CodeGen has none)")
            prompt = infill_format.prompt(prefix, suffix)
        # A start token belongs before every text of its family (Llama 3), also where the beginning of the prompt is cut off.
        has_bos = is_start or self.tokenizer.start_id is not None
        return [*self.tokenizer.bos_ids, *prompt] if has_bos else prompt

    def _from_line_start(self, ids: list[int]) -> list[int]:
        """The ids from the first complete line on, if that keeps at least half of them; else all."""
        table = self.tokenizer.token_bytes
        for i, token in enumerate(ids[: len(ids) // 2]):
            if table[token].endswith(b"\n"):
                return ids[i + 1 :]
        return ids


class StreamDecoder:
    """Bytes to text as they arrive. Holds back incomplete characters and text that may become a stop string."""

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.sent = ""
        self.is_stopped = False

    def add(self, data: bytes) -> str:
        """The text that can be sent now."""
        self._held += self._decoder.decode(data)
        found = [at for s in self._stop if (at := self._held.find(s)) != -1]
        if found:
            self.is_stopped = True
            return self._send(min(found), keep=False)
        return self._send(len(self._held) - self._possible_stop(), keep=True)

    def rest(self) -> str:
        """The text that was held back, after the last byte."""
        if not self.is_stopped:
            self._held += self._decoder.decode(b"", final=True)
        return self._send(0 if self.is_stopped else len(self._held), keep=False)

    def _send(self, n: int, *, keep: bool) -> str:
        fresh, self._held = self._held[:n], self._held[n:] if keep else ""
        self.sent += fresh
        return fresh

    def _possible_stop(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        lengths = (
            n for s in self._stop for n in range(min(len(s) - 1, len(self._held)), 0, -1) if self._held.endswith(s[:n])
        )
        return max(lengths, default=0)
