"""`--set field=value`: overrides of single fields of a recipe, for experiments."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints, overload

from codekiln.errors import ConfigError
from codekiln.files import JsonObject, to_record
from codekiln.recipe import Recipe, StagedRecipe


@overload
def apply_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe: ...


@overload
def apply_overrides(recipe: StagedRecipe, settings: Sequence[str]) -> StagedRecipe: ...


def apply_overrides(recipe: Recipe | StagedRecipe, settings: Sequence[str]) -> Recipe | StagedRecipe:
    """The recipe with settings like `train.total_tokens=100000`, applied together; to a staged recipe, in every stage.

    Raises ConfigError that names an unknown field, a value of another type, or values that do not fit together.
    """
    changes = _parse(settings)
    if isinstance(recipe, StagedRecipe):
        return dataclasses.replace(recipe, recipes=tuple(_apply(stage, changes, "") for stage in recipe.recipes))
    changed: Recipe = _apply(recipe, changes, "")
    return changed


def _parse(settings: Sequence[str]) -> JsonObject:
    """Nested dictionaries of texts: `a.b=c` becomes {"a": {"b": "c"}}."""
    changes: JsonObject = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write field=value, for example train.total_tokens=100000")
        *groups, last = path.split(".")
        inner = changes
        for name in groups:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {setting}: conflicts with an earlier --set {name}")
        inner[last] = text
    return changes


def _apply(value: Any, changes: JsonObject, prefix: str) -> Any:
    """A dataclass with the changes applied to its fields, and to theirs."""
    known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    hints = get_type_hints(type(value))
    changed = {}
    for name, change in changes.items():
        if name not in known:
            raise ConfigError(f"--set {prefix}{name}: unknown field; choose from {', '.join(known)}")
        old = known[name]
        if isinstance(change, dict):
            if not dataclasses.is_dataclass(old):
                raise ConfigError(f"--set {prefix}{name}: it is not a group of fields")
            changed[name] = _apply(old, change, f"{prefix}{name}.")
        elif get_origin(hints[name]) is Literal:
            if change not in get_args(hints[name]):
                raise ConfigError(
                    f"--set {prefix}{name}={change}: choose from {', '.join(map(str, get_args(hints[name])))}"
                )
            changed[name] = change
        else:
            example = old if old is not None else _default_for(hints[name])
            changed[name] = _parse_value(change, example, prefix + name)
    return dataclasses.replace(value, **changed)


def _default_for(hint: Any) -> Any:
    """A value of the type of a field that is None now; None if that is not a number."""
    return next((example for example in (0, 0.0) if type(example) in get_args(hint)), None)


def _parse_value(text: str, example: Any, name: str) -> Any:
    """The text as a value of the example's type."""
    if example is None:
        raise ConfigError(
            f"--set {name}={text}: this field cannot be set on the command line; write a recipe in Python"
        )
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = text
    if isinstance(example, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(example, tuple) and isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(example):
        raise ConfigError(
            f"--set {name}={text}: must be of type {type(example).__name__}, for example {json.dumps(to_record(example))}"
        )
    return value
