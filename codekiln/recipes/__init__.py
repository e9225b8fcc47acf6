"""Everything that decides what a model becomes, number by number. A name becomes a recipe here."""

from pathlib import Path

from codekiln.recipe import Recipe
from codekiln.recipes.demo import demo

RECIPES = {"demo": demo}


def named(name: str, *, code: Path | None = None, license: str | None = None) -> Recipe:
    """The recipe of a name. Raises ValueError that lists the known ones."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}: known are {', '.join(sorted(RECIPES))}")
    return RECIPES[name](code, license)
