"""Batched decoding: the prompts are read once (prefill), then each step adds one token to every unfinished sequence.

B sequence, T position, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codekiln.errors import ConfigError
from codekiln.generate.sampling import SamplingParams, sample
from codekiln.model.cache import KVCache
from codekiln.model.transformer import Transformer


@dataclass(frozen=True)
class GeneratedToken:
    """One new token of one sequence, which `row` numbers."""

    row: int
    token: int


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: frozenset[int],
    forbidden_token_ids: frozenset[int],
    sampling: SamplingParams,
) -> Iterator[GeneratedToken]:
    """New tokens as they are generated, step by step and within a step by row. A row ends with its stop token.

    Prompts can have different lengths. The logits of a row are those it would have alone. Its tokens are too, unless they
    are sampled: all rows share one generator. Ids without text must be forbidden by the caller. Raises ConfigError if a
    prompt is empty, or does not fit the model's context together with its new tokens.
    """
    config = model.config
    longest = max(len(prompt) for prompt in prompts)
    if not min(len(prompt) for prompt in prompts):
        raise ConfigError("the prompt is empty: this model needs at least one token")
    if longest + max_new_tokens > config.context_length:
        raise ConfigError(
            f"a prompt of {longest} tokens and {max_new_tokens} new tokens exceed the context of {config.context_length}: "
            "shorten the prompt or request fewer new tokens"
        )
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    forbidden = torch.tensor(sorted(forbidden_token_ids), dtype=torch.long, device=device)
    cache = KVCache.allocate(config, len(prompts), longest + max_new_tokens, like=model.embedding.weight)
    # This generator may be resumed from different threads, and inference mode is per thread: it must not span a yield.
    logits = _prefill(model, prompts, longest, cache)
    is_open = [True] * len(prompts)
    for n_generated in range(max_new_tokens):
        tokens = _sample(logits, forbidden, sampling, generator)
        for row, token in enumerate(tokens.tolist()):
            if is_open[row]:
                yield GeneratedToken(row, token)
                is_open[row] = token not in stop_token_ids
        if not any(is_open) or n_generated + 1 == max_new_tokens:
            return
        logits = _decode(model, tokens, cache)


@torch.inference_mode()
def _sample(logits: Tensor, forbidden: Tensor, sampling: SamplingParams, generator: torch.Generator) -> Tensor:
    """The next token of each row, (B,)."""
    return sample(logits.index_fill(1, forbidden, -torch.inf), sampling, generator)


@torch.inference_mode()
def _decode(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """Reads one token per row (B,) into the cache. Returns the logits after it, (B, V)."""
    logits: Tensor = model(tokens[:, None], cache=cache)[:, -1].float()
    cache.advance(1)
    return logits


@torch.inference_mode()
def _prefill(model: Transformer, prompts: Sequence[Sequence[int]], longest: int, cache: KVCache) -> Tensor:
    """Reads the prompts into the cache. Returns the logits after the last token of each, (B, V).

    Prompts are padded on the right. Padding is beyond the length of a row: it is never attended to, and is overwritten.
    """
    device = cache.lengths.device
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)  # (B, T)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    hidden = model.hidden_states(ids, cache=cache)
    cache.advance(lengths)
    # The output layer is as large as the vocabulary: it is applied to the last position only.
    logits: Tensor = model.lm_head(hidden[torch.arange(len(prompts), device=device), lengths - 1]).float()
    return logits
