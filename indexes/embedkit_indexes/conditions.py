"""Conditions on chunks: a small tree of tests joined by and, or, not.

A test of a missing value is false, `!=` and `not in` too; `not` turns any condition round. So `year != 2020` wants a
year, and `not (year = 2020)` lets the chunks without one through. A value of another type passes no test but `!=`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from embedkit.errors import InputError
from embedkit_indexes.predicates import TESTS, TEXT_TESTS, Value, check_name, family, plain_value, quoted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# Deep enough for any person, shallow enough for Python's stack.
DEEPEST = 64


class Source(Protocol):
    """The columns of one segment."""

    rows: int

    def column(self, name: str) -> pa.ChunkedArray | None:
        """Return the column of that name, `rows` values; None where there is none."""

    def names(self) -> Iterable[str]:
        """Return the names that a filter may use."""


class Condition(ABC):
    """What a chunk must fulfil; join conditions by `&`, `|` and `~`. Immutable, comparable and hashable."""

    __slots__ = ()
    depth: int

    @abstractmethod
    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows fulfil it, bool [rows].

        A name without a column is missing in all rows, and a value of another type than the column's equals none:
        another segment may have it. Whether any has is what `filters.check` says.
        """

    @abstractmethod
    def tests(self) -> Iterator[Test]:
        """Yield the tests that it is made of, from left to right."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, from which `from_dict` makes the condition again."""

    def __and__(self, other: Condition) -> Condition:
        return And((self, other))

    def __or__(self, other: Condition) -> Condition:
        return Or((self, other))

    def __invert__(self) -> Condition:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise InputError(
            f"a condition ({self}) is neither true nor false by itself: join conditions by & | ~ in place of "
            "and, or, not, with parentheses around each one"
        )


@dataclass(frozen=True, slots=True)
class Compare(Condition):
    """A field against a value, by one of `predicates.TESTS`."""

    name: str
    test: str
    value: Value
    # True equals 1 and 1.0 in Python, and would share a cache's entry with them.
    family: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.test not in TESTS:
            raise InputError(f"unknown test {self.test!r}: use one of {' '.join(TESTS)}, in, exists")
        object.__setattr__(self, "value", plain_value(self.name, self.value))
        if self.test in TEXT_TESTS and not isinstance(self.value, str):
            raise InputError(f"{self.test} takes a string, not {self.value!r}")
        object.__setattr__(self, "family", family(self.value))

    depth = 1

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows pass, bool [rows]."""
        from embedkit_indexes.column_masks import column_mask

        column = source.column(self.name)
        return _nothing(source) if column is None else column_mask(column, self.test, self.value)

    def tests(self) -> Iterator[Test]:
        """Yield itself."""
        yield self

    def to_dict(self) -> dict[str, Any]:
        """Return `{"test": ">=", "name": "year", "value": 2020}`."""
        return {"test": self.test, "name": self.name, "value": self.value}

    def __str__(self) -> str:
        return f"{quoted(self.name)} {self.test} {json.dumps(self.value, ensure_ascii=False)}"


@dataclass(frozen=True, slots=True)
class In(Condition):
    """A field that has one of the values; `negated`: one, but none of these."""

    name: str
    values: tuple[Value, ...]
    negated: bool = False
    families: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if isinstance(self.values, str | bytes | Mapping) or not isinstance(self.values, Iterable):
            raise InputError(f"{self.name} in … takes a list of values, not {self.values!r:.60}")
        object.__setattr__(self, "values", tuple(plain_value(self.name, v) for v in self.values))
        if not self.values:
            raise InputError(f"{self.name} in () matches nothing: give at least one value")
        object.__setattr__(self, "families", tuple(map(family, self.values)))

    depth = 1

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows pass, bool [rows]."""
        from embedkit_indexes.column_masks import member_mask, valid_mask

        column = source.column(self.name)
        if column is None:
            return _nothing(source)
        found = member_mask(column, self.values)
        return ~found & valid_mask(column) if self.negated else found

    def tests(self) -> Iterator[Test]:
        """Yield itself."""
        yield self

    def to_dict(self) -> dict[str, Any]:
        """Return `{"test": "in", "name": "lang", "values": ["de", "fr"]}`."""
        test = "not in" if self.negated else "in"
        return {"test": test, "name": self.name, "values": list(self.values)}

    def __str__(self) -> str:
        values = ", ".join(json.dumps(v, ensure_ascii=False) for v in self.values)
        return f"{quoted(self.name)} {'not in' if self.negated else 'in'} ({values})"


@dataclass(frozen=True, slots=True)
class Exists(Condition):
    """A field that has a value."""

    name: str
    depth = 1

    def __post_init__(self) -> None:
        check_name(self.name)

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows pass, bool [rows]."""
        from embedkit_indexes.column_masks import valid_mask

        column = source.column(self.name)
        return _nothing(source) if column is None else valid_mask(column)

    def tests(self) -> Iterator[Test]:
        """Yield itself."""
        yield self

    def to_dict(self) -> dict[str, Any]:
        """Return `{"test": "exists", "name": "year"}`."""
        return {"test": "exists", "name": self.name}

    def __str__(self) -> str:
        return f"{quoted(self.name)} is not null"


@dataclass(frozen=True, slots=True)
class _Joined(Condition):
    """Two or more conditions; parts that are joined in the same way are taken apart."""

    parts: tuple[Condition, ...]
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        parts: list[Condition] = []
        for part in self.parts:
            _check_condition(part)
            parts.extend(part.parts if isinstance(part, type(self)) else [part])
        if len(parts) < 2:
            raise InputError(f"{self._word()} joins two conditions or more, not {len(parts)}")
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "depth", _deeper(parts))

    def _word(self) -> str:
        return type(self).__name__.lower()

    def tests(self) -> Iterator[Test]:
        """Yield the tests of all parts."""
        for part in self.parts:
            yield from part.tests()

    def to_dict(self) -> dict[str, Any]:
        """Return `{"and": […]}` or `{"or": […]}`."""
        return {self._word(): [part.to_dict() for part in self.parts]}

    def __str__(self) -> str:
        return f" {self._word()} ".join(f"({p})" if isinstance(p, _Joined) else str(p) for p in self.parts)


class And(_Joined):
    """All of the parts."""

    __slots__ = ()

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows fulfil every part, bool [rows]."""
        out = self.parts[0].mask(source)
        for part in self.parts[1:]:
            if not out.any():
                break
            out &= part.mask(source)
        return out


class Or(_Joined):
    """At least one of the parts."""

    __slots__ = ()

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows fulfil any part, bool [rows]."""
        out = self.parts[0].mask(source)
        for part in self.parts[1:]:
            if out.all():
                break
            out |= part.mask(source)
        return out


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """The rows that a condition leaves out, those without a value among them."""

    part: Condition
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_condition(self.part)
        object.__setattr__(self, "depth", _deeper([self.part]))

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """Return which rows do not fulfil the part, bool [rows]."""
        return ~self.part.mask(source)

    def tests(self) -> Iterator[Test]:
        """Yield the part's tests."""
        return self.part.tests()

    def to_dict(self) -> dict[str, Any]:
        """Return `{"not": …}`."""
        return {"not": self.part.to_dict()}

    def __str__(self) -> str:
        return f"{quoted(self.part.name)} is null" if isinstance(self.part, Exists) else f"not ({self.part})"


Test = Compare | In | Exists


def _nothing(source: Source) -> NDArray[np.bool_]:
    import numpy as np

    return np.zeros(source.rows, dtype=bool)


def _deeper(parts: Iterable[Condition]) -> int:
    depth = 1 + max(part.depth for part in parts)
    if depth > DEEPEST:
        raise InputError(f"the filter is nested more than {DEEPEST} levels deep: write it flatter")
    return depth


def _check_condition(part: Any) -> None:
    if not isinstance(part, Condition):
        raise InputError(
            f"& | ~ join conditions, not {part!r:.60}: put parentheses around each one, "
            'as in (F("year") >= 2020) & (F("lang") == "de")'
        )
