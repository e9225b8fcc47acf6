"""Comparison of runs: curves, totals, and the fields in which their recipes differ. Needs no PyTorch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codekiln.errors import ConfigError
from codekiln.files import JsonObject, flatten
from codekiln.folders import require_replaceable_file
from codekiln.metrics_log import METRICS_FILE, MetricsRow, read_metrics, summarize
from codekiln.model.configs import config_from_record
from codekiln.report.charts import is_written_by_codekiln, training_charts, write_page
from codekiln.runs import RECIPE_FILE, read_recipe

MISSING = "–"


@dataclass(frozen=True)
class Run:
    """The records of a run, which may be running, interrupted or finished. `rows` are its steps, at least one."""

    name: str
    recipe: JsonObject
    rows: list[MetricsRow]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, named by the folder, or by its path if two folders have the same name.

    Raises ConfigError for a folder that is not a run, has not trained a step, or is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = []
    for k, folder in enumerate(folders):
        if resolved[k] in resolved[:k]:
            raise ConfigError(f"{folder} is named twice: name each run once")
        if not (folder / RECIPE_FILE).is_file():
            runs_in = sorted(str(path.parent) for path in folder.glob("*/recipe.json"))
            instead = (
                f"name the runs in it: {', '.join(runs_in)}" if runs_in else "name a folder that `codekiln train` made"
            )
            raise ConfigError(f"{folder} is not a run directory ({RECIPE_FILE} is missing): {instead}")
        rows = read_metrics(folder / METRICS_FILE)
        if not rows:
            raise ConfigError(f"{folder} has no metrics yet: wait for its first training step, or leave it out")
        runs.append(Run(names[k], read_recipe(folder), rows))
    return runs


def compare_runs(runs: Sequence[Run]) -> JsonObject:
    """The comparison as JSON: the totals of each run, and by dotted path the recipe fields that differ."""
    return {
        "runs": {
            run.name: {"parameters": config_from_record(run.recipe["model"]).n_parameters} | summarize(run.rows)
            for run in runs
        },
        "recipe": _differing_fields({run.name: dict(flatten(run.recipe)) for run in runs}),
    }


def totals_table(comparison: JsonObject) -> list[list[str]]:
    """The totals as text: a heading and one row per run."""
    heading = ["run", "parameters", "tokens", "steps", "seconds", "tokens/s", "of peak", "bits/byte"]
    return [heading] + [
        [
            name,
            *(f"{entry[key]:,}" for key in ("parameters", "tokens", "steps")),
            f"{entry['seconds']:,.1f}",
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['matmul_efficiency']:.0%}",
            MISSING if entry["validation_bits_per_byte"] is None else f"{entry['validation_bits_per_byte']:.3f}",
        ]
        for name, entry in comparison["runs"].items()
    ]


def recipe_table(comparison: JsonObject) -> list[list[str]]:
    """The differing fields as text: a heading and one row per field."""
    names = list(comparison["runs"])
    return [["field", *names]] + [
        [field, *(json.dumps(values[name], ensure_ascii=False) if name in values else MISSING for name in names)]
        for field, values in comparison["recipe"].items()
    ]


def write_comparison(runs: Sequence[Run], path: Path, *, force: bool = False) -> None:
    """Writes a page that compares the runs: one file that loads nothing from the network.

    Raises OutputExistsError if `path` is a file that Codekiln did not write, unless `force` is set.
    """
    require_replaceable_file(path, is_ours=is_written_by_codekiln(path), force=force)
    comparison = compare_runs(runs)
    write_page(
        path,
        "comparison.html.jinja",
        title=", ".join(comparison["runs"]),
        totals=totals_table(comparison),
        recipe=recipe_table(comparison),
        charts=training_charts({run.name: run.rows for run in runs}),
    )


def _differing_fields(recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By field, the values of the runs that have it, if they differ or a run does not have it."""
    fields = dict.fromkeys(field for recipe in recipes.values() for field in recipe)
    values = {f: {name: recipe[f] for name, recipe in recipes.items() if f in recipe} for f in fields}
    return {
        field: found
        for field, found in values.items()
        if len(found) < len(recipes) or len({json.dumps(value) for value in found.values()}) > 1
    }
