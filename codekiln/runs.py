"""A run directory: its recipe, its stage records and its lock. Needs no engine, so that reports read runs with it."""

from pathlib import Path
from types import NoneType
from typing import Any, TypedDict

from codekiln.errors import ConfigError, CorruptFileError, InvalidFileError, MissingFileError
from codekiln.files import JsonObject, first_difference, read_record, sha256_of, write_record

RECIPE_FILE = "recipe.json"
FORMAT = 1  # of recipe.json and of stage records
# The stages in their order, each with the file that it writes last.
STAGE_OUTPUTS = {
    "corpus": "corpus/manifest.json",
    "tokenizer": "tokenizer.json",
    "tokens": "tokens/manifest.json",
    "index": "index/manifest.json",
    "train": "model/config.json",
    "evaluation": None,
    "recall": "recall/gate.safetensors",
    "functions": None,
}
STAGE_NAMES = tuple(STAGE_OUTPUTS)


class StageRecord(TypedDict):
    """The record of a finished stage."""

    format: int
    inputs: JsonObject  # what the stage was made from: its configuration, and checksums of what it read
    seconds: float
    result: Any
    output_sha256: str | None  # of the stage's output file


def read_recipe(run: Path) -> JsonObject:
    """The record of a run's recipe. Raises InvalidFileError for another format."""
    return _read(run / RECIPE_FILE)


def write_recipe(run: Path, recipe: JsonObject) -> None:
    """Writes recipe.json."""
    write_record(run / RECIPE_FILE, {"format": FORMAT} | recipe)


def require_same_recipe(run: Path, recipe: JsonObject) -> None:
    """Raises ConfigError that names the first field in which the run's recipe differs."""
    if not (run / RECIPE_FILE).is_file():
        return
    if difference := first_difference(read_recipe(run), {"format": FORMAT} | recipe):
        raise ConfigError(f"{run} belongs to another recipe ({difference}): use the same recipe, or another --out")


def read_stage_record(run: Path, name: str) -> StageRecord:
    """The record of a finished stage. Raises MissingFileError if it is not finished."""
    path = stage_path(run, name)
    if not path.is_file():
        raise MissingFileError(f"{run} has no finished stage {name}: run `codekiln train` on it to the end")
    record = _read(path)
    kinds: dict[str, type | tuple[type, ...]] = {"inputs": dict, "seconds": (int, float), "result": dict}
    kinds["output_sha256"] = (str, NoneType)
    if damaged := [key for key, kind in kinds.items() if key not in record or not isinstance(record[key], kind)]:
        raise InvalidFileError(f"{path} is damaged (field {damaged[0]}): remove it, then run the same command again")
    return record  # type: ignore[return-value] # checked above


def write_stage_record(
    run: Path, name: str, *, inputs: JsonObject, seconds: float, result: JsonObject, output_sha256: str | None
) -> None:
    """Writes the record of a stage, which is the last thing that it does."""
    record = {
        "format": FORMAT,
        "inputs": inputs,
        "seconds": round(seconds, 2),
        "result": result,
        "output_sha256": output_sha256,
    }
    write_record(stage_path(run, name), record)


def require_stage_output(run: Path, name: str, output: Path) -> None:
    """Raises CorruptFileError if the output file of a finished stage is not the one that it wrote."""
    if not output.is_file():
        raise MissingFileError(f"{output} is missing, which the stage {name} wrote: run the same command again")
    if sha256_of(output) != read_stage_record(run, name)["output_sha256"]:
        raise CorruptFileError(
            f"{output} is not the file that the stage {name} wrote: "
            f"restore it, or remove {stage_path(run, name)} to run that stage again"
        )


def stage_path(run: Path, name: str) -> Path:
    """Where the record of a stage is."""
    return run / "stages" / f"{name}.json"


def _read(path: Path) -> JsonObject:
    record = read_record(path)
    if record.get("format") != FORMAT:
        raise InvalidFileError(
            f"{path} is damaged or of another version of Codekiln (format {FORMAT} is needed): "
            "use the version that made the run, or another --out"
        )
    return record
