"""Learning-rate schedules: the factor of the peak learning rate at each step."""

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The factor of the peak learning rate at `step` of `n_steps`; steps count from 0."""

    def __call__(self, step: int, n_steps: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class WSD:
    """Warmup, stable, decay: linear up, constant, linear down to 0 (MiniCPM, arXiv 2404.06395, section 4)."""

    warmup_fraction: float = 0.02
    decay_fraction: float = 0.3

    def __call__(self, step: int, n_steps: int) -> float:
        warmup, decay = max(1.0, self.warmup_fraction * n_steps), max(1.0, self.decay_fraction * n_steps)
        return min(1.0, (step + 1) / warmup, (n_steps - step) / decay)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear up from 0, half a cosine down to `min_lr_ratio` within `decay_steps`, then constant (CodeGen's released code).

    Step counts are absolute, as in the published schedules. `decay_steps` None means all steps after the warm-up.
    """

    warmup_steps: int = 3000
    decay_steps: int | None = None
    min_lr_ratio: float = 0.1

    def __call__(self, step: int, n_steps: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        decay_steps = self.decay_steps if self.decay_steps is not None else max(1, n_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / decay_steps)
        return 1.0 - (1.0 - self.min_lr_ratio) * (1.0 - math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class WarmupPolynomial:
    """Linear up from 0, then down to 0 at the last step by a power; 1 is a line (fairseq's decay; InCoder, A.1)."""

    warmup_steps: int = 1500
    power: float = 1.0

    def __call__(self, step: int, n_steps: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return math.pow(max(0, n_steps - step) / max(1, n_steps - self.warmup_steps), self.power)
