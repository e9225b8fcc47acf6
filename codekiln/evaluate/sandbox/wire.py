"""Values as data, for JSON: exact base types only, so that nothing received has behavior of its own.

JSON's own types are themselves, except dictionaries: an object of JSON has one item, a tag with its content.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from types import GeneratorType
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 100_000  # of an iterator; a list may have as many as fit into a message
SMALL = 2**63

Encode = Callable[[Any], object]


class WireError(Exception):
    """A value that is no data, is too deep or too long; or something received that is no encoded value."""


def encode(value: Any, other: Encode, *, strict: bool = False, depth: int = 0) -> object:
    """A value for JSON. `other` encodes all other values. Raises WireError.

    Subclasses are reduced to the value of their base type, or passed to `other` if `strict`.
    """
    kind: type[Any] = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -SMALL <= value < SMALL else {"i": hex(value)}
    if depth > MAX_DEPTH:
        raise WireError(f"a value is nested more than {MAX_DEPTH} times")
    if kind in EXACT:
        return EXACT[kind](value, lambda item: encode(item, other, strict=strict, depth=depth + 1))
    if not strict:
        for base, reduce in REDUCTIONS:
            if isinstance(value, base):
                return encode(reduce(value), other, depth=depth)
        if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
            return encode(value.item(), other, depth=depth + 1)  # a scalar
    return other(value)


def items_of(iterator: Iterator[Any], encode_item: Encode) -> list[object]:
    encoded = [encode_item(item) for item in islice(iterator, MAX_ITEMS + 1)]
    if len(encoded) > MAX_ITEMS:
        raise WireError(f"an iterator has more than {MAX_ITEMS} items")
    return encoded


ITERATORS: tuple[type[Any], ...] = (
    GeneratorType,
    map,
    filter,
    zip,
    enumerate,
    reversed,
    islice,
    type({}.values()),
    type({}.items()),
    type(iter([])),
    type(iter(())),
    type(iter({})),
    type(iter({}.values())),
    type(iter({}.items())),
    type(iter(set())),
    type(iter("")),
    type(iter(range(0))),
    type(reversed([])),
)

EXACT: dict[type, Callable[[Any, Encode], object]] = {
    list: lambda value, item: [item(part) for part in value],
    tuple: lambda value, item: {"t": [item(part) for part in value]},
    dict: lambda value, item: {"d": [[item(key), item(part)] for key, part in value.items()]},
    set: lambda value, item: {"s": [item(part) for part in value]},
    frozenset: lambda value, item: {"f": [item(part) for part in value]},
    bytes: lambda value, _: {"b": value.hex()},
    bytearray: lambda value, _: {"a": value.hex()},
    complex: lambda value, _: {"c": [value.real, value.imag]},
    range: lambda value, item: {"r": [item(value.start), item(value.stop), item(value.step)]},
    Decimal: lambda value, _: {"D": str(value)},
    Fraction: lambda value, _: {"F": [hex(value.numerator), hex(value.denominator)]},
    type({}.keys()): lambda value, item: {"k": [item(part) for part in value]},
} | {
    iterator: lambda value, item: {"g": items_of(iter(value), item)}
    for iterator in ITERATORS
}  # fmt: skip

REDUCTIONS: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (int, lambda value: int.__add__(value, 0)),
    (float, lambda value: float.__mul__(value, 1.0)),
    (str, str.__str__),
    (list, lambda value: [*list.__iter__(value)]),
    (tuple, lambda value: (*tuple.__iter__(value),)),
    (dict, lambda value: {key: dict.__getitem__(value, key) for key in dict.__iter__(value)}),
    (set, lambda value: {*set.__iter__(value)}),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
)


def decode(data: object, other: Callable[[object], object]) -> Any:
    """The value of what `encode` made. `other` decodes what `encode`'s `other` made. Raises WireError."""
    try:
        return _decode(data, other)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise WireError(f"no encoded value: {type(error).__name__}") from None


def _decode(data: object, other: Callable[[object], object]) -> Any:
    if isinstance(data, list):
        return [_decode(item, other) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in SIMPLE:
        return SIMPLE[tag](content)
    if tag == "d":
        return {_decode(key, other): _decode(value, other) for key, value in content}
    if tag in CONTAINERS:
        return CONTAINERS[tag]([_decode(item, other) for item in content])
    return other(data)


SIMPLE: dict[str, Callable[[Any], object]] = {
    "i": lambda content: int(content, 16),
    "b": bytes.fromhex,
    "a": bytearray.fromhex,
    "c": lambda content: complex(*map(float, content)),
    "D": Decimal,
    "F": lambda content: Fraction(int(content[0], 16), int(content[1], 16)),
}
CONTAINERS: dict[str, Callable[[list[Any]], object]] = {
    "t": tuple,
    "s": set,
    "f": frozenset,
    "r": lambda items: range(*items),
    "k": lambda items: dict.fromkeys(items).keys(),
    "g": iter,
}
