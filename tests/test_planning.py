"""Estimates of a training step, compared with calculations by hand and with the counter of PyTorch."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from codekiln.errors import ConfigError
from codekiln.model.configs import Lfm2Config, codegen, kiln
from codekiln.model.transformer import Transformer
from codekiln.planning.estimate import ACCELERATORS, ParallelSettings, StepEstimate, estimate_step, search_settings
from codekiln.train.config import AdamWConfig, MuonConfig, TrainConfig
from codekiln.train.loop import forward_backward
from codekiln.train.objectives import NextToken
from codekiln.train.parallel import SINGLE_PROCESS
from tests.command import assert_refused, codekiln

pytestmark = pytest.mark.process

SMALL = replace(kiln("1M", vocab_size=512, context_length=64), n_layers=2)
PLAN = TrainConfig(objective=NextToken(), total_tokens=1, global_batch_size=8, optimizer=AdamWConfig(lr=1e-4))
A100 = ACCELERATORS["a100"]
IN_FLOAT32 = replace(A100, dtype=torch.float32)


@cache
def estimate(
    n_ranks: int = 1, micro_batch_size: int = 2, tensor_parallel: int = 1, *, activation_checkpointing: bool = False
) -> StepEstimate:
    return estimate_step(
        PLAN,
        SMALL,
        IN_FLOAT32,
        ParallelSettings(
            n_ranks=n_ranks,
            micro_batch_size=micro_batch_size,
            tensor_parallel=tensor_parallel,
            activation_checkpointing=activation_checkpointing,
        ),
    )


def collective(step: StepEstimate, what: str, axis: str = "data") -> list[float]:
    return step.collectives[what, axis]


def test_one_process_holds_weights_gradients_and_two_moments_per_weight() -> None:
    step = estimate()
    n_bytes = 4.0 * SMALL.n_parameters
    assert step.memory["weights"] == n_bytes
    assert step.memory["gradients"] == pytest.approx(n_bytes, rel=0.01)
    assert step.memory["optimizer_state"] == pytest.approx(2 * n_bytes, rel=0.01)
    assert step.memory["activations"] > 0
    assert step.collectives == {}


def test_flops_equal_those_that_pytorch_counts() -> None:
    step = estimate()
    model = Transformer(SMALL)
    ids = torch.zeros(8, SMALL.context_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        tensors = (ids, ids, torch.ones(ids.shape), ids)
        forward_backward(model.loss, [tensors], z_loss=0.0, scale=1.0, world=SINGLE_PROCESS)
    assert step.flops == counter.get_total_flops()
    # Attention has 2 products forward and 5 backward, over all scores.
    attention = 7 * 2 * SMALL.n_layers * 8 * SMALL.n_heads * SMALL.d_head * SMALL.context_length**2
    counted = counter.get_flop_counts()["Global"]
    ours = torch.ops.codekiln
    assert counted[ours.document_attention] + counted[ours.document_attention_backward] == attention
    joined = estimate_step(replace(PLAN, packing="concat"), SMALL, IN_FLOAT32, step.settings)
    assert joined.flops == step.flops
    assert step.model_flops == 8 * SMALL.context_length * SMALL.flops_per_token


def test_weights_are_gathered_and_gradients_scattered_per_micro_batch() -> None:
    n_bytes = 4.0 * SMALL.n_parameters
    step = estimate(n_ranks=2)
    n_micro = 8 // 2 // 2
    assert collective(step, "all_gather")[1] == pytest.approx(n_micro * 2 * n_bytes, rel=0.01)
    assert collective(step, "reduce_scatter")[1] == pytest.approx(n_micro * n_bytes, rel=0.02)
    alone = estimate()
    assert step.memory["optimizer_state"] == pytest.approx(alone.memory["optimizer_state"] / 2, rel=0.01)
    assert step.flops == pytest.approx(alone.flops / 2)


def test_tensor_parallel_ranks_all_reduce_the_residual_stream() -> None:
    step = estimate(n_ranks=4, tensor_parallel=2)
    tokens = 8 // 2 * SMALL.context_length
    # Two all-reduces per block forward and two backward, each of the residual stream.
    count, n_bytes = collective(step, "all_reduce", "tensor")
    sums = 4 * SMALL.n_layers * tokens * SMALL.d_model * 4
    assert n_bytes == pytest.approx(sums, rel=0.01)  # the rest are gradients of the QK norms
    assert count == 2 * (4 + 2) * SMALL.n_layers


def test_activation_checkpointing_costs_a_forward_pass_and_saves_memory() -> None:
    kept, recomputed = estimate(), estimate(activation_checkpointing=True)
    assert recomputed.memory["activations"] < kept.memory["activations"]
    assert 1.1 < recomputed.flops / kept.flops < 1.34
    assert recomputed.mfu(IN_FLOAT32) < kept.mfu(IN_FLOAT32)


def test_muon_has_one_moment_and_sends_each_matrix_to_its_owner() -> None:
    step = estimate_step(
        replace(PLAN, optimizer=MuonConfig()), SMALL, IN_FLOAT32, ParallelSettings(n_ranks=2, micro_batch_size=2)
    )
    assert step.memory["optimizer_state"] < estimate(n_ranks=2).memory["optimizer_state"]
    # A rank sends half of its rows to the owners of other matrices, and receives as much.
    matrices = sum(p.numel() for p in Transformer(SMALL).blocks.parameters() if p.ndim == 2)
    assert collective(step, "all_to_all")[1] == 4 * matrices


def test_codegen_16b_layers_on_512_ranks() -> None:
    config = replace(codegen("16B"), n_layers=2)
    plan = replace(PLAN, global_batch_size=1024, z_loss=1e-4)
    step = estimate_step(plan, config, ACCELERATORS["h100"], ParallelSettings(n_ranks=512, micro_batch_size=2))
    # Weights are gathered in bfloat16, forward and backward; gradients are summed in float32.
    assert collective(step, "reduce_scatter")[1] == pytest.approx(4 * config.n_parameters, rel=0.01)
    assert collective(step, "all_gather")[1] == pytest.approx(2 * 2 * config.n_parameters, rel=0.01)
    assert step.fits(ACCELERATORS["h100"])
    assert 0.2 < step.mfu(ACCELERATORS["h100"]) < 0.6


@pytest.mark.slow
def test_largest_micro_batch_that_fits_is_found() -> None:
    one, two = estimate(n_ranks=1, micro_batch_size=1), estimate(n_ranks=1, micro_batch_size=2)
    room = one.peak_bytes + 4 * (two.peak_bytes - one.peak_bytes)  # for five sequences, so four of eight fit
    tight = replace(IN_FLOAT32, memory=room * 1.06 + 4e9)
    steps = list(search_settings(PLAN, SMALL, tight, 1, 1))
    assert [s.settings.micro_batch_size for s in steps if not s.settings.activation_checkpointing] == [1, 2, 4]
    assert all(step.fits(tight) for step in steps)
    odd = replace(PLAN, global_batch_size=9)
    assert [s.settings.micro_batch_size for s in search_settings(odd, SMALL, IN_FLOAT32, 1, 1)] == [1, 3, 9] * 2


def test_sizes_that_do_not_divide_are_refused() -> None:
    for n_ranks in (3, 16):
        with pytest.raises(ValueError, match=rf"global_batch_size is 8\b.*{n_ranks}"):
            list(search_settings(PLAN, SMALL, A100, n_ranks, 1))
    for n_ranks in (4, 12):
        with pytest.raises(ValueError, match=rf"{n_ranks}.* 8"):
            estimate(n_ranks=n_ranks, tensor_parallel=8)
    with pytest.raises(ValueError, match=r"context_length is 128.*64"):
        estimate_step(replace(PLAN, context_length=128), SMALL, A100, ParallelSettings(n_ranks=1, micro_batch_size=1))


def test_a_step_of_a_model_with_convolutions_is_estimated() -> None:
    config = Lfm2Config(
        n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_head=16, d_ff=128, vocab_size=512, context_length=64,
        attention_layers=(1,),
    )  # fmt: skip
    step = estimate_step(PLAN, config, IN_FLOAT32, ParallelSettings(n_ranks=2, micro_batch_size=2))
    assert step.memory["weights"] == pytest.approx(4.0 * config.n_parameters / 2, rel=0.01)
    with pytest.raises(ConfigError, match=r"lfm2 cannot be split over tensor-parallel ranks"):
        estimate_step(PLAN, config, A100, ParallelSettings(n_ranks=2, micro_batch_size=2, tensor_parallel=2))


def test_plan_command_prints_days_and_the_launch_command() -> None:
    command = ("plan", "demo", "--gpus", 16, "--accelerator")
    changed = (
        "--set",
        "train.global_batch_size=16",
        "--set",
        "train.initialization=codekiln",
        "--set",
        "model.attention_layers=[0]",
        "--set",
        "model.n_layers=1",
        "--json",
    )
    done = codekiln(*command, "h100", *changed)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["best"]["stages"][0]["days"] > 0
    assert "torchrun --nnodes 2" in found["best"]["command"]
    assert found["best"]["command"].endswith("--set model.n_layers=1")
    assert {entry["operation"] for entry in found["settings"][0]["collectives"]} >= {"all_gather", "reduce_scatter"}
    assert_refused(codekiln(*command, "h200"), "h200", "h100, a100, v100, tpu-v4-like")
