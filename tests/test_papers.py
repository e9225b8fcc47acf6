"""docs/papers.md: its table has no empty cell, and names fields, values, lines of recipes and tests that exist."""

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from codekiln.recipe import Recipe, StagedRecipe
from codekiln.recipes import RECIPES, get_recipe, papers
from tests.command import assert_refused, codekiln
from tests.small import ROOT

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
COLUMNS = 7
# The lines of the published cards, and what else the papers state.
LINES = {
    "CodeGen": {
        "Publisher", "Model size", "ThePile", "BigQuery", "BigPython", "De-duplication", "Filter: extension",
        "Filter: mean line", "Filter: longest line", "Filter: digits", "Tokenizer", "Language prefix", "Optimizer, betas",
        "Eps", "Batch size", "Context window", "Gradient accumulation", "Warm-up", "Learning rate", "Weight decay",
        "Schedule", "Precision", "Training strategy", "Tokens and steps", "Hardware", "Time",
    },
    "InCoder": {
        "Publisher", "Model size", "Permissive code", "StackOverflow", "GitHub and GitLab", "BigQuery", "De-duplication",
        "Filter: longest line", "Filter: mean line", "Filter: alphanumeric", "Filter: generated files", "Tokenizer",
        "Optimizer, betas", "Context window", "Warm-up", "Schedule", "Initialization", "Training strategy",
        "Tokens and steps", "Hardware", "Time",
    },
}  # fmt: skip


def rows_of(system: str) -> list[list[str]]:
    """The cells of each row in the table of a system, as they are on the page."""
    section = re.split("\n##+ ", PAGE.split(f"\n## {system}\n")[1])[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


ROWS = [(system, cells) for system in LINES for cells in rows_of(system)]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Recipe]:
    """The recipes of both papers that read data sets, by their name and their stage."""
    data = tmp_path_factory.mktemp("data")
    found: dict[tuple[str, str], Recipe] = {}
    for name in (name for name, entry in RECIPES.items() if entry.data_folders):
        for folder in RECIPES[name].data_folders:
            (data / folder).mkdir(exist_ok=True)
        recipe = get_recipe(name, data=data)
        if isinstance(recipe, StagedRecipe):
            found |= {(name, stage.name): stage for stage in recipe.recipes}
        else:
            found[name, ""] = recipe
    return found


def value_at(recipe: Any, path: str) -> Any:
    """The value of a field as JSON has it, found by attributes."""
    value = recipe
    for part in path.replace("[", ".").replace("]", "").split("."):
        if part.isdigit():
            value = value[int(part)]
        elif part == "kind":
            value = type(value).__name__
        else:
            value = getattr(value, part)
    if isinstance(value, frozenset):
        return sorted(value)
    assert not dataclasses.is_dataclass(value), path
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("system", LINES)
def test_every_line_of_the_published_cards_is_there(system: str) -> None:
    names = [cells[0] for cells in rows_of(system)]
    assert LINES[system] <= set(names) and len(names) == len(set(names))


@pytest.mark.parametrize(("system", "cells"), ROWS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_line_names_what_exists(system: str, cells: list[str], stages: dict[tuple[str, str], Recipe]) -> None:
    assert len(cells) == COLUMNS and all(cells), cells
    _, _, _, sets, difference, code, test = cells
    recipes = next(papers.recipe_names(each) for each in papers.SYSTEMS if each.title == system)
    named = re.findall(r"(?:^|<br>)(?:(\S+) )?`([^`]+)` = `([^`]*)`", sets)
    assert bool(named) == (sets != "no field") and len(named) == len(sets.split("<br>")) * bool(named)
    for only, field, value in named:
        stage, _, path = field.rpartition(": ")
        for recipe in [only] if only else recipes:
            assert value_at(stages[recipe, stage], path) == json.loads(value), (recipe, field)
    if named:
        link = re.fullmatch(r"\[(.+)\]\(\.\./(.+)\): `(.+)`", code)
        assert link is not None, code
        assert link[3] in (ROOT / link[2]).read_text(encoding="utf-8") and link[2].endswith(link[1])
    else:
        assert difference != "none", "a line that no recipe sets states how Codekiln differs"
    link = re.fullmatch(r"\[(test_\w+)\]\(\.\./(tests/test_\w+\.py)\)", test)
    assert link is not None, test
    tree = ast.parse((ROOT / link[2]).read_text(encoding="utf-8"))
    assert link[1] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_sizes_that_differ_are_all_listed() -> None:
    learning_rates = next(cells[3] for cells in rows_of("CodeGen") if cells[0] == "Learning rate")
    assert learning_rates.count("codekiln") == 0 and learning_rates.count("codegen-") == 4 * 3
    assert "codegen-2B `nl: train.optimizer.lr` = `0.00016`" in learning_rates


def test_page_is_that_of_the_data() -> None:
    assert papers.render_page() == PAGE, "write it again: python docs/write_pages.py"


def test_card_prints_the_lines_of_one_size() -> None:
    done = codekiln("recipes", "show", "codegen-6B", "--card", "--json")
    assert done.returncode == 0, done.stderr
    lines = {row["line"]: row for row in json.loads(done.stdout)}
    assert set(lines) == {cells[0] for cells in rows_of("CodeGen")}
    assert lines["Learning rate"]["values"] == {
        "nl: train.optimizer.lr": 1.2e-4, "multi: train.optimizer.lr": 0.4e-4, "mono: train.optimizer.lr": 0.4e-4,
    }  # fmt: skip
    assert lines["Learning rate"]["stated"].startswith("1.2e-4 NL")
    table = codekiln("recipes", "show", "incoder-6B", "--card").stdout
    assert "24 days" in table and "train.optimizer.betas = [0.9, 0.98]" in table and "no field" in table
    assert_refused(codekiln("recipes", "show", "demo", "--card"), "no paper has the recipe demo", "incoder-6B")


def test_fields_of_a_recipe_are_shown_with_the_data_sets_of_its_paper() -> None:
    fields = {row["field"]: row for row in json.loads(codekiln("recipes", "show", "codegen-2B", "--json").stdout)}
    assert fields["nl: corpus.sources[0].paths"]["value"] == [str(Path("DATA") / "pile")]
    assert fields["mono: corpus.sources[0].languages"]["source"].startswith("section 2.1: BigPython")
    assert fields["multi: train.initialization"] == {
        "field": "multi: train.initialization", "value": "jaxformer", "source": "jaxformer: modules.py",
    }  # fmt: skip
    assert fields["nl: train.seed"]["source"] == "Codekiln"
