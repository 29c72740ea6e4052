"""Change single values of a run before it is built: `stages.finetune.optimizer.lr=2e-5`, `--ablation mean-pooling`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from embedkit_trainer.config.schema import suggest

#: Lists of tables that a key path enters by name or number.
_NAMED = ("stages", "sources", "models", "types")


def parse_override(text: str, problems: list[str]) -> tuple[str, Any] | None:
    """Return (key path, value) of `key.path=value`; a value that is no TOML is text, so that quotes may be left out."""
    path, equals, value = text.partition("=")
    path, value = path.strip(), value.strip()
    if not equals or not path or not value:
        problems.append(f"--set {text!r} is no key.path=value")
        return None
    if any("\ud800" <= c <= "\udfff" for c in text):  # so the shell's bytes come that are no text
        problems.append(f"--set {text!r} is not UTF-8: write it in that encoding")
        return None
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError):
        if value[0] in "[{\"'":
            problems.append(f"--set {text[:80]!r}: {value[:80]!r} is no TOML value")
            return None
        return path, value


def set_value(table: dict[str, Any], path: str, value: Any, problems: list[str], origin: str) -> None:
    """Set the value at a key path in place, making tables that are missing.

    Items of `stages`, `sources`, `models` and `types` are entered by number, by name, or all at once by `*`. `origin` begins the
    line that is added to `problems` where the path leads nowhere.
    """
    for holder, key in _holders(table, path, problems, origin):
        if isinstance(holder, list):
            holder[int(key)] = value
        else:
            holder[key] = value


def drop_item(table: dict[str, Any], path: str, problems: list[str], origin: str) -> None:
    """Take one item out of a list of tables, such as `stages.train.sources.synthetic`."""
    for holder, key in reversed(_holders(table, path, problems, origin)):
        if isinstance(holder, list):
            del holder[int(key)]
        elif holder.pop(key, None) is None:
            problems.append(f"{origin}: there is no {path} to drop")


def _holders(table: dict[str, Any], path: str, problems: list[str], origin: str) -> list[tuple[Any, str]]:
    """Return (dict or list, key) of every place that a key path means."""
    keys = path.split(".")
    found: list[tuple[Any, list[str]]] = [(table, keys)]
    done: list[tuple[Any, str]] = []
    while found:
        here, rest = found.pop(0)
        places: Sequence[int | str]
        if isinstance(here, list):
            places = _items(here, rest[0])
            if not places:
                names = [_name(item, i) for i, item in enumerate(here)]
                problems.append(f"{origin}: {path} names no item {rest[0]!r}: {suggest(rest[0], names)}")
        elif isinstance(here, dict):
            places = [rest[0]]
        else:
            problems.append(f"{origin}: {path} goes on below a value that is no table")
            continue
        for place in places:
            if len(rest) == 1:
                done.append((here, str(place)))
            elif isinstance(here, list):
                found.append((here[int(place)], rest[1:]))
            else:
                new: Any = [] if place in _NAMED else {}
                found.append((here.setdefault(place, new), rest[1:]))
    return done


def _items(items: list[Any], key: str) -> list[int]:
    if key == "*":
        return list(range(len(items)))
    if key.isdecimal():
        return [int(key)] if int(key) < len(items) else []
    return [i for i, item in enumerate(items) if _name(item, i) == key]


def _name(item: Any, number: int) -> str:
    return str(item.get("name", number)) if isinstance(item, Mapping) else str(number)
