"""From plain tables to frozen dataclasses, strictly: every unknown key and wrong type is found, none is guessed.

Problems are collected, not raised, so that a person mends a file once and not one line a run.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

from embedkit.errors import InputError

T = TypeVar("T")

#: What a file writes for None: TOML has no null.
NONE = "none"
#: What arrays can still add one to.
_LARGEST = 2**62
_NAMES = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


class _Wrong(Exception):
    """Carry what a value should have been."""


def build(cls: type[T], table: Mapping[str, Any], problems: list[str], path: str = "") -> T:
    """Return `cls` from a table of plain values; append to `problems` one line for each thing wrong.

    A wrong value is replaced by the field's default, so that the rest is checked as well. Whole numbers pass as
    floats, lists as tuples, `"none"` as None; nothing else is converted. `path` is the key path of `table`.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = join(path, key)
        if key not in known:
            problems.append(f"{where} is unknown: {suggest(key, known)}")
            continue
        try:
            values[key] = _convert(hints[key], value, problems, where)
        except _Wrong as wrong:
            problems.append(f"{where} = {_shown(value)} is {_kind(value)}: give {wrong}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in values:
            problems.append(f"{join(path, name)} is missing: add it")
            values[name] = None
    try:
        return cls(**values)
    except InputError as e:  # a record that checks itself, such as Template
        problems.append(f"{path}: {e}")
        return cls()


def join(path: str, key: str) -> str:
    """Return the key path of `key` inside `path`."""
    return f"{path}.{key}" if path else key


def suggest(key: str, known: typing.Iterable[str]) -> str:
    """Return advice for an unknown key: the nearest ones, else all."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"


def _convert(hint: Any, value: Any, problems: list[str], where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(options, value, problems, where)
    if origin is Literal:
        if isinstance(value, str) and value not in options:
            near = difflib.get_close_matches(value, options, n=1)
            raise _Wrong(f"one of {', '.join(options)}" + (f" (did you mean {near[0]}?)" if near else ""))
        if value not in options:
            raise _Wrong(f"one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        return _convert_tuple(options, value, problems, where)
    if origin is dict:
        return _convert_table(options[1], value, problems, where)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _Wrong(f"a table [{where}]")
        return build(typing.cast("type[Any]", hint), value, problems, where)
    return _convert_plain(hint, value)


def _convert_plain(hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise _Wrong(_NAMES.get(hint, str(hint)))
    if hint is float and not math.isfinite(value):
        raise _Wrong("a finite number")
    if hint is int and abs(value) > _LARGEST:
        raise _Wrong(f"one up to {_LARGEST:,}")
    return value


def _convert_union(options: Sequence[Any], value: Any, problems: list[str], where: str) -> Any:
    others = [o for o in options if o is not type(None)]
    if len(others) < len(options) and value == NONE:
        return None
    wanted = []
    for option in others:
        try:
            return _convert(option, value, problems, where)
        except _Wrong as wrong:
            wanted.append(str(wrong))
    raise _Wrong(" or ".join(wanted))


def _convert_table(hint: Any, value: Any, problems: list[str], where: str) -> dict[str, Any]:
    """Return a table whose keys are free and whose values are all of one type."""
    if not isinstance(value, Mapping):
        raise _Wrong(f"a table [{where}]")
    if hint is Any:
        return dict(value)
    converted = {}
    for key, item in value.items():
        try:
            converted[key] = _convert(hint, item, problems, f"{where}.{key}")
        except _Wrong as wrong:
            problems.append(f"{where}.{key} = {_shown(item)} is {_kind(item)}: give {wrong}")
    return converted


def _convert_tuple(options: Sequence[Any], value: Any, problems: list[str], where: str) -> tuple[Any, ...]:
    many = len(options) == 2 and options[1] is Ellipsis
    inner = options[0]
    if not isinstance(value, list | tuple):
        if many and is_dataclass(inner):
            raise _Wrong(f"tables [[{where}]]")
        raise _Wrong(f"a list of {'texts' if inner is str else 'numbers'}")
    if not many and len(value) != len(options):
        raise _Wrong(f"a list of {len(options)} numbers")
    converted = []
    for i, item in enumerate(value):
        hint = inner if many else options[i]
        # A table in a list is called by its name, as the overrides call it.
        name = item.get("name") if isinstance(item, Mapping) else None
        try:
            converted.append(_convert(hint, item, problems, f"{where}.{name or i}"))
        except _Wrong as wrong:
            problems.append(f"{where}.{i} = {_shown(item)} is {_kind(item)}: give {wrong}")
    return tuple(converted)


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "no finite number"
    if isinstance(value, str):
        return "text" if value else "empty"
    return _NAMES.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{…}"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
