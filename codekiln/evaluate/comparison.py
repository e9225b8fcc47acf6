"""Paired differences between the results of two evaluations."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from codekiln.evaluate.evaluation import RESULTS
from codekiln.evaluate.metrics import Difference, Predictions, paired_difference, paired_precision_recall
from codekiln.files import JsonObject, read_json


def read_results(folder: Path) -> JsonObject:
    """The results of an evaluation, by benchmark. Raises MissingFileError or InvalidFileError that names the file."""
    found: JsonObject = read_json(folder / RESULTS).get("benchmarks", {})
    return found


def compare_results(benchmarks: JsonObject, other: JsonObject) -> JsonObject:
    """The paired difference of each metric that both results have, by benchmark and metric."""
    return {
        name: {metric: asdict(each) for metric, each in sorted(_differences(found, other[name]).items())}
        for name, found in benchmarks.items()
        if name in other
    }


def _differences(first: JsonObject, second: JsonObject) -> dict[str, Difference]:
    """The differences of one benchmark. Precision, recall and F1 are ratios, which no problem has alone."""
    groups: Mapping[str, str] = {name: name for scores in first["scores"].values() for name in scores} | first["groups"]
    shared = first["scores"].keys() & second["scores"].keys()
    found: dict[str, Difference] = {}
    if {"predicted", "correct"} <= shared:
        shared -= {"predicted", "correct"}
        pair = [Predictions(each["scores"]["predicted"], each["scores"]["correct"]) for each in (first, second)]
        found |= paired_precision_recall(pair[0], pair[1], groups)
    return found | {
        metric: paired_difference(first["scores"][metric], second["scores"][metric], groups) for metric in shared
    }
