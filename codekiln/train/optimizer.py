"""Optimizers: AdamW as in the papers, and Muon with AdamW."""

from collections.abc import Iterable
from typing import Any, assert_never, cast

import torch
from torch import Tensor, nn

from codekiln.train.config import MUON_MOMENTUM, AdamWConfig, MuonConfig, OptimizerConfig
from codekiln.train.parallel import apply_on_owner_rank, local_tensor


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers of a model's trainable weights."""
    match config:
        case AdamWConfig():
            return (_build_adamw(model, config),)
        case MuonConfig():
            return _build_muon(model, config)
        case _:
            assert_never(config)


def _build_adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.Optimizer:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in weights if weight.ndim == 2]},
        # Norms, biases and the kernels of convolutions.
        {"params": [weight for weight in weights if weight.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _build_muon(model: nn.Module, config: MuonConfig) -> tuple[torch.optim.Optimizer, ...]:
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [weight for name, weight in named if weight.ndim == 2 and name.startswith("blocks.")]
    tables = {name: weight for name, weight in named if weight.ndim == 2 and not name.startswith("blocks.")}
    # A tied output layer has the name of the embedding.
    embedding = [tables.pop("embedding.weight")] if "lm_head.weight" in tables else []
    others = [weight for _, weight in named if weight.ndim != 2]  # norms, biases and kernels of convolutions
    muon = Muon(matrices, lr=config.muon_lr, momentum=MUON_MOMENTUM, weight_decay=config.weight_decay)
    groups: list[dict[str, Any]] = [{"params": [*tables.values()]}, {"params": others, "weight_decay": 0.0}]
    if embedding:
        groups.append({"params": embedding, "lr": config.embedding_lr, "weight_decay": 0.0})
    adamw = torch.optim.AdamW(
        groups, lr=config.adamw_lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    return muon, adamw


class Muon(torch.optim.Optimizer):
    """Momentum whose update is the nearest orthogonal matrix (Jordan et al. 2024), by five Newton-Schulz iterations.

    The iteration runs in the precision of the weights on CPUs, where bfloat16 is slow, and in bfloat16 on accelerators.
    Matrices of equal shape are stacked; sharded ones are divided over the ranks. The scale of the update,
    sqrt(max(1, rows / columns)), is the authors'.
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
        """Nesterov momentum: the gradient moved towards the running average of gradients."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        average: Tensor = state["momentum"]
        average.lerp_(weight.grad, 1 - momentum)
        ahead: Tensor = weight.grad.lerp(average, momentum)
        return ahead


def orthogonalize(matrices: Tensor) -> Tensor:
    """U V^T of each matrix M = U S V^T, (N, R, C) to (N, R, C), by Newton-Schulz iteration.

    It is approximate: singular values of the result are in about [0.7, 1.2].
    """
    x = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x  # (N, min(R, C), max(R, C)), so that the Gram matrix is the smaller one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # Quintic with the coefficients of Jordan et al.: the slope at 0 is as large as convergence within five steps allows.
    for _ in range(5):
        gram = x @ x.mT  # (N, m, m) with m = min(R, C)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = (x.mT if is_tall else x).to(matrices.dtype)
    return result


class OptimizerGroup:
    """All optimizers of a model as one, with the schedule and a state of named tensors."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        self._name_of = {weight: name for name, weight in model.named_parameters()}
        self._optimizers = build_optimizers(model, config)
        self._lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]

    def step(self, step: int, n_steps: int) -> float:
        """Updates the weights with the learning rate of `step`, clears the gradients, and returns the schedule's factor."""
        factor = self._config.schedule(step, n_steps)
        for optimizer, lrs in zip(self._optimizers, self._lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
            optimizer.step()
        self.zero_grad()
        return factor

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer state as `weight name.key`, in float tensors."""
        return {
            f"{self._name_of[cast(nn.Parameter, weight)]}.{key}": value
            for optimizer in self._optimizers
            for weight, entry in optimizer.state.items()
            for key, value in entry.items()
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
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
