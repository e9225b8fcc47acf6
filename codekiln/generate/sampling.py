"""The next token from logits. B row, V vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """Temperature 0 is greedy. `top_p` keeps the fewest tokens whose probabilities reach it (Holtzman et al. 2020)."""

    temperature: float = 0.2
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature is {self.temperature}: it must be from 0 to 2")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must be above 0 and at most 1")


GREEDY = SamplingParams(temperature=0.0)
MIN_TEMPERATURE = 1e-4  # below it logits overflow, and the most probable token is drawn in any case


def sample(logits: Tensor, sampling: SamplingParams, generator: torch.Generator) -> Tensor:
    """Tokens (B,) drawn from logits (B, V); what must not be drawn is -inf there."""
    if sampling.temperature < MIN_TEMPERATURE:
        return logits.argmax(dim=-1)
    ordered, tokens = (logits.float() / sampling.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    is_out = before >= sampling.top_p
    is_out[:, 0] = False  # also where the nucleus is smaller than float32 can say
    kept = ordered.masked_fill(is_out, 0.0)
    drawn = torch.multinomial(kept, 1, generator=generator)
    return tokens.gather(-1, drawn).squeeze(-1)
