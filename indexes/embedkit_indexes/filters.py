"""Filters: conditions written in Python (`F("year") >= 2020`) or as JSON, and checked against an index's columns.

The same conditions are written as text for `where.parse_where`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from embedkit.errors import InputError, UnknownNameError
from embedkit_indexes.conditions import (
    DEEPEST,
    And,
    Compare,
    Condition,
    Exists,
    In,
    Not,
    Or,
    Source,
    Test,
)
from embedkit_indexes.predicates import TESTS, Value, plain_value

if TYPE_CHECKING:
    from datetime import date

    import numpy as np

    # Dates are compared in their ISO form, as metadata holds them.
    Operand = Value | date | np.generic

__all__ = ["And", "Compare", "Condition", "Exists", "F", "In", "Not", "Or", "Source", "check", "from_dict"]


class F:
    """Name a field to make conditions of: `(F("year") >= 2020) & F("lang").isin(["de", "fr"])`.

    A field is a metadata key (`author.name` inside an object), or one of the chunk's own: id, source, title, lang,
    position, text; `metadata.title` is the key of such a name. Comparing with None asks for missing values.
    """

    __slots__ = ("_name",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self._name = name

    def __eq__(self, value: Operand | None) -> Condition:  # type: ignore[override]
        return self.missing() if value is None else self._compare("=", value)

    def __ne__(self, value: Operand | None) -> Condition:  # type: ignore[override]
        return self.exists() if value is None else self._compare("!=", value)

    def __lt__(self, value: Operand) -> Condition:
        return self._compare("<", value)

    def __le__(self, value: Operand) -> Condition:
        return self._compare("<=", value)

    def __gt__(self, value: Operand) -> Condition:
        return self._compare(">", value)

    def __ge__(self, value: Operand) -> Condition:
        return self._compare(">=", value)

    def _compare(self, test: str, value: Operand) -> Condition:
        return Compare(self._name, test, plain_value(self._name, value))

    def isin(self, values: Iterable[Operand]) -> Condition:
        """Ask for one of the values."""
        return In(self._name, values)  # type: ignore[arg-type]

    def not_in(self, values: Iterable[Operand]) -> Condition:
        """Ask for a value that is none of these."""
        return In(self._name, values, negated=True)  # type: ignore[arg-type]

    def contains(self, value: Operand) -> Condition:
        """Ask for a list with this item, or a text with this piece."""
        return self._compare("contains", value)

    def startswith(self, prefix: str) -> Condition:
        """Ask for a text that begins so."""
        return Compare(self._name, "startswith", prefix)

    def like(self, pattern: str) -> Condition:
        r"""Ask for a text of this whole pattern: `%` is any text, `_` any character, `\%` a percent sign."""
        return Compare(self._name, "like", pattern)

    def exists(self) -> Condition:
        """Ask for any value."""
        return Exists(self._name)

    def missing(self) -> Condition:
        """Ask for the chunks without a value."""
        return Not(Exists(self._name))

    def __and__(self, other: Any) -> NoReturn:
        raise InputError(
            f"{self._name} is a field, no condition: put parentheses around each comparison, "
            'as in (F("year") >= 2020) & (F("lang") == "de")'
        )

    __or__ = __rand__ = __ror__ = __and__

    def __bool__(self) -> NoReturn:
        raise InputError(
            f"{self._name} is a field, no condition: compare it, as in F({self._name!r}) == True"
        )


def check(condition: Condition, sources: Sequence[Source]) -> None:
    """Refuse a filter that can match nothing by mistake: a name that no segment has, a value of no column's type.

    Raises UnknownNameError with the nearest names, and InputError with the column's type and one of its values.
    """
    if not sources:
        return
    for test in condition.tests():
        columns = [c for s in sources if (c := s.column(test.name)) is not None]
        if not columns:
            raise UnknownNameError("field", test.name, {n for s in sources for n in s.names()})
        for value in _values(test):
            _check_type(test.name, test.test if isinstance(test, Compare) else "=", value, columns)


def _values(test: Test) -> Sequence[Value]:
    if isinstance(test, Exists):
        return ()
    return test.values if isinstance(test, In) else (test.value,)


def _check_type(name: str, test: str, value: Value, columns: Sequence[Any]) -> None:
    from embedkit_indexes.column_masks import accepts, describe, sample

    if any(accepts(c.type, test, value) for c in columns):
        return
    kind = describe(columns[0].type)
    advice = {
        "strings": "give a string in quotes",
        "booleans": "use = or != with true or false",
        "integers": "compare it with a number, without quotes",
        "numbers": "compare it with a number, without quotes",
    }.get(kind, f"use contains with one of the {kind.removeprefix('lists of ')}")
    raise InputError(
        f"{name} holds {kind} (such as {sample(columns[0])!r:.60}), which `{Compare(name, test, value)}` cannot test: "
        f"{advice}"
    )


def from_dict(data: Any) -> Condition:
    """Make a condition of what `Condition.to_dict` returned. Raises InputError."""
    return _made(data, 1)


def _made(data: Any, level: int) -> Condition:
    if level > DEEPEST:
        raise InputError(f"the filter is nested more than {DEEPEST} levels deep: write it flatter")
    if not isinstance(data, Mapping):
        raise InputError(f"a filter is an object, as in {_EXAMPLE}, not {data!r:.60}")
    keys = set(data)
    if keys in ({"and"}, {"or"}):
        word = keys.pop()
        parts = data[word]
        if not isinstance(parts, list):
            raise InputError(f"the filter's {word!r} takes a list of filters, not {parts!r:.60}")
        made = tuple(_made(part, level + 1) for part in parts)
        return made[0] if len(made) == 1 else (And if word == "and" else Or)(made)
    if keys == {"not"}:
        return Not(_made(data["not"], level + 1))
    return _leaf(data, keys)


def _leaf(data: Mapping[str, Any], keys: set[str]) -> Condition:
    test = data.get("test")
    if test == "exists" and keys == {"test", "name"}:
        return Exists(data["name"])
    if test in ("in", "not in") and keys == {"test", "name", "values"}:
        return In(data["name"], data["values"], negated=test == "not in")
    if test in TESTS and keys == {"test", "name", "value"}:
        return Compare(data["name"], data["test"], data["value"])
    raise InputError(f"a filter is an object, as in {_EXAMPLE}, not {data!r:.60}")


_EXAMPLE = '{"test": ">=", "name": "year", "value": 2020}, {"and": [...]} or {"not": {...}}'
