"""The recipes of the list: their numbers, exact sizes, and estimates."""

import math
import re

import pytest
import torch

from codekiln.model.transformer import Transformer
from codekiln.overrides import apply_overrides
from codekiln.planning.summary import estimate_recipe
from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes import RECIPES, get_recipe
from codekiln.recipes.kiln import SIZES, step_law_batch_tokens, step_law_lr
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import AdamWConfig
from codekiln.train.objectives import CausalMasking
from codekiln.train.schedules import WarmupCosine, WarmupPolynomial
from tests.small import ROOT


def stages_of(name: str) -> tuple[Recipe, ...]:
    recipe = get_recipe(name)
    return recipe.recipes if isinstance(recipe, StagedRecipe) else (recipe,)


def qwen3_parameters(layers: int, d: int, heads: int, kv: int, d_head: int, d_ff: int, vocab: int, tables: int) -> int:
    """By hand from the tensors of Transformers' Qwen3: q, k, v, o, two norms of heads, gate, up, down, two norms; the last
    norm, and one or two tables of the vocabulary."""
    attention = d * heads * d_head + 2 * d * kv * d_head + heads * d_head * d + 2 * d_head
    return layers * (attention + 3 * d * d_ff + 2 * d) + d + tables * vocab * d


KILN = {  # shapes by hand
    "25M": qwen3_parameters(8, 512, 8, 4, 64, 1408, 4096, 1),
    "110M": qwen3_parameters(12, 896, 14, 2, 64, 2432, 8192, 1),
    "350M": qwen3_parameters(24, 1024, 16, 8, 128, 2816, 32_768, 1),
    "1B": qwen3_parameters(28, 1792, 14, 7, 128, 4864, 32_768, 1),
    "3B": qwen3_parameters(32, 2560, 20, 4, 128, 10_240, 65_536, 2),
    "7B": qwen3_parameters(36, 3584, 28, 4, 128, 15_360, 65_536, 2),
}
# The small twins by hand: blocks of four matrices of 128 x 128 and two of 128 x 512, with their biases and norms, the last
# norm, and the tables of the vocabulary.
CODEGEN_TINY = 4 * (4 * 128 * 128 + 2 * 128 * 512 + 512 + 128 + 2 * 128) + 2 * 128 + 2 * 1088 * 128 + 1088
INCODER_TINY = 4 * (4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128 + 4 * 128) + 2 * 128 + 1536 * 128
PUBLISHED = {
    "codegen-tiny": CODEGEN_TINY,
    "incoder-tiny": INCODER_TINY,
    "codegen-350M": 356_712_448,
    "codegen-2B": 2_779_356_160,
    "codegen-6B": 7_064_213_504,
    "codegen-16B": 16_032_155_648,
    "incoder-1B": 1_312_063_488,
    "incoder-6B": 6_651_084_800,
} | {f"kiln-{size}": n for size, n in KILN.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stage_has_the_exact_number_of_parameters(name: str) -> None:
    for stage in stages_of(name):
        assert stage.model.n_parameters == PUBLISHED[name]
        with torch.device("meta"):
            assert sum(weight.numel() for weight in Transformer(stage.model).parameters()) == PUBLISHED[name]
        if isinstance(stage.tokenizer, TokenizerConfig):
            assert stage.tokenizer.vocab_size <= stage.model.vocab_size


def test_every_recipe_but_the_demo_has_a_known_size() -> None:
    assert RECIPES.keys() == PUBLISHED.keys() | {"demo"}


FAST = ("kiln-7B",)


@pytest.mark.process
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_every_recipe_is_estimated(name: str) -> None:
    """With one layer, because the estimate runs every layer."""
    recipe = apply_overrides(get_recipe(name), ["model.n_layers=1"])
    found = estimate_recipe(recipe, "h100", 8, 1)
    assert found["best"] is not None
    days = [stage["days"] for stage in found["best"]["stages"]]
    assert len(days) == len(stages_of(name)) and all(each > 0 for each in days)


@pytest.mark.parametrize(
    ("size", "rows", "rates"),
    [
        ("350M", 256, (3.0e-4, 1.8e-4, 1.8e-4)),
        ("2B", 512, (1.6e-4, 0.8e-4, 0.8e-4)),
        ("6B", 512, (1.2e-4, 0.4e-4, 0.4e-4)),
        ("16B", 1024, (0.9e-4, 0.5e-4, 0.5e-4)),
    ],
)
def test_codegen_has_the_batches_and_tokens_of_the_paper(size: str, rows: int, rates: tuple[float, ...]) -> None:
    stages = stages_of(f"codegen-{size}")
    assert [stage.name for stage in stages] == ["nl", "multi", "mono"]
    for stage, rate, steps in zip(stages, rates, (350_000, 150_000, 150_000), strict=True):
        train = stage.train
        assert train.global_batch_size == rows and train.seq_len(stage.model) == 2048
        assert train.total_tokens == steps * rows * 2048
        assert isinstance(train.optimizer, AdamWConfig) and isinstance(train.optimizer.schedule, WarmupCosine)
        assert (train.optimizer.lr, train.optimizer.max_grad_norm, train.optimizer.weight_decay) == (rate, 1.0, 0.1)
        assert train.optimizer.schedule.warmup_steps == 3000
        assert (train.dropout, train.attention_dropout, train.initialization) == (0.0, 0.0, "jaxformer")


@pytest.mark.parametrize(("size", "rate", "dropout"), [("1B", 2.0e-4, 0.1), ("6B", 1.2e-4, 0.0)])
def test_incoder_has_the_numbers_of_the_paper(size: str, rate: float, dropout: float) -> None:
    (recipe,) = stages_of(f"incoder-{size}")
    train = recipe.train
    assert (train.total_tokens, train.global_batch_size * train.seq_len(recipe.model)) == (52_000_000_000, 4_063_232)
    assert (train.dropout, train.attention_dropout) == (dropout, 0.1)
    assert (train.initialization, recipe.init_from) == ("normal", None)
    assert isinstance(train.optimizer, AdamWConfig)
    assert train.optimizer == AdamWConfig(
        lr=rate, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01, schedule=WarmupPolynomial(warmup_steps=1500)
    )
    assert train.objective == CausalMasking(sampling="released")


def test_step_law_at_the_size_of_its_paper() -> None:
    """1B parameters and 100B tokens, by logarithms with a calculator: 20.723 and 25.328."""
    assert math.log(step_law_lr(10**9, 10**11)) == pytest.approx(0.5822 - 0.713 * 20.7233 + 0.307 * 25.3284, abs=1e-3)
    assert step_law_lr(10**9, 10**11) == pytest.approx(1.64e-3, rel=0.01)
    assert step_law_batch_tokens(10**11) == pytest.approx(1.11e6, rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_kiln_follows_its_rules(size: str) -> None:
    (recipe,) = stages_of(f"kiln-{size}")
    model, train = recipe.model, recipe.train
    tables = (1 if model.tie_embeddings else 2) * model.vocab_size * model.d_model
    n = model.n_parameters - tables
    named = float(size[:-1]) * (1e6 if size[-1] == "M" else 1e9)
    assert n == pytest.approx(named, rel=0.15)
    assert train.total_tokens == 100 * n
    assert isinstance(train.optimizer, AdamWConfig) and isinstance(train.optimizer.schedule, WarmupCosine)
    assert train.optimizer.lr == pytest.approx(1.79 * n**-0.713 * train.total_tokens**0.307, rel=0.05)
    assert train.optimizer.lr * train.optimizer.schedule.min_lr_ratio == pytest.approx(1e-5)
    tokens = train.global_batch_size * model.context_length
    assert abs(math.log2(tokens / (0.58 * train.total_tokens**0.571))) <= 0.5
    assert train.global_batch_size & (train.global_batch_size - 1) == 0


def test_kiln_grows_in_everything() -> None:
    recipes = [stages_of(f"kiln-{size}")[0] for size in SIZES]
    rates = [recipe.train.optimizer.peak_lr for recipe in recipes]
    assert rates == sorted(rates, reverse=True)
    for values in (
        [recipe.model.n_parameters for recipe in recipes],
        [recipe.model.vocab_size for recipe in recipes],
        [recipe.train.global_batch_size * recipe.model.context_length for recipe in recipes],
    ):
        assert values == sorted(values)


def test_table_of_kiln_is_that_of_the_recipes() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(kiln-\w+)` \| (.+) \|$", page, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [f"kiln-{size}" for size in SIZES]
    for name, cells in rows:
        (recipe,) = stages_of(name)
        total, n, vocabulary, context, billions, sequences, rate = cells.replace(",", "").split(" | ")
        assert (int(total), int(vocabulary)) == (PUBLISHED[name], recipe.model.vocab_size)
        assert int(context) == recipe.model.context_length and int(sequences) == recipe.train.global_batch_size
        assert int(n) * 100 == recipe.train.total_tokens
        assert float(billions) == pytest.approx(recipe.train.total_tokens / 1e9, abs=0.05)
        assert float(rate) == recipe.train.optimizer.peak_lr
