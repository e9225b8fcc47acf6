"""Recipes: every number of each model, with its source. A name becomes a recipe here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from codekiln.errors import ConfigError
from codekiln.files import flatten, to_record
from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes import codegen, incoder, kiln, tiny
from codekiln.recipes.data import require_data
from codekiln.recipes.demo import demo

OURS = "Codekiln"  # the source of a number that no paper has
DATA = Path("DATA")  # where `describe` shows the data sets of a paper


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe in the list.

    `sources` names where the numbers of a field, or of all fields below it, come from. Names of fields may begin with the name
    of a stage, as in "multi: corpus.steps". `data_folders` are those with the data sets of its paper, if it can read them.
    """

    summary: str
    build: Callable[..., Recipe | StagedRecipe]
    sources: dict[str, str] = field(default_factory=dict)
    data_folders: tuple[str, ...] = ()


RECIPES: dict[str, NamedRecipe] = {
    "demo": NamedRecipe("1.4M parameters, trained in minutes on the Python packages of this machine", demo),
    "codegen-tiny": NamedRecipe(
        "the small twin of CodeGen: NL, Multi and Mono, in minutes on two cores",
        tiny.codegen_tiny,
        tiny.CODEGEN_SOURCES,
        codegen.DATA_FOLDERS,
    ),
    **{
        f"codegen-{size}": NamedRecipe(
            f"CodeGen {size} (Salesforce, 2022): NL, Multi and Mono",
            partial(codegen.codegen, size),
            codegen.SOURCES,
            codegen.DATA_FOLDERS,
        )
        for size in ("350M", "2B", "6B", "16B")
    },
    "incoder-tiny": NamedRecipe(
        "the small twin of InCoder: code and threads, in minutes on two cores",
        tiny.incoder_tiny,
        tiny.INCODER_SOURCES,
        incoder.DATA_FOLDERS,
    ),
    **{
        f"incoder-{size}": NamedRecipe(
            f"InCoder {size} (FAIR, 2022): completes and infills",
            partial(incoder.incoder, size),
            incoder.SOURCES,
            incoder.DATA_FOLDERS,
        )
        for size in ("1B", "6B")
    },
    **{
        f"kiln-{size}": NamedRecipe(
            f"the modern family, {size} parameters without embeddings: completes and infills",
            partial(kiln.kiln, size),
            kiln.SOURCES,
        )
        for size in kiln.SIZES
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
    if not entry.data_folders:
        raise ConfigError(f"the recipe {name} reads no data sets: leave out --data, or name a folder with --code")
    return entry.build(None, None, require_data(data, *entry.data_folders))


def describe(name: str) -> Iterator[tuple[str, object, str]]:
    """Every field of a recipe with its value and its source; the stages of a staged recipe one after the other.

    A recipe that can read the data sets of its paper is described with them, in the folder `DATA`.
    """
    entry = _lookup(name)
    recipe = entry.build(None, None, DATA) if entry.data_folders else entry.build(None, None)
    for stage in recipe.recipes if isinstance(recipe, StagedRecipe) else (recipe,):
        prefix = f"{stage.name}: " if isinstance(recipe, StagedRecipe) else ""
        for path, value in flatten(to_record(stage)):
            yield f"{prefix}{path}", value, _source_of(prefix, path, entry.sources)


def _source_of(prefix: str, path: str, sources: dict[str, str]) -> str:
    """The source of the field, or of the closest group of fields that has one, first of this stage."""
    parts = path.replace("[", ".[").split(".")
    groups = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    names = (name for group in groups for name in (f"{prefix}{group}", group))
    return next((sources[name] for name in names if name in sources), OURS)


def _lookup(name: str) -> NamedRecipe:
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}: choose from {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
