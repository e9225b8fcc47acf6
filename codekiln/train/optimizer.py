"""OptimizerGroup and their schedules: AdamW as the papers have it, and Muon with AdamW for our own."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from codekiln.train.parallel import apply_on_owner_rank, local_tensor


class Schedule(Protocol):
    """The factor of a learning rate at `step`, which counts from 0, of `n_steps`."""

    def __call__(self, step: int, n_steps: int) -> float: ...


@dataclass(frozen=True)
class WSD:
    """Linear up, flat, linear down to 0 (MiniCPM, arXiv 2404.06395, section 4)."""

    warmup_fraction: float = 0.02
    decay_fraction: float = 0.3

    def __call__(self, step: int, n_steps: int) -> float:
        warmup, decay = max(1.0, self.warmup_fraction * n_steps), max(1.0, self.decay_fraction * n_steps)
        return min(1.0, (step + 1) / warmup, (n_steps - step) / decay)


@dataclass(frozen=True)
class WarmupCosine:
    """Linear up from 0, a half cosine down to `min_lr_ratio` within `decay_steps`, then flat (CodeGen's released code).

    Steps are absolute, as the published schedules are; None for `decay_steps` means all that follow the warm-up.
    """

    warmup_steps: int = 3000
    decay_steps: int | None = None
    min_lr_ratio: float = 0.1

    def __call__(self, step: int, n_steps: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        anneal = self.decay_steps if self.decay_steps is not None else max(1, n_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / anneal)
        return 1.0 - (1.0 - self.min_lr_ratio) * (1.0 - math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupPolynomial:
    """Linear up from 0, then down to 0 at the end by a power, 1 being a line (fairseq's polynomial decay; InCoder, A.1)."""

    warmup_steps: int = 1500
    power: float = 1.0

    def __call__(self, step: int, n_steps: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return math.pow(max(0, n_steps - step) / max(1, n_steps - self.warmup_steps), self.power)


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW for all weights. Decay is decoupled, on weights of more than one axis, embeddings among them."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    schedule: Schedule = WarmupCosine()

    def optimizers(self, model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in weights if weight.ndim > 1]},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        return (
            torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                fused=True,
            ),
        )


@dataclass(frozen=True)
class MuonConfig:
    """Muon for the matrices inside blocks, AdamW for the rest. Decay is decoupled, on matrices that multiply only.

    `embedding_lr` is AdamW's for an embedding that is not the head too: its rows are seen seldom, and take far larger
    steps (Jordan et al., modded-nanogpt). A tied one goes at `adamw_lr`, with the head and the norms.
    """

    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    embedding_lr: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    weight_decay: float = 0.1
    momentum: float = 0.95
    max_grad_norm: float = 1.0
    schedule: Schedule = WSD()

    def optimizers(self, model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for name, weight in named if weight.ndim == 2 and name.startswith("blocks.")]
        tables = {name: weight for name, weight in named if weight.ndim == 2 and not name.startswith("blocks.")}
        # A tied head has the embedding's name.
        embedding = [tables.pop("embedding.weight")] if "lm_head.weight" in tables else []
        vectors = [weight for _, weight in named if weight.ndim < 2]
        muon = Muon(matrices, lr=self.muon_lr, momentum=self.momentum, weight_decay=self.weight_decay)
        groups: list[dict[str, Any]] = [{"params": [*tables.values()]}, {"params": vectors, "weight_decay": 0.0}]
        if embedding:
            groups.append({"params": embedding, "lr": self.embedding_lr, "weight_decay": 0.0})
        adamw = torch.optim.AdamW(
            groups, lr=self.adamw_lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )
        return muon, adamw


OptimizerConfig = AdamWConfig | MuonConfig


class Muon(torch.optim.Optimizer):
    """Momentum whose update is the nearest orthogonal matrix (Jordan et al. 2024), by five Newton-Schulz iterations.

    Iterates in the weights' own precision on CPUs, where bfloat16 is slow, and in bfloat16 on accelerators. Matrices of
    one shape are iterated together; of sharded ones each rank iterates its share. The update's scale, sqrt(max(1, rows /
    columns)), is the authors'.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                ahead = [self._momentum(weight, group["momentum"]) for weight in weights]
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, apply_on_owner_rank(orthogonalize, ahead), strict=True):
                    own = local_tensor(weight)
                    own.mul_(1 - group["lr"] * group["weight_decay"])
                    own.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look-ahead on the moving average of gradients."""
        assert weight.grad is not None
        state_dict = self.state[weight]
        if "momentum" not in state_dict:
            state_dict["momentum"] = torch.zeros_like(weight)
        average: Tensor = state_dict["momentum"]
        average.lerp_(weight.grad, 1 - momentum)
        ahead: Tensor = weight.grad.lerp(average, momentum)
        return ahead


def orthogonalize(matrices: Tensor) -> Tensor:
    """U V^T of each matrix (N, rows, columns) = U S V^T, approximately: singular values land in about [0.7, 1.2]."""
    x = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = (x.mT if is_tall else x).to(matrices.dtype)
    return result


class OptimizerGroup:
    """The optimizers of a model as one: step, schedule, and a state of named tensors."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        self._name_of = {weight: name for name, weight in model.named_parameters()}
        self._optimizers = config.optimizers(model)
        self._lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def step(self, step: int, n_steps: int) -> float:
        """Applies the gradients at the schedule's rate for a step and clears them; the factor that was used."""
        factor = self._config.schedule(step, n_steps)
        for optimizer, lrs in zip(self._optimizers, self._lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
            optimizer.step()
        self.zero_grad()
        return factor

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """All moments by the name of their weight, to be saved."""
        return {
            f"{self._name_of[cast(nn.Parameter, weight)]}.{key}": value
            for optimizer in self._optimizers
            for weight, entry in optimizer.state.items()
            for key, value in entry.items()
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    prefix = self._name_of[weight] + "."
                    entry = {
                        key[len(prefix) :]: v.to(weight.device)
                        for key, v in state_dict.items()
                        if key.startswith(prefix)
                    }
                    optimizer.state[weight] = {key: value for key, value in entry.items() if "." not in key}
