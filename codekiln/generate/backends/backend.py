"""The interface between `Completer` and the software that generates tokens, and which tokens may be generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from codekiln.errors import ConfigError
from codekiln.generate.engine import EngineStats, NewToken, Request, Sample
from codekiln.generate.recall import RequestText
from codekiln.generate.sampling import SamplingParams
from codekiln.tokenizer.bpe import Tokenizer


class Backend(Protocol):
    """Generates tokens for many requests. `Engine` is one. Not thread-safe."""

    context_length: int
    stats: EngineStats

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""

    def add(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        max_new_tokens: int,
        n: int = 1,
        cache_key: str = "",
        score_from: int | None = None,
        text: RequestText | None = None,
    ) -> Request:
        """A request for `n` samples. Raises ConfigError that names a field which the backend cannot honor."""

    def cancel(self, sample: Sample) -> None:
        """Ends a sample. It has no further tokens."""

    def step(self) -> list[NewToken]:
        """The next tokens, of at least one sample if any is running."""


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """A sample ends with one of the `stop` ids. The `forbidden` ids are never sampled."""

    stop: frozenset[int]
    forbidden: frozenset[int]


def token_rules(tokenizer: Tokenizer, n_rows: int, stop_token_ids: frozenset[int]) -> TokenRules:
    """The rules for a model with `n_rows` logits. `stop_token_ids` add to those of the tokenizer if they are special.

    Ids without text are never sampled: special tokens, gaps in the vocabulary, and unused rows of the embedding.
    """
    stop = tokenizer.stop_token_ids | (stop_token_ids & tokenizer.special_ids)
    without_text = {i for i, data in enumerate(tokenizer.token_bytes) if not data}
    return TokenRules(stop=stop, forbidden=frozenset(without_text.union(range(tokenizer.vocab_size, n_rows))) - stop)


def refuse_fields(backend: str, fields: dict[str, bool]) -> None:
    """Raises ConfigError for the first field that is set, because `backend` cannot honor it."""
    for name, is_set in fields.items():
        if is_set:
            raise ConfigError(f"{name}: {backend} cannot honor it; leave it out, or use --backend pytorch")


def make_request(
    stats: EngineStats,
    prompt: Sequence[int],
    sampling: SamplingParams,
    *,
    max_new_tokens: int,
    n: int,
    cache_key: str = "",
) -> Request:
    """A request for `n` samples, for a backend that scores no prompts. With 0 new tokens, its samples have ended."""
    request = Request(prompt, sampling, max_new_tokens, cache_key, None, RequestText()).add_samples(n)
    stats.prompt_tokens += len(prompt)
    if not max_new_tokens:
        for each in request.sequences:
            each.finish_reason = "length"
    return request
