"""Recipes: every number of each model, with its source. A name becomes a recipe here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from codekiln.errors import ConfigError
from codekiln.files import flatten, to_record
from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes import codegen, incoder
from codekiln.recipes.demo import demo

OURS = "Codekiln"  # the source of a number that no paper has


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe in the list. `sources` names where the numbers of a field, or of all fields below it, come from."""

    summary: str
    build: Callable[..., Recipe | StagedRecipe]
    sources: dict[str, str] = field(default_factory=dict)
    has_data: bool = False  # whether it can read the data sets of its paper


RECIPES: dict[str, NamedRecipe] = {
    "demo": NamedRecipe("1M parameters, trained in minutes on the Python packages of this machine", demo),
    **{
        f"codegen-{size}": NamedRecipe(
            f"CodeGen {size} (Salesforce, 2022): NL, Multi and Mono",
            partial(codegen.codegen, size),
            codegen.SOURCES,
            True,
        )
        for size in ("350M", "2B", "6B", "16B")
    },
    **{
        f"incoder-{size}": NamedRecipe(
            f"InCoder {size} (FAIR, 2022): completes and infills", partial(incoder.incoder, size), incoder.SOURCES, True
        )
        for size in ("1B", "6B")
    },
}


def get_recipe(
    name: str, *, code: Path | None = None, license: str | None = None, data: Path | None = None
) -> Recipe | StagedRecipe:
    """The recipe of a name, reading data sets, a folder of code, or the installed packages.

    Raises ConfigError with the known names, or if the recipe reads no data sets.
    """
    entry = _lookup(name)
    if data is None:
        return entry.build(code, license)
    if not entry.has_data:
        raise ConfigError(f"the recipe {name} reads no data sets: leave out --data, or name a folder with --code")
    return entry.build(None, None, data)


def describe(name: str) -> Iterator[tuple[str, object, str]]:
    """Every field of a recipe with its value and its source; the stages of a staged recipe one after the other."""
    entry = _lookup(name)
    recipe = entry.build(None, None)
    for stage in recipe.recipes if isinstance(recipe, StagedRecipe) else (recipe,):
        prefix = f"{stage.name}: " if isinstance(recipe, StagedRecipe) else ""
        for path, value in flatten(to_record(stage)):
            yield f"{prefix}{path}", value, _source_of(path, entry.sources)


def _source_of(path: str, sources: dict[str, str]) -> str:
    """The source of the field, or of the closest group of fields that has one."""
    parts = path.replace("[", ".[").split(".")
    groups = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((sources[group] for group in groups if group in sources), OURS)


def _lookup(name: str) -> NamedRecipe:
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: choose from {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
