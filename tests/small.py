"""What tests build on: a folder of twenty small files, and a recipe that learns them in seconds."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from codekiln.corpus.config import CorpusConfig
from codekiln.corpus.sources.tree import LocalRepositories
from codekiln.evaluate.config import InfillingConfig
from codekiln.model.configs import KilnConfig
from codekiln.recipe import Recipe
from codekiln.tokenizer.config import TokenizerConfig
from codekiln.train.config import TrainConfig
from codekiln.train.objectives import SpmInfill

VERBS = ("open", "close", "start", "stop", "read", "write", "load", "store", "push", "pull")
NOUNS = ("door", "window")
SPELLED = 'END = "<|endoftext|>" + "<|fim_middle|>"\n'  # text like any other, in one file of each repository


def write_tree(folder: Path) -> Path:
    """Twenty files in four repositories, each with two functions of its own."""
    for n, (verb, noun) in enumerate((verb, noun) for verb in VERBS for noun in NOUNS):
        path = folder / f"repository{n % 4}" / f"{verb}_{noun}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'"""How to {verb} a {noun}."""\n\nLIMIT_{verb.upper()} = {n * 37 + 11}\n\n\n'
            f"def {verb}_{noun}(name, count={n + 1}):\n"
            f"    steps = [name.{verb}({noun}) for {noun} in range(count)]\n"
            f"    if len(steps) > LIMIT_{verb.upper()}:\n"
            f'        raise ValueError("cannot {verb} so many {noun}s")\n'
            f"    return steps\n\n\n"
            f"def count_{noun}s(items):\n"
            f"    return sum(item.is_{verb} for item in items)\n" + SPELLED * (n in (4, 5, 6, 7)),
            encoding="utf-8",
        )
    return folder


def small_recipe(code: Path, *, total_tokens: int = 20_000) -> Recipe:
    """A recipe of a 60,000-parameter model on the code in a folder."""
    return Recipe(
        name="small",
        corpus=CorpusConfig((LocalRepositories(code, "MIT"),), validation_fraction=0.2),
        tokenizer=TokenizerConfig(vocab_size=384),
        model=KilnConfig(
            n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, d_head=16, d_ff=128, vocab_size=384, context_length=256
        ),
        train=TrainConfig(
            SpmInfill(), total_tokens=total_tokens, global_batch_size=4, eval_every=5, eval_sequences=4, save_every=4
        ),
        infilling=InfillingConfig(n_problems=8, context_characters=300, max_new_tokens=24, max_span_characters=20),
        n_report_samples=2,
        min_free_bytes=1_000_000,
    )


def with_train(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with another train plan."""
    train = dataclasses.replace(recipe.train, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, train=train)


def assert_greedy(
    logits_of: Callable[[Tensor], Tensor],
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    tolerance: float,
    forbidden: Iterable[int] = (),
) -> None:
    """Each of `tokens` after `prompt` has the greatest logit by `logits_of` (1, T) -> (1, T, V), up to `tolerance`.

    Over random weights the best two logits are often nearly equal, and processors and libraries round differently, so
    two greedy decoders may differ without a fault in either.
    """
    ids = [*prompt, *tokens]
    with torch.inference_mode():
        logits = logits_of(torch.tensor([ids]))[0].float()
    logits = logits.clone()  # outside of inference mode, where it may be changed
    logits[:, list(forbidden)] = -torch.inf
    for at, token in enumerate(tokens, start=len(prompt)):
        best = logits[at - 1].max()
        assert logits[at - 1, token] >= best - tolerance, f"token {at - len(prompt)}: {token} is not the most likely"
