"""Filters over columns: the same rows as a plain evaluation in Python, and mistakes told."""

from __future__ import annotations

import math
import operator
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import CorruptIndexError, InputError, UnknownNameError
from embedkit_indexes import columns as columns_module
from embedkit_indexes.columns import FILE, Columns, ColumnsWriter
from embedkit_indexes.filters import And, Compare, Condition, Exists, F, In, Not, Or, check, from_dict
from embedkit_indexes.where import parse_where

Rows = Sequence[Mapping[str, Any]]


class _Segment:
    """The metadata columns of some rows, by way of their file, as a filter's source."""

    def __init__(self, rows: Rows, window: int = 7) -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = ColumnsWriter(Path(folder))
            for start in range(0, len(rows), window):
                writer.write(rows[start : start + window])
            writer.finish()
            columns = Columns.open(Path(folder))
        self.rows = len(rows)
        self.column = columns.column
        self.names = lambda: columns.names


class _Arrays:
    """Arrow arrays as a filter's source."""

    def __init__(self, **columns: pa.Array | pa.ChunkedArray) -> None:
        self._columns = {
            n: c if isinstance(c, pa.ChunkedArray) else pa.chunked_array([c]) for n, c in columns.items()
        }
        self.rows = len(next(iter(self._columns.values())))

    def column(self, name: str) -> pa.ChunkedArray | None:
        return self._columns.get(name)

    def names(self) -> list[str]:
        return list(self._columns)


# ---- what a filter means, said in plain Python, without a line of the package's ----

_ORDER = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _compared(found: Any, test: str, value: Any) -> bool:
    if _kind(found) is not _kind(value):
        return test == "!="
    if isinstance(found, bool) and test not in ("=", "!="):
        return False
    return bool(_ORDER[test](found, value))


def _passes(found: Any, test: str, value: Any) -> bool:
    if test in _ORDER:
        return _compared(found, test, value)
    if test == "contains" and isinstance(found, list):
        return any(item is not None and _compared(item, "=", value) for item in found)
    if not (isinstance(found, str) and isinstance(value, str)):
        return False
    if test == "contains":
        return found.find(value) >= 0
    if test == "startswith":
        return found[: len(value)] == value
    pattern = re.sub(r"\\?.", _as_expression, value, flags=re.DOTALL)
    return re.fullmatch(pattern, found, re.DOTALL) is not None


def _as_expression(match: re.Match[str]) -> str:
    return {"%": ".*", "_": "."}.get(match[0]) or re.escape(match[0][-1])


def _expected(condition: Condition, row: Mapping[str, Any]) -> bool:
    if isinstance(condition, And):
        return all(_expected(p, row) for p in condition.parts)
    if isinstance(condition, Or):
        return any(_expected(p, row) for p in condition.parts)
    if isinstance(condition, Not):
        return not _expected(condition.part, row)
    assert isinstance(condition, Compare | In | Exists)
    found = row.get(condition.name)
    if found is None or isinstance(condition, Exists):
        return found is not None
    if isinstance(condition, In):
        return any(_compared(found, "=", v) for v in condition.values) != condition.negated
    return _passes(found, condition.test, condition.value)


_INTEGERS = st.integers(-3, 3) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, -(2**70)])
_SMALL = st.integers(-3, 3) | st.sampled_from([2**53, -(2**60)])
_FLOATS = st.sampled_from([0.0, -0.0, 0.5, -2.5, 1.0, 3.0, 1e300, float(2**53), float(2**63), -1e19])
_STRINGS = st.text("abé%_\\\n\0日", max_size=4)
_IN_64_BITS = _INTEGERS.filter(lambda i: -(2**63) <= i < 2**63)
_LISTS = st.one_of(
    *(st.lists(v | st.none(), max_size=3) for v in (_SMALL, _SMALL | _FLOATS, _INTEGERS | _FLOATS, _STRINGS))
)
# One strategy for the values of each key, so that columns of every type come up.
_COLUMNS = st.one_of(
    *map(
        st.just,
        [
            st.booleans(), _IN_64_BITS, _FLOATS | _SMALL, _FLOATS | _INTEGERS, _STRINGS, _LISTS, st.none(),
            st.booleans() | _INTEGERS | _STRINGS | _LISTS,
        ],
    )
)  # fmt: skip
_VALUES = st.booleans() | _INTEGERS | _FLOATS | _STRINGS
_NAMES = st.sampled_from(["x", "y", "o.p"])
_TESTS = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "contains"])
_LEAVES: st.SearchStrategy[Condition] = st.one_of(
    st.builds(Compare, _NAMES, _TESTS, _VALUES),
    st.builds(Compare, _NAMES, st.sampled_from(["startswith", "like"]), _STRINGS),
    st.builds(In, _NAMES, st.lists(_VALUES, min_size=1, max_size=4), st.booleans()),
    st.builds(Exists, _NAMES),
)


def _joined(parts: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    pairs = st.tuples(parts, parts)
    return st.builds(And, pairs) | st.builds(Or, pairs) | st.builds(Not, parts)


_CONDITIONS = st.recursive(_LEAVES, _joined, max_leaves=5)


@st.composite
def _tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    columns = {name: draw(_COLUMNS) for name in ("x", "y", "o.p")}
    row = st.fixed_dictionaries({}, optional={n: c | st.none() for n, c in columns.items()})
    return draw(st.lists(row, max_size=20))


def _nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it is given: `o.p` is the key `p` of an object."""
    return {n: v for n, v in row.items() if n != "o.p"} | ({"o": {"p": row["o.p"]}} if "o.p" in row else {})


@given(
    _tables(),
    st.lists(_CONDITIONS, min_size=1, max_size=6),
    st.sampled_from([1, 4096]),
    st.sampled_from([5, 999]),
)
@settings(deadline=None, max_examples=150)
def test_a_mask_is_what_python_says_of_each_row(
    rows: list[dict[str, Any]], conditions: list[Condition], distinct: int, batch: int
) -> None:
    """Random rows of random types, random conditions: the columns give the rows that plain Python gives."""
    with (
        mock.patch.object(columns_module, "_DISTINCT_LIMIT", distinct),
        mock.patch.object(columns_module, "_BATCH_ROWS", batch),
    ):
        segment = _Segment([_nested(row) for row in rows], window=3)
    for condition in conditions:
        expected = [_expected(condition, row) for row in rows]
        mask = condition.mask(segment)
        assert mask.dtype == np.bool_
        assert mask.tolist() == expected, str(condition)


def test_integers_beside_fractions_lose_no_digit() -> None:
    """An integer that no float holds is itself, and not its neighbour, in a column that holds fractions too."""
    source = _Segment([{"x": 2**53 + 1}, {"x": 2**53}, {"x": 2**53 + 2}, {"x": 0.5}])
    assert (F("x") == 2**53 + 1).mask(source).tolist() == [True, False, False, False]
    assert (F("x") > 2**53).mask(source).tolist() == [True, False, True, False]
    assert F("x").isin([2**53, 0.5]).mask(source).tolist() == [False, True, False, True]


@given(_tables(), _tables(), _CONDITIONS)
@settings(deadline=None, max_examples=60)
def test_segments_of_other_types_answer_alike(
    first: list[dict[str, Any]], second: list[dict[str, Any]], condition: Condition
) -> None:
    """Rows that lie in two segments, of whatever column types there, pass as they would in one."""
    parts = [condition.mask(_Segment([_nested(row) for row in rows])) for rows in (first, second)]
    assert np.concatenate(parts).tolist() == [_expected(condition, row) for row in first + second]


@given(st.lists(_STRINGS, min_size=1, max_size=5), _STRINGS)
@settings(deadline=None)
def test_arrow_and_python_agree_on_patterns(texts: list[str], pattern: str) -> None:
    """`like` passes the same texts where Arrow runs it and where Python does, on a dictionary's values."""
    plain = pa.array(texts)
    condition = F("a").like(pattern)
    expected = [_passes(text, "like", pattern) for text in texts]
    assert condition.mask(_Arrays(a=plain)).tolist() == expected
    assert condition.mask(_Arrays(a=plain.dictionary_encode())).tolist() == expected


def test_a_pattern_cannot_run_for_ever() -> None:
    """A pattern of many wildcards takes no time that grows with a power of the text."""
    source = _Arrays(a=pa.array(["a" * 3000]).dictionary_encode())
    assert not F("a").like("%a" * 40 + "%b").mask(source).any()


ROWS: list[dict[str, Any]] = [
    {"year": 2019, "source": "wiki", "tags": ["moon", "tide"], "draft": True, "rating": "4.5"},
    {"year": 2020, "source": "news", "tags": [], "draft": False, "rating": "3"},
    {"source": "wiki", "author": {"name": "Ada"}},
    {"year": 2022, "tags": ["moon"], "price": 1.5, "mixed": 5},
    {"price": 2, "mixed": "five"},
]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("year >= 2020", [1, 3]),
        ("year >= 2019.5", [1, 3]),
        ("year < 1e30", [0, 1, 3]),
        ("year = 2020.0", [1]),
        ("year != 2020", [0, 3]),
        ("not (year = 2020)", [0, 2, 3, 4]),
        ("not year != 2020", [1, 2, 4]),
        ("year in (2019, 2022)", [0, 3]),
        ("year not in (2019, 2022)", [1]),
        ("not year in (2019, 2022)", [1, 2, 4]),
        ("year is null", [2, 4]),
        ("year exists and source exists", [0, 1]),
        ("source = 'wiki' or price > 1.75", [0, 2, 4]),
        ("source startswith 'ne'", [1]),
        ("source like '%i_i'", [0, 2]),
        ("source < 'o'", [1]),
        ("tags contains 'moon'", [0, 3]),
        ("author.name contains 'd'", [2]),
        ("draft = false", [1]),
        ("mixed = 5", [3]),
        ("mixed contains 'iv'", [4]),
        ("mixed != 5", [4]),
        ("mixed not in (5)", [4]),
    ],
)
def test_a_filter_lets_the_right_rows_through(text: str, rows: list[int]) -> None:
    """A missing value passes no test, `!=` and `not in` neither; `not` lets it through."""
    segment = _Segment(ROWS)
    condition = parse_where(text)
    check(condition, [segment])
    assert np.flatnonzero(condition.mask(segment)).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("year >= 'abc'", 'year holds integers (such as 2019), which `year >= "abc"` cannot test: compare it with a'),
        ("rating > 4", "rating holds strings (such as '4.5'), which `rating > 4` cannot test: give a string in quotes"),
        ("draft = 1", "draft holds booleans (such as True), which `draft = 1` cannot test: use = or != with true"),
        ("draft < true", "draft holds booleans"),
        ("tags = 'moon'", "tags holds lists of strings (such as ['moon', 'tide']), which `tags = \"moon\"` cannot test: "
         "use contains with one of the strings"),
        ("tags contains 5", "use contains with one of the strings"),
        ("year contains 2", "year holds integers"),
        ("year like '20%'", "compare it with a number"),
        ("price != 'x'", "price holds numbers (such as 1.5)"),
        ("year in (2019, 'x')", 'year holds integers (such as 2019), which `year = "x"` cannot test'),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(text: str, message: str) -> None:
    """A test that no value of the column can pass is told with the column's type and one of its values."""
    with pytest.raises(InputError, match=re.escape(message)):
        check(parse_where(text), [_Segment(ROWS)])


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    """A name without a column is refused with the names that are near, wherever it stands in the filter."""
    with pytest.raises(UnknownNameError, match="unknown field 'yaer': did you mean year"):
        check(parse_where("source = 'wiki' and not (yaer is null or year = 1)"), [_Segment(ROWS)])


def test_one_segment_that_has_the_column_is_enough() -> None:
    """A name, or a type, that only another segment has is no mistake: here it matches nothing."""
    old, new = _Segment([{"year": "2020"}, {}]), _Segment([{"year": 2020, "lang": "de"}])
    for text, in_old, in_new in (
        ("year >= 2020", [False, False], [True]),
        ("year = '2020'", [True, False], [False]),
        ("year in (2020, '2020')", [True, False], [True]),
        ("year != 2021", [True, False], [True]),
        ("lang = 'de'", [False, False], [True]),
        ("lang is null", [True, True], [False]),
    ):
        condition = parse_where(text)
        check(condition, [old, new])
        assert condition.mask(old).tolist() == in_old, text
        assert condition.mask(new).tolist() == in_new, text
    with pytest.raises(InputError, match="year holds strings"):
        check(F("year") == True, [old, new])  # noqa: E712


def test_a_column_of_nothing_is_known_and_matches_nothing() -> None:
    """A key that is null in every row has a name that can be asked for."""
    segment = _Segment([{"a": None}, {"a": None}])
    for condition in (F("a") == 1, F("a") != 1, F("a").isin([1]), F("a").contains("x"), F("a").exists()):
        check(condition, [segment])
        assert not condition.mask(segment).any()
    assert F("a").missing().mask(segment).all()


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 13])
def test_slices_and_other_widths_are_read_where_they_lie(offset: int) -> None:
    """The chunk's own columns may be slices, of 32 bits, large strings: rows are counted right."""
    values = [None if i % 5 == 3 else i % 11 for i in range(60)]
    kept = values[offset:]
    source = _Arrays(
        int=pa.array(values, pa.int32()).slice(offset),
        text=pa.array([None if v is None else f"t{v}" for v in values], pa.large_string()).slice(offset),
        word=pa.array([None if v is None else f"t{v}" for v in values]).dictionary_encode().slice(offset),
        even=pa.array([None if v is None else v % 2 == 0 for v in values]).slice(offset),
        list=pa.array([None if v is None else [1] * v + [v] for v in values]).slice(offset),
        chunks=pa.chunked_array([pa.array(kept[:9]), pa.array([], pa.int64()), pa.array(kept[9:])]),
    )
    for condition, test in (
        (F("int") >= 5, lambda v: v >= 5),
        (F("int") < 2**40, lambda v: True),
        (F("int").isin([5, 2**40, 6.5]), lambda v: v == 5),
        (F("text") == "t7", lambda v: v == 7),
        (F("text").isin(["t7", "t8"]), lambda v: v in (7, 8)),
        (F("text").startswith("t1"), lambda v: v in (1, 10)),
        (F("word") > "t7", lambda v: v in (8, 9)),
        (F("word").not_in(["t7"]), lambda v: v != 7),
        (F("even") == True, lambda v: v % 2 == 0),  # noqa: E712
        (F("even").isin([False]), lambda v: v % 2 == 1),
        (F("list").contains(7), lambda v: v == 7),
        (F("chunks") != 7, lambda v: v != 7),
    ):
        assert condition.mask(source).tolist() == [v is not None and test(v) for v in kept], str(condition)


def test_conditions_are_joined_by_signs() -> None:
    """`and`, `or`, chained comparisons and forgotten parentheses are refused with the way to write it."""
    year, lang = F("year"), F("lang")
    with pytest.raises(InputError, match="join conditions by & | ~"):
        _ = (year >= 2020) and (lang == "de")
    with pytest.raises(InputError, match="join conditions by & | ~"):
        _ = 2000 <= year <= 2020
    with pytest.raises(InputError, match="put parentheses around each comparison"):
        _ = year >= 2020 & lang == "de"
    with pytest.raises(InputError, match="put parentheses around each one"):
        _ = (year >= 2020) & "lang"  # type: ignore[operator]
    with pytest.raises(InputError, match="compare it, as in F"):
        _ = not F("draft")


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, "\ud800", [1], {"a": 1}, b"x", None])
def test_a_value_that_json_does_not_hold_is_refused(value: Any) -> None:
    """Only strings, finite numbers and booleans are compared with."""
    with pytest.raises(InputError, match="give a string, a finite number, true or false"):
        Compare("x", ">", value)
    with pytest.raises(InputError, match="give a string, a finite number, true or false"):
        F("x").isin([value])


def test_dates_and_numpy_scalars_are_plain_values() -> None:
    """A date is compared as its ISO form, a NumPy scalar as the number it is."""
    assert (F("day") >= date(2024, 5, 1)) == parse_where("day >= '2024-05-01'")
    assert (F("x") == np.int64(5)) == parse_where("x = 5")
    assert F("x").isin(np.array([1, 2])) == parse_where("x in (1, 2)")


def test_true_is_not_one() -> None:
    """Conditions that differ only by a value's type are different, as keys of a cache too."""
    assert len({F("x") == 1, F("x") == True, F("x").isin([1]), F("x").isin([True])}) == 4  # noqa: E712


@pytest.mark.parametrize(
    "data",
    [
        [], "year = 2020", {}, {"test": "~", "name": "x", "value": 1}, {"test": "=", "name": "x"},
        {"test": "=", "name": 5, "value": 1}, {"test": "in", "name": "x", "values": "abc"},
        {"test": "in", "name": "x", "values": {"a": 1}}, {"test": "in", "name": "x", "values": []},
        {"and": []}, {"and": {"test": "exists", "name": "x"}}, {"not": []}, {"and": [], "or": []},
        {"test": "exists", "name": "x", "value": 1}, {"test": "like", "name": "x", "value": 5},
    ],
)  # fmt: skip
def test_json_that_is_no_filter_is_refused(data: Any) -> None:
    """What a server is sent in place of a filter raises InputError."""
    with pytest.raises(InputError):
        from_dict(data)


def test_one_filter_in_a_list_is_that_filter() -> None:
    """`{"and": [x]}` is x."""
    assert from_dict({"and": [{"test": "exists", "name": "x"}]}) == Exists("x")


def test_broken_values_are_a_corrupt_index() -> None:
    """JSON that an altered file no longer holds raises CorruptIndexError, no wrong answer."""
    with pytest.raises(CorruptIndexError, match="broken values"):
        (F("x") == 1).mask(_Arrays(x=pa.array([b'{"a'])))


def test_a_filter_loads_no_pandas(tmp_path: Path) -> None:
    """Masks over every type of column import neither pandas nor, but for JSON and strings of many kinds, Arrow's functions."""
    writer = ColumnsWriter(tmp_path)
    writer.write(ROWS)
    assert writer.finish() == [FILE]
    code = f"""
import sys
from pathlib import Path
from embedkit_indexes.columns import Columns
from embedkit_indexes.filters import check
from embedkit_indexes.where import parse_where
columns = Columns.open(Path({str(tmp_path)!r}))
class Source:
    rows, column, names = columns.rows, columns.column, lambda self: columns.names
where = parse_where("year > 5 or source like 'w%' or draft = true or price in (1.5) or price exists")
check(where, [Source()])
assert where.mask(Source()).all()
assert "pyarrow.compute" not in sys.modules
assert parse_where("tags contains 'moon' or mixed = 'five'").mask(Source()).sum() == 3
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
