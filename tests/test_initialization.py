"""Random weights of a new model, and dropout while it trains."""

import dataclasses
import math
import shutil
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.distributed.tensor.debug import CommDebugMode

from codekiln.errors import ConfigError
from codekiln.model.configs import Initialization, Lfm2Config, ModelConfig, codegen, kiln
from codekiln.model.huggingface import load_model
from codekiln.model.initialization import init_weights
from codekiln.model.transformer import Transformer, rotary_angles
from codekiln.planning.estimate import ParallelSettings, fake_process_group
from codekiln.recipes.demo import demo, demo_model
from codekiln.train.checkpoint import list_checkpoints
from codekiln.train.config import AdamWConfig, TrainConfig
from codekiln.train.objectives import NextToken
from codekiln.train.parallel import build_sharded_model, copy_full_
from tests.small import train_tiny
from tests.test_model_families import CONFIGS, random_ids, released

SMALL = dataclasses.replace(
    codegen("350M"), n_layers=3, d_model=256, n_heads=4, n_kv_heads=4, d_ff=1024, vocab_size=4096
)
# By hand from the layers of jaxformer's modules.py: std before truncation at two of it.
JAXFORMER = {
    "embedding.weight": 1 / 64,  # 4,096 rows
    "lm_head.weight": 1 / 16,  # width 256
    "blocks.1.attention.q.weight": 1 / 16,
    "blocks.1.attention.v.weight": 1 / 16,
    "blocks.1.mlp.up.weight": 1 / 16,
    "blocks.1.attention.out.weight": 2 / 3 / 16,  # three layers
    "blocks.1.mlp.down.weight": 2 / 3 / 16,
}


def test_weights_of_codegen_are_drawn_as_jaxformer_draws_them() -> None:
    model = Transformer(SMALL)
    init_weights(model, torch.Generator().manual_seed(0), initialization="jaxformer")
    weights = dict(model.named_parameters())
    normal = NormalDist()
    inside = 2 * normal.cdf(2) - 1  # of a normal distribution that is not truncated
    for name, std in JAXFORMER.items():
        drawn = weights[name].detach().double().flatten() / std
        assert drawn.abs().max() <= 2 + 1e-6, name
        for at in (-1.5, -0.5, 0.0, 1.0):  # with 65,536 weights, 0.01 is five standard errors
            expected = (normal.cdf(at) - normal.cdf(-2)) / inside
            assert float((drawn <= at).double().mean()) == pytest.approx(expected, abs=0.01), name
    matrices = {name for name, weight in weights.items() if weight.ndim == 2}
    assert {name.replace("blocks.0.", "blocks.1.").replace("blocks.2.", "blocks.1.") for name in matrices} == {
        *JAXFORMER, "blocks.1.attention.k.weight",
    }  # fmt: skip
    for name in weights.keys() - matrices:
        assert bool((weights[name] == (1 if name.endswith("norm.weight") else 0)).all()), name


HYBRID = Lfm2Config(
    n_layers=2, d_model=256, n_heads=4, n_kv_heads=4, d_head=64, d_ff=512, vocab_size=512, context_length=128,
    tie_embeddings=False, attention_layers=(1,), conv_width=4,
)  # fmt: skip


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_blocks_start_as_the_identity_and_weights_have_the_std_of_the_docstring(tie_embeddings: bool) -> None:
    model = Transformer(dataclasses.replace(HYBRID, tie_embeddings=tie_embeddings))
    init_weights(model, torch.Generator().manual_seed(0))
    x = torch.randn(8, 64, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for block in model.blocks:
            assert torch.equal(block(x, rotary_angles(torch.arange(64)[None], 64, 1e4), None, None, None), x)
    width = 1 / 16  # 1 / sqrt(d_model)
    stds = {
        "embedding.weight": 1.0,
        "blocks.0.convolution.in_proj.weight": width,
        "blocks.1.attention.q.weight": width,
        "blocks.1.attention.v.weight": width,
        "blocks.1.mlp.gate.weight": 0.4 * width,
        "blocks.1.mlp.up.weight": 0.4 * width,
    }
    weights = dict(model.named_parameters())
    for name, std in stds.items():
        assert float(weights[name].std().detach()) == pytest.approx(0.02 if tie_embeddings else std, rel=0.02), name
    kernel = weights["blocks.0.convolution.kernel.weight"]
    assert kernel.shape == (256, 1, 4) and float(kernel.std().detach()) == pytest.approx(0.5, rel=0.1)
    if not tie_embeddings:
        assert not weights["lm_head.weight"].any()


@pytest.mark.parametrize(
    "config",
    [HYBRID, demo_model("1M"), demo_model("5M"), dataclasses.replace(HYBRID, conv_width=2, attention_layers=(1,))],
)
def test_a_head_continues_earlier_text_before_training(config: Lfm2Config) -> None:
    """Random tokens cannot be predicted, but their repetition can. Weights that have no part in it are as without the head."""
    half = torch.randint(0, config.vocab_size, (8, 60), generator=torch.Generator().manual_seed(1))
    ids = torch.cat((half, half), 1)
    model = Transformer(config)
    means, weights = [], []
    for initialization in ("codekiln", "induction"):
        init_weights(model, torch.Generator().manual_seed(0), initialization=initialization)
        with torch.no_grad():
            losses = F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        means.append((float(losses[:, :59].mean()), float(losses[:, 60:].mean())))
    (first, second), (first_with_head, second_with_head) = means
    assert first == second == pytest.approx(math.log(config.vocab_size), abs=1e-5)
    assert first_with_head < first + 0.15
    assert second_with_head < second - 0.15
    changed = {name for name, weight in weights[0].items() if not torch.equal(weight, weights[1][name])}
    parts = (
        "convolution.in_proj",
        "convolution.kernel",
        "convolution.out",
        "attention.q",
        "attention.k",
        "attention.v",
    )
    blocks = {f"blocks.{int('attention' in part)}.{part}.weight" for part in (*parts, "attention.out")}
    assert changed == blocks | {"embedding.weight", "lm_head.weight"}
    assert torch.equal(weights[0]["embedding.weight"][:, 1:], weights[1]["embedding.weight"][:, 1:])
    d_head = config.d_head
    assert torch.equal(*(each["blocks.1.attention.q.weight"][d_head:] for each in weights))  # of the other heads
    ids[:, 60:] = torch.randint(0, config.vocab_size, (8, 60), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        losses = F.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert float(losses[:, 60:].mean()) > second  # other random tokens are predicted no better


@pytest.mark.parametrize(
    "config",
    [
        kiln("1M", vocab_size=256, context_length=64),
        dataclasses.replace(HYBRID, tie_embeddings=True),
        dataclasses.replace(HYBRID, attention_layers=(0,)),
        dataclasses.replace(HYBRID, conv_width=1),
    ],
)
def test_models_that_can_have_no_such_head_are_refused(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=r"train\.initialization is induction.*convolution"):
        init_weights(Transformer(config), torch.Generator(), initialization="induction")
    with pytest.raises(ConfigError, match=r"set train\.initialization=codekiln"):
        dataclasses.replace(demo(), model=dataclasses.replace(config, vocab_size=2048), infilling=None)


def test_weights_of_incoder_are_drawn_as_transformers_draws_them(tmp_path: Path) -> None:
    """XGLM's class with the released std: the weights of the directory that it saves have the distribution of ours."""
    config = transformers.XGLMConfig(
        num_layers=2, d_model=256, attention_heads=4, ffn_dim=512, vocab_size=2000, max_position_embeddings=64
    )
    assert config.init_std == 0.02
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    theirs = load_model(tmp_path)
    ours = Transformer(theirs.config)
    init_weights(ours, torch.Generator().manual_seed(0), initialization="normal")
    for (name, weight), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if weight.ndim == 2:
            assert float(weight.std().detach()) == pytest.approx(0.02, rel=0.02), name
            assert float(expected.std()) == pytest.approx(0.02, rel=0.02), name
        else:
            assert torch.equal(weight.detach(), expected), name


@pytest.mark.parametrize("initialization", ["jaxformer", "codekiln", "normal"])
def test_drawing_weights_sends_nothing_between_ranks(initialization: Initialization) -> None:
    with fake_process_group(ParallelSettings(n_ranks=4, micro_batch_size=1), torch.float32) as world:
        model = build_sharded_model(SMALL, world, activation_checkpointing=False)
        model.to_empty(device="cpu")
        with CommDebugMode() as sent:  # type: ignore[no-untyped-call]
            init_weights(model, torch.Generator().manual_seed(0), copy_full_, initialization=initialization)
        assert sent.get_total_counts() == 0


def test_first_loss_of_codegen_is_near_that_of_equal_probabilities() -> None:
    """The logits of jaxformer's output layer have about unit variance, which costs about half a nat."""
    model = Transformer(SMALL)
    init_weights(model, torch.Generator().manual_seed(0), initialization="jaxformer")
    ids = torch.randint(0, SMALL.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    loss = float(model.loss(ids, ids.roll(-1, 1), torch.ones(ids.shape), None).nats.detach()) / ids.numel()
    assert loss == pytest.approx(math.log(SMALL.vocab_size) + 0.88**2 / 2, abs=0.1)


@pytest.mark.parametrize(("dropout", "attention_dropout"), [(0.1, 0.0), (0.0, 0.1), (0.2, 0.3)])
def test_dropout_is_where_xglm_has_it(dropout: float, attention_dropout: float, tmp_path: Path) -> None:
    """The same seed drops the same elements in Transformers' class if the places, shapes and order are the same."""
    theirs = released(CONFIGS["incoder"])
    theirs.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dropout=dropout, attention_dropout=attention_dropout, attn_implementation="eager"
    ).train()
    ours = load_model(tmp_path).train()
    ours.set_dropout(dropout, attention_dropout)
    ids = random_ids(3, 20)
    torch.manual_seed(5)
    expected = theirs(ids).logits
    torch.manual_seed(5)
    found = ours(ids)
    assert (found - expected).abs().max() < 1e-4
    assert (found - ours.eval()(ids)).abs().max() > 0.1
    # Documents that are packed into a sequence: those of a batch with one document give the same.
    ours.train()
    torch.manual_seed(5)
    assert (ours(ids, document_ids=torch.ones_like(ids)) - expected).abs().max() < 1e-4


def test_training_with_dropout_resumes_exactly(small_run: Path, tmp_path: Path) -> None:
    changes = {"dropout": 0.3, "attention_dropout": 0.1, "save_every": 4, "keep_every": 4, "eval_every": 4}
    straight = train_tiny(small_run, tmp_path / "straight", **changes)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    first, *later = list_checkpoints(tmp_path / "resumed" / "checkpoints")
    for folder in later:
        shutil.rmtree(folder)
    resumed = train_tiny(small_run, tmp_path / "resumed", **changes)
    names = ("step", "loss", "grad_norm", "validation_bits_per_byte")
    assert [[row.get(name) for name in names] for row in resumed] == [
        [row.get(name) for name in names] for row in straight
    ]
    assert first.name == "step-00000004" and len(later) > 1 and len(resumed) == 16
    plain = train_tiny(small_run, tmp_path / "plain")
    assert plain[0]["loss"] != straight[0]["loss"]


def test_validation_drops_nothing(small_run: Path, tmp_path: Path) -> None:
    """Without a learning rate, all weights stay as they are drawn, and validation is that of a run without dropout."""
    config = {"optimizer": AdamWConfig(lr=0.0, weight_decay=0.0), "eval_every": 4}
    bits = [
        train_tiny(small_run, tmp_path / str(dropout), dropout=dropout, **config)[-1]["validation_bits_per_byte"]
        for dropout in (0.0, 0.5)
    ]
    assert bits[0] == bits[1]


@pytest.mark.parametrize("name", ["dropout", "attention_dropout"])
def test_impossible_probabilities_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.{name} is 1"):
        TrainConfig(objective=NextToken(), total_tokens=1, **{name: 1.0})  # type: ignore[arg-type]
