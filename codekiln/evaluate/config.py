"""How a model is evaluated. Needs no PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class InfillingConfig:
    """Infilling problems, sampled from held-out documents by a seed."""

    n_problems: int = 250
    context_characters: int = 1000
    max_new_tokens: int = 32
    max_span_characters: int = 40
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RerankingConfig:
    """Samples per problem, and how much of the suffix scores them. The published setting is 10 samples at 0.8."""

    n_samples: int = 10
    temperature: float = 0.8
    suffix_characters: int = 200
