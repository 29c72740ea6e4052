"""The text of a filter: what it means, that it can be written out and read again, and how mistakes are told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit_indexes.filters import And, Compare, Condition, Exists, F, In, Not, Or, from_dict
from embedkit_indexes.where import parse_where

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES = (
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
    | st.sampled_from(["'", '"', "\\", "''", '""', "\\u", "\n", "\0", "`"])
)  # fmt: skip
_NAMES = st.sampled_from(
    ["year", "author.name", "a-b", "AND", "like", "Null", "`", "2x", "a b"]
) | _TEXT.filter(len)
_LEAVES: st.SearchStrategy[Condition] = st.one_of(
    st.builds(Compare, _NAMES, st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "contains"]), _VALUES),
    st.builds(Compare, _NAMES, st.sampled_from(["startswith", "like"]), _TEXT),
    st.builds(In, _NAMES, st.lists(_VALUES, min_size=1, max_size=3), st.booleans()),
    st.builds(Exists, _NAMES),
)


def _joined(parts: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.builds(And, several) | st.builds(Or, several) | st.builds(Not, parts)


conditions = st.recursive(_LEAVES, _joined, max_leaves=12)


@given(conditions)
@settings(deadline=None)
def test_a_condition_written_out_is_read_again(condition: Condition) -> None:
    """`parse_where(str(c)) == c`, and `from_dict(c.to_dict()) == c`, for every condition."""
    assert parse_where(str(condition)) == condition
    assert from_dict(condition.to_dict()) == condition
    assert hash(from_dict(condition.to_dict())) == hash(condition)


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [
                "year",
                "and",
                "or",
                "not",
                "in",
                "is",
                "null",
                "(",
                ")",
                ",",
                "=",
                ">=",
                "5",
                "-1.5e3",
                "'x'",
                '"y"',
                "`z`",
                "contains",
                "like",
                "exists",
                "true",
                "\\",
                "'",
                '"',
                "`",
                "@",
                "2020-01",
                ".",
            ]
        )
    ).map(" ".join)
)
@settings(deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises anything but InputError, and what is read is written out and read again."""
    try:
        condition = parse_where(text)
    except InputError:
        return
    assert parse_where(str(condition)) == condition


@given(st.recursive(_VALUES | st.none(), lambda v: st.lists(v, max_size=3) | st.dictionaries(
    st.sampled_from(["and", "or", "not", "test", "name", "value", "values"]), v, max_size=3
)))  # fmt: skip
@settings(deadline=None)
def test_any_json_is_a_condition_or_refused(data: Any) -> None:
    """No JSON value raises anything but InputError."""
    try:
        condition = from_dict(data)
    except InputError:
        return
    assert from_dict(condition.to_dict()) == condition


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ('year >= 2020 and source = "wiki"', (F("year") >= 2020) & (F("source") == "wiki")),
        ("a = 1 or b = 2 and c = 3", (F("a") == 1) | ((F("b") == 2) & (F("c") == 3))),
        ("(a = 1 or b = 2) and c = 3", ((F("a") == 1) | (F("b") == 2)) & (F("c") == 3)),
        ("not a = 1 and b = 2", ~(F("a") == 1) & (F("b") == 2)),
        ("NOT a == 1 AND b <> 2", ~(F("a") == 1) & (F("b") != 2)),
        ("a=1 and b=2 and c=3", (F("a") == 1) & (F("b") == 2) & (F("c") == 3)),
        ("a=1 and (b=2 and c=3)", (F("a") == 1) & (F("b") == 2) & (F("c") == 3)),
        ("lang in ('de', \"fr\")", F("lang").isin(["de", "fr"])),
        ("lang Not In ('de')", F("lang").not_in(["de"])),
        ("tags contains 'moon'", F("tags").contains("moon")),
        ("id startswith 'a/'", F("id").startswith("a/")),
        (r"title like '100\\% _'", F("title").like(r"100\% _")),
        ("year is null", F("year").missing()),
        ("year is not null", F("year").exists()),
        ("year exists", F("year").exists()),
        ("year = null", F("year").missing()),
        ("year != NULL", F("year") != None),  # noqa: E711
        ("draft = true and x<-1.5e-3", (F("draft") == True) & (F("x") < -0.0015)),  # noqa: E712
        ("`a ``key``` = 1", F("a `key`") == 1),
        ("author.name = 'it''s'", F("author.name") == "it's"),
        (r'a = "\"\n\u00e9\ud83d\ude00"', F("a") == '"\né😀'),
        ("jahr-zahl = 5", F("jahr-zahl") == 5),
        ("größe > 5", F("größe") > 5),
    ],
)
def test_a_text_means_what_the_python_form_means(text: str, condition: Condition) -> None:
    """Each form of the grammar is the condition that F makes; `and` binds closer than `or`, `not` closest."""
    assert parse_where(text) == condition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the filter is empty"),
        ("year >=", "at its end: expected a value after >=; here: year >=<here>"),
        ("year 5", "at character 6: expected a test after year, such as"),
        ("year", "at its end: expected a test after year"),
        ("lang = de", r"at character 8: expected a value after = \(strings go in quotes\); here: lang = <here>de"),
        ("day > 2020-01-01", "at character 7: this is no number: put dates and other strings in quotes"),
        ("a = 'x", "at character 5: this ' is never closed"),
        ("a = 1 b = 2", "at character 7: expected and, or, or the end"),
        ("a = 1 && b = 2", "at character 7: the character '&' means nothing here"),
        ("a in ()", "at character 7: expected a value after in"),
        ("a in (1, null)", "at character 10: null is no value of a list"),
        ("(a = 1", r"at its end: expected \)"),
        ("in = 1", "at character 1: expected the name of a field .* backticks"),
        ("a not contains 'x'", "at character 7: expected in after not .* not a contains"),
        ("a < null", "at character 5: < cannot be asked of null"),
        ("a like 5", "at character 8: like takes a string"),
        ("a = 1e999", "at character 5: a is compared with inf: give a string, a finite number"),
        ("a = " + "9" * 5000, "at character 5: a number of 5000 characters is too long"),
        (r"a = 'C:\dir'", r"at character 8: no escape \\d is known: write \\\\ for a backslash"),
        (r"a = '\ud800'", "at character 5: this string holds half a character"),
        ("(" * 5000 + "a = 1" + ")" * 5000, "more than 128 levels"),
        ("not " * 5000 + "a = 1", "more than 128 levels"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(text: str, message: str) -> None:
    """What is wrong, where, and what was expected there, in one sentence."""
    with pytest.raises(InputError, match=message) as e:
        parse_where(text)
    assert "\n" not in str(e.value)


def test_the_deepest_condition_is_read_again() -> None:
    """A condition of as many levels as there may be is written out and read; one more is refused."""
    condition = F("a") == 1
    for i in range(63):
        condition = ~condition if i % 2 else condition & (F("b") == i)
    assert parse_where(str(condition)) == condition
    assert from_dict(condition.to_dict()) == condition
    with pytest.raises(InputError, match="more than 64 levels"):
        _ = ~condition
    with pytest.raises(InputError, match="more than 64 levels"):
        from_dict({"not": condition.to_dict()})
