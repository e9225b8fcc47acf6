"""Rows of tokens continued together: prefill, then a token a row and step, until each row ends.

B row, T position, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codekiln.generate.sampling import SamplingParams, sample
from codekiln.model.cache import LayerCache, empty_cache
from codekiln.model.transformer import Transformer


@dataclass(frozen=True)
class GeneratedToken:
    """One new token of one row."""

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
    """New tokens as they come, rows in turn, stop tokens included; a row ends with its stop token.

    Prompts are of any lengths; each row's logits are those it would have alone, and so are its tokens unless they are drawn:
    all rows draw from one generator. Ids past the tokenizer's are to be among the banned. Raises ValueError if a prompt with
    its continuation would not fit the model's context.
    """
    config = model.config
    longest = max(len(prompt) for prompt in prompts)
    if not min(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty: give at least one token")
    if longest + max_new_tokens > config.context_length:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of "
            f"{config.context_length}: shorten the prompt or ask for fewer"
        )
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(sampling.seed)
    banned = torch.tensor(sorted(forbidden_token_ids), dtype=torch.long, device=device)
    cache = empty_cache(config, len(prompts), longest + max_new_tokens, like=model.embedding.weight)
    # Whoever iterates may do so from one thread after another, and inference mode belongs to a thread: it ends before
    # each yield.
    logits = _prefill(model, prompts, longest, cache)
    is_open = [True] * len(prompts)
    for n_made in range(max_new_tokens):
        tokens = _sample(logits, banned, sampling, generator)
        for row, token in enumerate(tokens.tolist()):
            if is_open[row]:
                yield GeneratedToken(row, token)
                is_open[row] = token not in stop_token_ids
        if not any(is_open) or n_made + 1 == max_new_tokens:
            return
        logits = _decode(model, tokens, cache)


@torch.inference_mode()
def _sample(logits: Tensor, banned: Tensor, sampling: SamplingParams, generator: torch.Generator) -> Tensor:
    """The next token of each row (B,), none of them banned."""
    return sample(logits.index_fill(1, banned, -torch.inf), sampling, generator)


@torch.inference_mode()
def _decode(model: Transformer, tokens: Tensor, cache: list[LayerCache]) -> Tensor:
    """Reads one token (B,) a row into the cache; logits (B, V) after it."""
    hidden = model(tokens[:, None], cache=cache)
    cache[0].lengths += 1
    logits: Tensor = model.lm_head(hidden[:, -1]).float()
    return logits


@torch.inference_mode()
def _prefill(model: Transformer, prompts: Sequence[Sequence[int]], longest: int, cache: list[LayerCache]) -> Tensor:
    """Reads the prompts into the cache; logits (B, V) after each one's last token.

    Rows are padded on the right: what stands behind a row's length is not seen, and overwritten by what comes.
    """
    device = cache[0].lengths.device
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    hidden = model(ids, cache=cache)
    cache[0].lengths += lengths
    last: Tensor = model.lm_head(hidden[torch.arange(len(prompts), device=device), lengths - 1]).float()
    return last
