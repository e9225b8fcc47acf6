"""Optimizers and schedules: single steps by hand, orthogonalization, state by name, and the published schedules."""

import pytest
import torch
from torch import nn

from codekiln.train.config import AdamWConfig, MuonConfig
from codekiln.train.optimizer import OptimizerGroup, orthogonalize
from codekiln.train.schedules import WSD, Schedule, WarmupCosine, WarmupPolynomial


def test_wsd_schedule_at_its_corners() -> None:
    schedule = WSD(warmup_fraction=0.1, decay_fraction=0.5)
    assert [round(schedule(step, 20), 9) for step in (0, 1, 9, 10, 11, 15, 19)] == [0.5, 1.0, 1.0, 1.0, 0.9, 0.5, 0.1]


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        # CodeGen's natural-language stage: 3,000 steps up, half a cosine over 300,000 steps to a tenth (0.55 at its
        # middle), then constant to 350,000.
        (
            WarmupCosine(warmup_steps=3000, decay_steps=300_000, min_lr_ratio=0.1),
            {0: 0.0, 1500: 0.5, 3000: 1.0, 153_000: 0.55, 303_000: 0.1, 349_999: 0.1},
        ),
        # 350M-Multi: from 1.8e-4 to 3e-5 within 147,000 steps.
        (
            WarmupCosine(warmup_steps=3000, decay_steps=147_000, min_lr_ratio=3.0e-5 / 1.8e-4),
            {3000: 1.0, 76_500: (1 + 1 / 6) / 2, 150_000: 1 / 6},
        ),
        (
            WarmupCosine(warmup_steps=10, decay_steps=None, min_lr_ratio=0.0),
            {10: 1.0, 175_005: 0.5, 349_999: 2.2e-11},
        ),
        (
            WarmupPolynomial(warmup_steps=1500, power=1.0),
            {0: 0.0, 750: 0.5, 1500: 1.0, 175_750: 0.5, 349_999: 1 / 348_500, 350_000: 0.0},
        ),
        (WarmupPolynomial(warmup_steps=1500, power=2.0), {1500: 1.0, 175_750: 0.25}),
    ],
    ids=str,
)
def test_published_schedules_at_their_corners(schedule: Schedule, corners: dict[int, float]) -> None:
    assert {step: schedule(step, 350_000) for step in corners} == pytest.approx(corners, abs=1e-9)


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    found = orthogonalize(matrix)[0]
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.4
    # In the basis of the singular vectors the result is diagonal, up to rounding.
    in_basis = u.T @ found @ vh.T
    assert (in_basis - in_basis.diag().diag()).abs().max() < 1e-4


def test_muon_step_by_hand() -> None:
    model = nn.Module()
    model.blocks = nn.Linear(8, 4, bias=False)
    before = model.blocks.weight.detach().clone()
    config = MuonConfig(schedule=WSD(warmup_fraction=0.0, decay_fraction=0.0))
    gradient = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    model.blocks.weight.grad = gradient.clone()
    OptimizerGroup(model, config).step(0, 10)
    ahead = gradient * (1 - 0.95) + 0.95 * (0.05 * gradient)
    expected = before * (1 - 0.02 * 0.1) - 0.02 * orthogonalize(ahead[None])[0]
    assert torch.allclose(model.blocks.weight, expected, atol=1e-6)


def test_adamw_step_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Conv1d(2, 2, 3, groups=2, bias=False))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    schedule = WarmupCosine(warmup_steps=0, decay_steps=None, min_lr_ratio=0.1)
    config = AdamWConfig(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, schedule=schedule)
    gradients = {name: torch.randn(weight.shape) for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.grad = gradients[name].clone()
    OptimizerGroup(model, config).step(0, 100)
    for name, weight in model.named_parameters():
        g = gradients[name]
        # At the first step, bias correction makes both moments equal to the gradient and its square.
        decayed = before[name] * (1 - 0.1 * 0.1) if name == "0.weight" else before[name]  # the matrix
        assert torch.allclose(weight, decayed - 0.1 * g / (g.abs() + 1e-8), atol=1e-6)


def test_optimizer_state_is_restored_by_name() -> None:
    def trained(*, is_restored: bool) -> nn.Module:
        """A model after two steps; before the second, the state may be moved to a new optimizer."""
        torch.manual_seed(0)
        model = nn.ModuleDict({"blocks": nn.Linear(6, 5), "embedding": nn.Linear(5, 3)})
        optimizers = OptimizerGroup(model, MuonConfig())
        for step in range(2):
            if step == 1 and is_restored:
                state = optimizers.state_dict()
                optimizers = OptimizerGroup(model, MuonConfig())
                optimizers.load_state_dict(state)
            model["embedding"](model["blocks"](torch.ones(2, 6))).square().sum().backward()
            optimizers.step(step, 10)
        return model

    straight, restored = trained(is_restored=False), trained(is_restored=True)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), restored.parameters(), strict=True))
