"""Everything that decides what a model becomes, number by number. A name becomes a recipe here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes.codegen import codegen
from codekiln.recipes.demo import demo
from codekiln.recipes.incoder import incoder

RECIPES: dict[str, Callable[[Path | None, str | None], Recipe | StagedRecipe]] = {
    "demo": demo,
    **{f"codegen-{size}": partial(codegen, size) for size in ("350M", "2B", "6B", "16B")},
    **{f"incoder-{size}": partial(incoder, size) for size in ("1B", "6B")},
}


def get_recipe(name: str, *, code: Path | None = None, license: str | None = None) -> Recipe | StagedRecipe:
    """The recipe of a name, or a chain of several. Raises ValueError that lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}: known are {', '.join(sorted(RECIPES))}")
    return RECIPES[name](code, license)
