"""The next token from logits. B sequence, V vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from codekiln.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Temperature 0 is greedy. `top_p` keeps the fewest tokens whose probabilities reach it (Holtzman et al. 2020)."""

    temperature: float = 0.2
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ConfigError(f"temperature is {self.temperature}: it must be between 0 and 2")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: it must be greater than 0 and at most 1")


GREEDY = SamplingParams(temperature=0.0)
MIN_TEMPERATURE = 1e-4  # below it, logits overflow, and the most likely token would be sampled in any case


def sample(logits: Tensor, sampling: SamplingParams, generator: torch.Generator) -> Tensor:
    """Tokens (B,) sampled from logits (B, V). A logit of -inf is never sampled."""
    if sampling.temperature < MIN_TEMPERATURE:
        return logits.argmax(dim=-1)
    probabilities, tokens = (logits.float() / sampling.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities  # probability of all likelier tokens
    is_out = before >= sampling.top_p
    is_out[:, 0] = False  # also if top_p is smaller than float32 can represent
    kept = probabilities.masked_fill(is_out, 0.0)
    drawn = torch.multinomial(kept, 1, generator=generator)  # unnormalized weights are allowed
    return tokens.gather(-1, drawn).squeeze(-1)
