"""Runs beside each other: their curves, what they came to, and where their recipes differ."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codekiln.files import JsonObject, read_json
from codekiln.folders import require_replaceable_file
from codekiln.model.configs import config_from_record
from codekiln.report.charts import is_written_by_codekiln, training_charts, write_page
from codekiln.train.metrics import read_metrics, summarize

MISSING = "–"


@dataclass(frozen=True)
class Run:
    """A run as its records tell it, at work, interrupted or finished. `rows` are its metrics, one for each step, never none."""

    name: str
    recipe: JsonObject
    rows: list[JsonObject]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, named by the folder, or by its path where two folders have one name.

    Raises ValueError for a folder that is no run, has not trained a step, or is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    runs = []
    for k, folder in enumerate(folders):
        if resolved[k] in resolved[:k]:
            raise ValueError(f"{folder} is named twice: name each run once")
        if not (folder / "recipe.json").is_file():
            runs_in = sorted(str(path.parent) for path in folder.glob("*/recipe.json"))
            instead = (
                f"name those in it: {', '.join(runs_in)}" if runs_in else "name a folder that `codekiln build` made"
            )
            raise ValueError(f"{folder} is no run (recipe.json is missing): {instead}")
        rows = read_metrics(folder / "metrics.jsonl")
        if not rows:
            raise ValueError(f"{folder} has no metrics yet: wait for its first step of training, or leave it out")
        runs.append(Run(names[k], read_json(folder / "recipe.json"), rows))
    return runs


def compare_runs(runs: Sequence[Run]) -> JsonObject:
    """What a comparison says, as plain JSON: each run's totals, and by dotted path the fields in which the recipes differ."""
    return {
        "runs": {
            run.name: {"parameters": config_from_record(run.recipe["model"]).n_parameters} | summarize(run.rows)
            for run in runs
        },
        "recipe": _differing_fields({run.name: dict(_fields(run.recipe)) for run in runs}),
    }


def totals_table(comparison: JsonObject) -> list[list[str]]:
    """The totals as text, a heading and one row for each run."""
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
    """The differing fields as text, a heading and one row for each field."""
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
        summarize=totals_table(comparison),
        recipe=recipe_table(comparison),
        charts=training_charts({run.name: run.rows for run in runs}),
    )


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a record by their dotted paths; a list of plain values is one leaf."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from _fields(item, f"{path}[{i}]")
    else:
        yield path, value


def _differing_fields(recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By field, the values of the runs that have it, where they are not all equal or not all there."""
    fields = dict.fromkeys(field for recipe in recipes.values() for field in recipe)
    values = {f: {name: recipe[f] for name, recipe in recipes.items() if f in recipe} for f in fields}
    return {
        field: found
        for field, found in values.items()
        if len(found) < len(recipes) or len({json.dumps(value) for value in found.values()}) > 1
    }
