"""Training and generation on a GPU, next to the same on a CPU. They are skipped on machines without one."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from codekiln.generate.engine import Engine
from codekiln.generate.sampling import GREEDY, SamplingParams
from codekiln.metrics_log import MetricsRow, read_metrics
from codekiln.model.configs import KilnConfig, Lfm2Config, ModelConfig
from codekiln.model.initialization import init_weights
from codekiln.model.make_decoder import make_decoder
from codekiln.model.transformer import Transformer
from codekiln.model.varlen_attention import find_document_offsets
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.train.config import LoraConfig, MuonConfig, RuntimeConfig, TrainConfig
from codekiln.train.loop import forward_backward, train
from codekiln.train.objectives import NextToken, SpmInfill
from codekiln.train.optimizer import OptimizerGroup, orthogonalize
from codekiln.train.parallel import (
    SINGLE_PROCESS,
    World,
    build_sharded_model,
    copy_full_,
    scale_grads,
    total_grad_norm,
)
from tests.programs.golden_losses import ADAMW, CODEGEN, INCODER, KILN, prepare
from tests.small import assert_greedy
from tests.test_engine import FAMILIES, random_model, random_prompts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")
LFM2 = Lfm2Config(
    n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_head=16, d_ff=64, vocab_size=640, context_length=128,
    attention_layers=(1,),
)  # fmt: skip
ON_GPU = World(device=CUDA, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and token shards."""
    folder = tmp_path_factory.mktemp("source")
    prepare(folder)
    return folder / "0"


def losses_of(rows: list[MetricsRow]) -> Tensor:
    return torch.tensor([row["loss"] for row in rows])


def train_small(
    source: Path, run: Path, config: ModelConfig, world: World, *, compile: bool = False, **changes: Any
) -> list[MetricsRow]:
    """Trains for twenty steps. Returns the metrics."""
    fields: dict[str, Any] = {"total_tokens": 20 * 8 * 128, "global_batch_size": 8, "eval_every": 10, "save_every": 5}
    plan = TrainConfig(**{"objective": SpmInfill()} | fields | changes)
    device = "cuda" if world.device.type == "cuda" else "cpu"
    train(
        plan,
        config,
        tokens=source / "tokens",
        tokenizer=Tokenizer.load(source / "tokenizer.json"),
        run=run,
        runtime=RuntimeConfig(device=device, compile=compile, micro_batch_tokens=4 * 128),  # type: ignore[arg-type]
        inputs={},
        world=world,
    )
    return read_metrics(run / "metrics.jsonl")


@pytest.mark.parametrize("packing", ["packed", "packed, with a mask", "concat"])
@pytest.mark.parametrize("config", [KILN, CODEGEN, INCODER, LFM2], ids=lambda config: config.family)
def test_losses_and_gradients_are_those_of_a_cpu(config: ModelConfig, packing: str) -> None:
    config = dataclasses.replace(config, context_length=256)
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(0, config.vocab_size, (2, 3, 256), generator=generator)
    weights = torch.rand(3, 256, generator=generator)
    borders = torch.rand(3, 256, generator=generator) < 0.02
    documents = None if packing == "concat" else borders.cumsum(1)
    offsets = torch.from_numpy(find_document_offsets(borders.cumsum(1).numpy())) if packing == "packed" else None
    found = []
    for world in (SINGLE_PROCESS, ON_GPU):
        torch.manual_seed(0)
        model = Transformer(config).to(world.device)
        tensors = (ids, targets, weights, documents, None if world is SINGLE_PROCESS else offsets)
        arguments = [None if each is None else each.to(world.device) for each in tensors]
        with world.autocast():
            nats = model.loss(*arguments).nats  # type: ignore[arg-type]
        nats.backward()  # type: ignore[no-untyped-call]
        found.append((float(nats.detach()), {name: w.grad.cpu() for name, w in model.named_parameters()}))  # type: ignore[union-attr]
    (nats_cpu, on_cpu), (nats_gpu, on_gpu) = found
    assert nats_gpu == pytest.approx(nats_cpu, rel=2e-3)
    norms = {name: float(torch.linalg.vector_norm(gradient)) for name, gradient in on_cpu.items()}
    for name, gradient in on_cpu.items():
        error = float(torch.linalg.vector_norm(on_gpu[name] - gradient))
        # The gradient of the bias of keys is 0, up to rounding.
        assert error < 0.05 * norms[name] + 0.001 * max(norms.values()), (name, error, norms[name])


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (KILN, {"optimizer": MuonConfig()}),
        (CODEGEN, {"optimizer": ADAMW, "objective": NextToken(), "packing": "concat", "z_loss": 1e-4}),
        (INCODER, {"optimizer": ADAMW, "dropout": 0.1, "attention_dropout": 0.1}),
        (LFM2, {"optimizer": MuonConfig()}),
    ],
    ids=lambda each: each.family if isinstance(each, ModelConfig) else "",
)
def test_a_run_learns_as_on_a_cpu(source: Path, tmp_path: Path, config: ModelConfig, changes: dict[str, Any]) -> None:
    on_cpu = train_small(source, tmp_path / "cpu", config, SINGLE_PROCESS, **changes)
    on_gpu = train_small(source, tmp_path / "gpu", config, ON_GPU, **changes)
    # What dropout drops differs between devices.
    torch.testing.assert_close(losses_of(on_gpu), losses_of(on_cpu), rtol=0.1 if "dropout" in changes else 0.02, atol=0)
    assert losses_of(on_gpu)[-1] < 0.9 * losses_of(on_gpu)[0]


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # in PyTorch's compiler
@pytest.mark.parametrize("config", [KILN, LFM2], ids=lambda config: config.family)
def test_a_compiled_run_is_like_one_that_is_not(source: Path, tmp_path: Path, config: ModelConfig) -> None:
    plain = train_small(source, tmp_path / "plain", config, ON_GPU)
    compiled = train_small(source, tmp_path / "compiled", config, ON_GPU, compile=True)
    torch.testing.assert_close(losses_of(compiled), losses_of(plain), rtol=0.02, atol=0)


def test_an_interrupted_run_continues(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_small(source, tmp_path / "whole", KILN, ON_GPU, optimizer=MuonConfig())
    from codekiln.train import loop

    original, n_steps = loop.forward_backward, 0

    def interrupt(*arguments: object, **keywords: object) -> object:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "forward_backward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_small(source, tmp_path / "parts", KILN, ON_GPU, optimizer=MuonConfig())
    assert len(read_metrics(tmp_path / "parts" / "metrics.jsonl")) == 8
    parts = train_small(source, tmp_path / "parts", KILN, ON_GPU, optimizer=MuonConfig())
    assert [row["step"] for row in parts] == list(range(20))
    torch.testing.assert_close(losses_of(parts), losses_of(whole), rtol=0.005, atol=0)


def test_lora_trains(source: Path, tmp_path: Path) -> None:
    rows = train_small(source, tmp_path, INCODER, ON_GPU, lora=LoraConfig(), optimizer=ADAMW)
    assert losses_of(rows)[-1] < losses_of(rows)[0]


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """One rank of a process group on the GPU, so that the model is sharded by FSDP."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    torch.cuda.set_device(0)
    dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", 0))
    try:
        yield World(
            device=torch.device("cuda", 0),
            dtype=torch.bfloat16,
            mesh=init_device_mesh("cuda", (1, 1), mesh_dim_names=("data", "tensor")),
        )
    finally:
        dist.destroy_process_group()


def losses_of_steps(config: ModelConfig, world: World) -> Tensor:
    """The losses of ten steps on the same packed sequences, with a model that is sharded if the world has a mesh."""
    model = build_sharded_model(config, world, activation_checkpointing=True)
    model.to_empty(device=world.device)
    model.tie_weights()
    init_weights(model, torch.Generator().manual_seed(0), copy_full_)
    optimizers = OptimizerGroup(model, MuonConfig())
    ids = torch.randint(0, config.vocab_size, (4, 65), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(64) // 30).expand(4, 64).contiguous()
    offsets = None
    if world.device.type == "cuda":
        offsets = torch.from_numpy(find_document_offsets(documents.numpy())).to(world.device)
    tensors = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(4, 64), documents)
    micro_batch = (*(tensor.to(world.device) for tensor in tensors), offsets)
    losses = []
    for step in range(10):
        nats, _ = forward_backward(model.loss, [micro_batch], z_loss=0.0, scale=1 / 256, world=world)
        losses.append(nats / 256)
        scale_grads(model, min(1.0, 1 / float(total_grad_norm(model, world))))
        optimizers.step(step, 10)
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("config", [KILN, CODEGEN, LFM2], ids=lambda config: config.family)
def test_a_sharded_model_learns_as_on_a_cpu(config: ModelConfig, nccl: World) -> None:
    on_cpu, sharded = losses_of_steps(config, SINGLE_PROCESS), losses_of_steps(config, nccl)
    assert sharded[-1] < 0.9 * sharded[0]
    torch.testing.assert_close(sharded, on_cpu, rtol=0.02, atol=0)


def test_muon_orthogonalizes_in_bfloat16() -> None:
    matrices = torch.randn(3, 96, 160, generator=torch.Generator().manual_seed(0))
    on_gpu = orthogonalize(matrices.cuda()).cpu()
    error = torch.linalg.vector_norm(on_gpu - orthogonalize(matrices)) / torch.linalg.vector_norm(matrices.new_ones(96))
    assert error < 0.05 * 3**0.5


@pytest.fixture(params=FAMILIES, ids=lambda config: config.family)
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(request.param).to(CUDA, torch.bfloat16)


def engine_on_gpu(model: Transformer) -> Engine:
    none = frozenset[int]()
    return Engine(make_decoder(model, "bfloat16"), stop_token_ids=none, forbidden_token_ids=none)


def test_greedy_tokens_have_the_greatest_logits(model: Transformer) -> None:
    """The reference is the transformer that training uses, on a CPU in float32, with the weights in bfloat16."""
    reference = Transformer(model.config).requires_grad_(False)
    reference.load_state_dict({name: weight.float().cpu() for name, weight in model.state_dict().items()})
    prompts = random_prompts(1, 1, 5, 17, 40, 100)
    scale = float(reference(torch.tensor([prompts[-1]])).std())
    for prompt, row in zip(prompts, engine_on_gpu(model).generate(prompts, GREEDY, max_new_tokens=30), strict=True):
        assert len(row) == 30
        assert_greedy(reference, prompt, row, tolerance=0.2 * scale)


def test_samples_that_share_a_prompt_and_long_prompts(model: Transformer) -> None:
    """The log-probability of each sampled token is that of the transformer without a cache."""
    engine = engine_on_gpu(model)
    prompts = random_prompts(3, 300, 40)
    sampling = SamplingParams(seed=1, logprobs=0)
    requests = [engine.add(prompt, sampling, max_new_tokens=40, n=6) for prompt in prompts]
    greedy = engine.add(prompts[0], GREEDY, max_new_tokens=20)
    logprobs: dict[int, list[float]] = {}
    while not all(each.is_finished for each in (*requests, greedy)):
        for new in engine.step():
            if new.logprobs is not None:
                logprobs.setdefault(id(new.sample), []).append(new.logprobs.logprob)
    for request in requests:
        for sample in request.sequences:
            ids = torch.tensor([[*request.prompt, *sample.tokens]], device=CUDA)
            with torch.inference_mode():
                expected = model(ids)[0].float().log_softmax(-1)[len(request.prompt) - 1 : -1]
            expected = expected.gather(1, torch.tensor(sample.tokens, device=CUDA)[:, None]).flatten().cpu()
            found = torch.tensor(logprobs[id(sample)])
            # In bfloat16, logits of this size differ by a few tenths.
            assert (found - expected).abs().median() < 0.2, (found, expected)
    for request in requests:
        assert [len(each.tokens) for each in request.sequences] == [40] * 6
        assert len({tuple(each.tokens) for each in request.sequences}) > 1
    again = engine.add(prompts[0], GREEDY, max_new_tokens=20)
    while not again.is_finished:
        engine.step()
    assert again.n_cached_tokens > 200


def test_small_and_wide_batches_of_shared_key_heads() -> None:
    config = KilnConfig(
        n_layers=2, d_model=64, n_heads=8, n_kv_heads=2, d_head=32, d_ff=96, vocab_size=300, context_length=512
    )
    model = random_model(config).to(CUDA, torch.bfloat16)
    engine = engine_on_gpu(model)
    prompts = random_prompts(4, *range(10, 74))
    for prompt, row in zip(prompts, engine.generate(prompts, GREEDY, max_new_tokens=8), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *row]], device=CUDA))[0].float()
        for at, token in enumerate(row, start=len(prompt)):
            assert logits[at - 1, token] >= logits[at - 1].max() - 0.2 * logits[at - 1].std()


def test_flash_operator_passes_pytorchs_checks() -> None:
    q, k, v = (
        torch.randn(2, heads, 24, 16, device=CUDA, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)
    )
    offsets = torch.tensor([0, 5, 24, 31, 48], dtype=torch.int32, device=CUDA)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.codekiln.flash_document_attention, (q, k, v, offsets), test_utils=checks)
