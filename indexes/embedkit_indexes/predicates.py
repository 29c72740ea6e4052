"""What a filter's names and tests mean, said on one JSON value; `column_masks` gives the same answer on whole columns."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from embedkit.errors import InputError

Value = bool | int | float | str

ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXT_TESTS = ("startswith", "like")
TESTS = (*ORDER, "contains", *TEXT_TESTS)
# What needs no backticks; a name may hold hyphens, since nothing here subtracts.
NAME = re.compile(r"[^\W\d][\w-]*(?:\.[\w-]+)*")
KEYWORDS = frozenset(
    ("and", "or", "not", "in", "is", "null", "exists", "true", "false", "contains", *TEXT_TESTS)
)


def family(value: Any) -> str:
    """Return what a value can be compared with: "boolean", "number", "string", or "other" for nothing."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def holds(found: Any, test: str, value: Value) -> bool:
    """Say whether a JSON value passes a test; null passes none, a value of another type only `!=`."""
    if found is None:
        return False
    if test == "contains" and isinstance(found, list):
        return any(holds(item, "=", value) for item in found)
    if test not in ORDER:
        return isinstance(found, str) and isinstance(value, str) and _text_holds(found, test, value)
    if family(found) != family(value):
        return test == "!="
    return bool(ORDER[test](found, value)) and (test in ("=", "!=") or not isinstance(found, bool))


def check_name(name: Any) -> None:
    """Raise InputError for what is no field's name."""
    if not isinstance(name, str) or not name or not _encodable(name):
        raise InputError(f"{name!r:.60} is no field's name: give the name of a metadata key as a string")


def quoted(name: str) -> str:
    """Return a name as a filter's text holds it: in backticks, doubled inside, where it needs them."""
    plain = NAME.fullmatch(name) and name.lower() not in KEYWORDS
    return name if plain else "`" + name.replace("`", "``") + "`"


def plain_value(name: str, value: Any) -> Value:
    """Return what the field `name` is compared with as a JSON value: dates are ISO 8601. Raises InputError."""
    if hasattr(value, "isoformat"):
        value = value.isoformat()
    elif hasattr(value, "tolist"):  # NumPy's scalars
        value = value.tolist()
    try:
        good = _encodable(value) if isinstance(value, str) else math.isfinite(value)
    except (TypeError, OverflowError):
        good = False
    if good and isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"{name} is compared with {_shown(value)}: give a string, a finite number, true or false"
    )


def _shown(value: Any) -> str:
    # Python itself refuses to write out an integer of more than 4,300 digits.
    return "an integer beyond all floats" if isinstance(value, int) else f"{value!r:.60}"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_holds(found: str, test: str, value: str) -> bool:
    if test == "contains":
        return value in found
    return found.startswith(value) if test == "startswith" else _like(found, wildcards(value))


@lru_cache(maxsize=64)
def wildcards(pattern: str) -> tuple[str | None, ...]:
    """Return the pattern's parts: a character, "" for `_` (any one), None for `%` (any text)."""
    parts: list[str | None] = []
    taken = iter(pattern)
    for c in taken:
        if c == "\\":
            parts.append(next(taken, "\\"))
        else:
            parts.append({"%": None, "_": ""}.get(c, c))
    return tuple(parts)


def _like(text: str, parts: Sequence[str | None]) -> bool:
    """Match by going back to the last `%` alone: no pattern takes more than len(text) * len(parts) steps."""
    at = part = resume = 0
    last: int | None = None
    while at < len(text):
        if part < len(parts) and parts[part] is None:
            last, resume, part = part, at, part + 1
        elif part < len(parts) and parts[part] in ("", text[at]):
            at, part = at + 1, part + 1
        elif last is not None:
            resume += 1
            at, part = resume, last + 1
        else:
            return False
    return all(p is None for p in parts[part:])
