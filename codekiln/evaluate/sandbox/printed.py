"""The corrected comparison of a value that a program of MTPB printed with the expected one, in the evaluator."""

import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from codekiln.evaluate.sandbox.wire import WireError, decode

TOLERANCE = 1e-6  # of the published checker, absolute


class Text(str):
    """The text of an object that is no data, such as a date."""


def is_printed_equal(encoded: object, expected: Any) -> bool:
    """Whether a captured value is the expected one.

    - None equals only None, a boolean only a boolean.
    - Numbers are compared with a tolerance of 1e-6 if one of them is a float; 7.0 is 7, and 7.9 is not.
    - A string equals only the same string. Objects that are no data, such as dates, are compared as text.
    - Lists, tuples, ranges, arrays, series and iterators are compared item by item, to any depth. Sets have no order.
    - Dictionaries are compared by their keys as JSON writes them, because expected values are JSON: 1 is "1".
    """
    try:
        return _is_equal(decode(encoded, _text), expected)
    except WireError:
        return False


def _text(data: object) -> Text:
    assert isinstance(data, dict)
    return Text(data["x"])


def _is_equal(value: Any, expected: Any) -> bool:
    if expected is None or value is None or isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if isinstance(value, Decimal | Fraction):
        return isinstance(expected, int | float) and _is_close(_as_float(value), expected)
    if isinstance(expected, int | float):
        return isinstance(value, int | float) and _is_close(value, expected)
    if isinstance(expected, str):
        return isinstance(value, str) and str(value) == expected
    if isinstance(expected, list):
        if isinstance(value, set | frozenset):
            return _is_same_set(list(value), expected)
        if isinstance(value, str | bytes | dict | int | float | complex) or not hasattr(value, "__iter__"):
            return False
        if isinstance(value, range) and value[len(expected) :]:  # longer, perhaps too long for a list
            return False
        items = list(value)
        return len(items) == len(expected) and all(map(_is_equal, items, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        named = {_json_key(key): item for key, item in value.items()}
        return named.keys() == expected.keys() and all(_is_equal(named[key], item) for key, item in expected.items())
    return False


def _is_same_set(items: list[Any], expected: list[Any]) -> bool:
    """Whether each item has an equal one in `expected`, and the other way around."""
    return (
        len(items) == len(expected)
        and all(any(_is_equal(item, other) for other in expected) for item in items)
        and all(any(_is_equal(item, other) for item in items) for other in expected)
    )


def _is_close(value: float, expected: float) -> bool:
    if isinstance(value, int) and isinstance(expected, int):
        return value == expected
    try:
        value, expected = float(value), float(expected)
    except OverflowError:
        return False
    return value == expected or abs(value - expected) < TOLERANCE or (math.isnan(value) and math.isnan(expected))


def _as_float(value: Decimal | Fraction) -> float:
    try:
        return float(value)
    except (OverflowError, ValueError):
        return math.nan


def _json_key(key: object) -> str:
    return key if isinstance(key, str) else json.dumps(key, default=str)
