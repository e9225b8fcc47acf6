"""Training that starts from weights: the stages of CodeGen, and fine-tuning of all weights or with LoRA."""

import copy
import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from codekiln.convert.models import import_model
from codekiln.generate.complete import Completer, CompletionParams, InfillRequest
from codekiln.generate.sampling import GREEDY
from codekiln.metrics_log import read_metrics
from codekiln.model.configs import Lfm2Config
from codekiln.model.huggingface import load_model
from codekiln.model.transformer import Transformer
from codekiln.overrides import apply_overrides
from codekiln.pipeline import build, build_stages
from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes import get_recipe
from codekiln.recipes.codegen import codegen
from codekiln.recipes.finetune import finetune, objective_for
from codekiln.runs import read_stage_record
from codekiln.tokenizer.bpe import Tokenizer
from codekiln.tokenizer.codegen import codegen_tokenizer, load_gpt2_merges
from codekiln.tokenizer.config import LINE_SPLIT_PATTERN, TokenizerConfig
from codekiln.tokenizer.special_tokens import INCODER_SPECIAL_TOKENS, PSM_SPECIAL_TOKENS
from codekiln.tokenizer.training import train_tokenizer
from codekiln.train.checkpoint import list_checkpoints
from codekiln.train.config import LoraConfig
from codekiln.train.lora import inject_lora, iter_merged_weights
from codekiln.train.objectives import CausalMasking, FillInTheMiddle, NextToken, SpmInfill
from tests.command import codekiln, codekiln_with_log
from tests.forked import start_forked
from tests.small import EAGER, write_tree

pytestmark = pytest.mark.process

TINY = [
    "model.n_layers=1", "model.d_model=32", "model.n_heads=4", "model.n_kv_heads=4", "model.d_head=8", "model.d_ff=64",
    "model.rotary_dim=4", "model.context_length=64", "train.global_batch_size=4",
    "min_free_bytes=1000000", "corpus.validation_fraction=0.2",
    "train.eval_sequences=4",
]  # fmt: skip


def weights_of_run(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.slow
def test_stages_of_codegen_pass_on_weights_only(tmp_path: Path) -> None:
    code = write_tree(tmp_path / "code")
    for n in range(6):
        words = "\n".join(f"Of word{n * k % 17} we say in prose that it is {k}." for k in range(60))
        (code / f"repository{n % 4}" / f"NOTES{n}.md").write_text(f"# Notes {n}\n\n{words}\n", encoding="utf-8")
    chain = apply_overrides(codegen("350M", code, "MIT"), TINY)
    steps = {"nl": 6, "multi": 1, "mono": 1}
    recipes = [
        dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, total_tokens=256 * steps[recipe.name]))
        for recipe in chain.recipes
    ]
    runs = build_stages(dataclasses.replace(chain, recipes=tuple(recipes)), tmp_path / "out", EAGER)
    assert [run.name for run in runs] == ["1-nl", "2-multi", "3-mono"]
    # The first step of every stage has the learning rate 0, so a stage of one step does not change the weights.
    nl, multi, mono = (weights_of_run(run) for run in runs)
    assert all(torch.equal(nl[name], multi[name]) and torch.equal(nl[name], mono[name]) for name in nl)
    assert [len(read_metrics(run / "metrics.jsonl")) for run in runs] == [6, 1, 1]
    assert all(read_metrics(run / "metrics.jsonl")[0]["lr_scale"] == 0.0 for run in runs)
    fresh = weights_of_run(runs[0])["transformer.wte.weight"]
    assert not torch.equal(fresh, torch.zeros_like(fresh))
    # Each stage reads its own languages. From the second stage on, the tokenizer has tokens for white space.
    sizes = [Tokenizer.load(run / "tokenizer.json").vocab_size for run in runs]
    assert sizes == [50_257, 50_295, 50_295]
    documents = [read_stage_record(run, "corpus")["result"] for run in runs]
    total = [sum(split["documents"] for split in result["splits"].values()) for result in documents]
    assert total == [6, 20, 20]
    transformers.AutoModelForCausalLM.from_pretrained(runs[2] / "model")
    # Started again, all finished stages are kept.
    assert build_stages(dataclasses.replace(chain, recipes=tuple(recipes)), tmp_path / "out", EAGER) == runs


@pytest.mark.parametrize(
    ("size", "tokens", "rates"),
    [
        ("350M", (183.5e9, 78.6e9, 78.6e9), (3.0e-4, 1.8e-4, 1.8e-4)),
        ("2B", (367e9, 157e9, 157e9), (1.6e-4, 0.8e-4, 0.8e-4)),
        ("16B", (734e9, 315e9, 315e9), (0.9e-4, 0.5e-4, 0.5e-4)),
    ],
)
def test_codegen_recipe_has_the_published_numbers(
    size: str, tokens: tuple[float, ...], rates: tuple[float, ...]
) -> None:
    chain = get_recipe(f"codegen-{size}")
    assert isinstance(chain, StagedRecipe)
    for recipe, wanted, rate in zip(chain.recipes, tokens, rates, strict=True):
        assert recipe.train.total_tokens == pytest.approx(wanted, rel=2e-3)
        optimizer = recipe.train.optimizer
        n_steps = round(recipe.train.total_tokens / 2048 / recipe.train.global_batch_size)
        assert optimizer.peak_lr == rate and optimizer.betas == (0.9, 0.999) and optimizer.eps == 1e-8
        assert (optimizer.weight_decay, optimizer.max_grad_norm, recipe.train.z_loss) == (0.1, 1.0, 1e-4)
        assert optimizer.schedule(0, n_steps) == 0.0 and optimizer.schedule(3000, n_steps) == 1.0
    nl, multi, _ = chain.recipes
    assert nl.train.optimizer.schedule(303_000, 350_000) == pytest.approx(0.1)
    assert multi.train.optimizer.schedule(150_000, 150_000) == pytest.approx(1 / 6)


def test_incoder_recipe_has_the_published_numbers() -> None:
    recipe = get_recipe("incoder-6B")
    assert isinstance(recipe, Recipe) and recipe.model.n_parameters == 6_651_084_800
    assert recipe.train.global_batch_size * 2048 == 4_063_232
    assert recipe.train.total_tokens / 4_063_232 == pytest.approx(12_800, rel=0.01)
    assert recipe.train.optimizer.betas == (0.9, 0.98) and isinstance(recipe.train.objective, CausalMasking)


def own_code(folder: Path, *, n_files: int = 24) -> Path:
    """A folder of code that differs from the small tree, without a license."""
    folder.mkdir()
    for n in range(n_files):
        (folder / f"module{n}.py").write_text(
            f"class Machine{n}:\n    def __init__(self, power):\n        self.power = power * {n}\n\n"
            f"    def start(self):\n        if self.power > {n * 3}:\n            return self.power\n"
            f"        raise RuntimeError('machine {n} has no power')\n" * 3,
            encoding="utf-8",
        )
    return folder


def test_finetune_command_trains_on_a_folder_of_code(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    command = (
        "finetune", small_run, "--code", own_code(tmp_path / "own"),
        "--out", out, "--no-compile", "--set", "train.epochs=6", "--set", "train.global_batch_size=4",
        "--set", "train.optimizer.lr=2e-3",
        "--set", "infilling.n_problems=4", "--set", "infilling.max_new_tokens=8",
    )  # fmt: skip
    done = codekiln(*command)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert str(out) in done.stdout and (out / "CARD.md").is_file()
    before, after = weights_of_run(small_run), weights_of_run(out)
    assert before.keys() == after.keys()
    assert json.loads((out / "recipe.json").read_text())["train"]["objective"]["kind"] == "SpmInfill"
    again = codekiln(*command)
    assert again.returncode == 0 and len(read_metrics(out / "metrics.jsonl")) == len(rows)


def test_finetuning_on_a_small_folder_changes_the_weights(small_run: Path, tmp_path: Path) -> None:
    """With the defaults: the code has fewer sequences than a batch, is read once, and changes the weights."""
    own = own_code(tmp_path / "own", n_files=8)
    recipe = apply_overrides(finetune(small_run / "model", own), ["infilling.n_problems=2"])
    build(recipe, tmp_path / "run", EAGER)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) < 4 and rows[0]["lr_scale"] > 0
    assert rows[0]["tokens"] < 32 * 256
    before, after = weights_of_run(small_run), weights_of_run(tmp_path / "run")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_sigterm_saves_a_checkpoint_and_exits_with_0(small_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    command = (
        "finetune", small_run, "--code", own_code(tmp_path / "own"),
        "--out", out, "--no-compile", "--set", "train.epochs=400", "--set", "train.global_batch_size=4",
    )  # fmt: skip
    process = start_forked(codekiln_with_log, tmp_path / "stderr.txt", *command)
    deadline = time.monotonic() + 200
    while len(read_metrics(out / "metrics.jsonl")) < 3:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.join(timeout=60)
    assert process.exitcode == 0 and "SIGTERM" in (tmp_path / "stderr.txt").read_text(encoding="utf-8")
    assert int(list_checkpoints(out / "checkpoints")[-1].name[5:]) == len(read_metrics(out / "metrics.jsonl"))


def test_lora_changes_weights_by_low_rank_and_is_saved_merged(small_run: Path, tmp_path: Path) -> None:
    recipe = finetune(small_run / "model", own_code(tmp_path / "own"), lora=True)
    recipe = apply_overrides(
        recipe,
        ["train.lora.rank=2", "train.epochs=4", "train.global_batch_size=4", "train.optimizer.lr=0.01",
         "infilling.n_problems=2",
         "infilling.max_new_tokens=8", "train.save_every=3"],
    )  # fmt: skip
    build(recipe, tmp_path / "run", EAGER)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    before, after = weights_of_run(small_run), weights_of_run(tmp_path / "run")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        change = after[name] - weight
        if name.endswith("proj.weight"):
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-4) <= 2, name
        else:
            assert not change.any(), name
    held = load_file(next(iter(list_checkpoints(tmp_path / "run" / "checkpoints")[-1].glob("*.safetensors"))))
    assert all(".lora_" in name for name in held)


@pytest.mark.parametrize("has_convolutions", [False, True])
def test_merged_weights_equal_adapters(small_run: Path, has_convolutions: bool) -> None:
    model = load_model(small_run / "model")
    if has_convolutions:
        config = Lfm2Config(
            n_layers=2, d_model=32, n_heads=2, n_kv_heads=2, d_head=16, d_ff=64, vocab_size=384, context_length=64,
            attention_layers=(1,),
        )  # fmt: skip
        torch.manual_seed(0)
        model = Transformer(config)
    plain = copy.deepcopy(model)
    model.requires_grad_(True)
    ids = torch.arange(40)[None]
    before = model(ids)
    inject_lora(model, LoraConfig(rank=4), seed=1)
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert ("blocks.0.convolution.in_proj" in adapted) == has_convolutions
    assert torch.equal(model(ids), before)  # at the start they change nothing
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.normal_()
    plain.load_state_dict(dict(iter_merged_weights(model)), strict=False)
    assert not torch.allclose(model(ids), before, atol=1e-2)
    assert torch.allclose(model(ids), plain(ids), atol=1e-4)


def test_objective_follows_the_infilling_format(tokenizer: Tokenizer) -> None:
    texts = ["def f(x):\n    return x\n" * 9]

    def of(control: tuple[str, ...]) -> Tokenizer:
        return train_tokenizer(
            TokenizerConfig(vocab_size=256 + len(control) + 4, pattern=LINE_SPLIT_PATTERN, special_tokens=control),
            texts,
        )

    assert isinstance(objective_for(tokenizer.infill_format), SpmInfill)
    assert isinstance(objective_for(of(INCODER_SPECIAL_TOKENS).infill_format), CausalMasking)
    assert isinstance(objective_for(of(PSM_SPECIAL_TOKENS).infill_format), FillInTheMiddle)
    assert isinstance(objective_for(codegen_tokenizer(load_gpt2_merges()).infill_format), NextToken)


def test_imported_codegen_is_finetuned_and_completes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(
        n_layer=2, n_embd=64, n_head=4, rotary_dim=8, vocab_size=51_200, n_positions=64, n_ctx=64,
        bos_token_id=50_256, eos_token_id=50_256,
    )  # fmt: skip
    transformers.CodeGenForCausalLM(config).half().save_pretrained(tmp_path / "released")
    codegen_tokenizer(load_gpt2_merges()).save(tmp_path / "released" / "tokenizer.json")
    import_model(tmp_path / "released", tmp_path / "model")
    recipe = finetune(tmp_path / "model", own_code(tmp_path / "own", n_files=8))
    recipe = apply_overrides(recipe, ["train.global_batch_size=4", "train.epochs=2", "train.optimizer.lr=1e-2"])
    assert recipe.infilling is None
    build(recipe, tmp_path / "run", EAGER)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    answer = Completer.load(tmp_path / "run").complete(
        [InfillRequest("class Machine")], CompletionParams(max_new_tokens=4, sampling=GREEDY)
    )
    assert answer[0].completion_tokens == 4


def test_recipe_for_another_shape_is_refused(small_run: Path, tmp_path: Path) -> None:
    recipe = apply_overrides(finetune(small_run / "model", own_code(tmp_path / "own")), ["model.n_layers=3"])
    with pytest.raises(ValueError, match=r"n_layers=2.*n_layers=3"):
        build(recipe, tmp_path / "run", EAGER)
