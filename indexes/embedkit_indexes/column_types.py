"""The types of metadata columns: which one holds all values of a key, and the arrays made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_LEVELS = 8
_SCALARS: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
# "long" is an integer of 64 bits that no float holds exactly, "huge" one beyond them: with fractions in one column they
# would lose digits, and equal their neighbours. Such a column is kept as JSON, where numbers are compared exactly.
_EXACT = 1 << 53
_ALLOWED: tuple[tuple[str, set[str]], ...] = (
    ("null", set()),
    ("bool", {"bool"}),
    ("int64", {"int", "long"}),
    ("float64", {"int", "float"}),
    ("string", {"str"}),
    ("list<string>", {"[]", "[str]"}),
    ("list<int64>", {"[]", "[int]", "[long]"}),
    ("list<float64>", {"[]", "[int]", "[float]"}),
)


@dataclass(slots=True)
class Key:
    """What is known of a key so far; `distinct` is None once a dictionary of its strings would be too large."""

    count: int = 0
    kinds: set[str] = field(default_factory=set)
    distinct: set[str] | None = field(default_factory=set)

    def type(self) -> str:
        """Return the column type that holds all values seen."""
        kinds = self.kinds - {"null"}
        for type, allowed in _ALLOWED:
            if kinds <= allowed:
                return "dictionary" if type == "string" and self.distinct is not None else type
        return "json"


def leaves(row: Mapping[str, Any], prefix: str = "", level: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; an object without keys is nothing, one too deep is a value."""
    for key, value in row.items():
        if isinstance(value, dict) and level < _LEVELS:
            yield from leaves(value, f"{prefix}{key}.", level + 1)
        else:
            yield prefix + key, value


def _kind_of(value: Any) -> tuple[str, Any]:
    """Return a value's kind, and the value as it can be stored."""
    kind = _SCALARS.get(type(value), "other")
    if kind == "float" and not math.isfinite(value):
        return "null", None
    if kind == "int":
        return _integer(value)
    if isinstance(value, list):
        kinds, items = kinds_of(value)
        return _list_kind(kinds - {"null"}), items
    return kind, value


def _integer(value: int) -> tuple[str, Any]:
    small = -(1 << 63) <= value < 1 << 63
    try:
        exact = int(float(value)) == value
    except OverflowError:
        return "null", None
    if small:
        return "int" if exact else "long", value
    return "float" if exact else "huge", value


def kinds_of(values: list[Any]) -> tuple[set[str], list[Any]]:
    """Return the kinds among the values, and the values as they can be stored."""
    kinds = {_SCALARS.get(t, "other") for t in set(map(type, values))}
    if kinds <= {"null", "bool", "str"} or _plain_numbers(kinds, values):
        return kinds, values
    pairs = [_kind_of(v) for v in values]
    return {k for k, _ in pairs}, [v for _, v in pairs]


def _plain_numbers(kinds: set[str], values: list[Any]) -> bool:
    """Say whether they are all integers that a float holds, or all finite floats: most are, and need no look at each."""
    if kinds == {"int"}:
        return all(-_EXACT <= bound <= _EXACT for bound in (min(values), max(values)))
    return kinds == {"float"} and all(map(math.isfinite, values))


def _list_kind(kinds: set[str]) -> str:
    if not kinds:
        return "[]"
    if kinds <= {"int", "long"}:
        return "[long]" if "long" in kinds else "[int]"
    if kinds <= {"int", "float"}:
        return "[float]"
    return "[str]" if kinds == {"str"} else "other"


class ColumnBuilder:
    """Make the arrays of one column."""

    def __init__(self, name: str, key: Key) -> None:
        import pyarrow as pa

        self._kind = key.type()
        self._arrays: list[Any] = []
        self._codes: dict[str, int] = {}
        types = {
            "null": pa.null(),
            "bool": pa.bool_(),
            "int64": pa.int64(),
            "float64": pa.float64(),
            "string": pa.string(),
            "dictionary": pa.dictionary(pa.int16(), pa.string()),
            "list<string>": pa.list_(pa.string()),
            "list<int64>": pa.list_(pa.int64()),
            "list<float64>": pa.list_(pa.float64()),
            "json": pa.binary(),
        }
        self._type = types[self._kind]
        if self._kind == "dictionary":
            words = sorted(key.distinct or ())
            self._words = pa.array(words, pa.string())
            self._codes = {word: i for i, word in enumerate(words)}
        metadata = {"embedkit": "json"} if self._kind == "json" else None
        self.field = pa.field(name, self._type, metadata=metadata)

    def add(self, rows: int, places: list[int] | None, values: list[Any]) -> None:
        """Append a window: `values` stand at `places`, or in all rows where that is None."""
        import pyarrow as pa

        stored = values
        if self._kind in ("dictionary", "json", "float64", "list<float64>"):
            stored = [None if v is None else self._stored(v) for v in values]
        if places is not None:
            spread = [None] * rows
            for place, value in zip(places, stored, strict=True):
                spread[place] = value
            stored = spread
        type = pa.int16() if self._kind == "dictionary" else self._type
        array = pa.array(stored, type)
        if self._kind == "dictionary":
            array = pa.DictionaryArray.from_arrays(array, self._words)
        self._arrays.append(array)

    def _stored(self, value: Any) -> Any:
        if self._kind == "dictionary":
            return self._codes[value]
        if self._kind == "json":
            return json.dumps(value).encode()
        # Arrow refuses to round a large integer to a float by itself.
        if self._kind == "float64":
            return float(value)
        if self._kind == "list<float64>":
            return [None if v is None else float(v) for v in value]
        return value

    def take(self) -> Any:
        """Return what was added since the last call as one array."""
        import pyarrow as pa

        arrays, self._arrays = self._arrays, []
        return pa.concat_arrays(arrays)
