"""How a model is evaluated. Needs no PyTorch."""

from dataclasses import dataclass

MEMORIZATION = (
    "memorization"  # its name among the results of the stage "evaluation", which are kinds of holes otherwise
)


@dataclass(frozen=True, kw_only=True)
class InfillingConfig:
    """Infilling problems, sampled from held-out documents by a seed."""

    n_problems: int = 250
    context_characters: int = 1000
    max_new_tokens: int = 32
    max_span_characters: int = 40
    seed: int = 0
