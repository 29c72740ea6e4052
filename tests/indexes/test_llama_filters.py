"""LlamaIndex's metadata filters, against core's own simple store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from embedkit.errors import InputError
from embedkit_indexes.llama_filters import condition_of
from tests.indexes.conftest import HashEmbedder
from tests.indexes.llama_nodes import PEOPLE, Both, group, node, one, people, where


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Five nodes in both stores, ours in two segments."""
    both = Both(tmp_path_factory.mktemp("llama") / "my.index", HashEmbedder())
    nodes = people(both.embedder)
    both.add(nodes)
    return both


CASES: tuple[tuple[MetadataFilters, set[str]], ...] = (
    (where("weight", "==", 1.0), {"aliens"}),
    (where("weight", "==", 1), {"aliens"}),
    (where("rank", "!=", "a"), {"boats", "clocks", "deer", "eels"}),
    (where("weight", ">", 1.5), {"boats", "clocks"}),
    (where("weight", ">=", 2), {"boats", "clocks"}),
    (where("weight", "<", 2), {"aliens"}),
    (where("weight", "<=", 2.0), {"aliens", "boats"}),
    (where("rank", ">", "a"), {"boats", "clocks"}),
    (where("rank", "in", ["a", "c", "z"]), {"aliens", "boats"}),
    (where("rank", "in", "abc"), {"aliens", "boats", "clocks"}),
    (where("rank", "nin", ["a", "c"]), {"clocks", "deer", "eels"}),
    (where("weight", "in", [1.0, 3.0]), {"aliens", "clocks"}),
    (where("quality", "contains", "high"), {"aliens"}),
    (where("identifier", "contains", "78"), {"aliens", "boats", "clocks"}),
    (where("quality", "any", ["high", "low"]), {"aliens", "clocks"}),
    (where("quality", "all", ["medium", "high"]), {"aliens"}),
    (where("quality", "==", ["medium"]), {"boats"}),
    (where("identifier", "text_match", "6FTR78Y"), {"boats"}),
    (where("identifier", "text_match", "6ftr78y"), set()),
    (where("identifier", "text_match_insensitive", "6ftr78y"), {"boats"}),
    (where("note", "text_match_insensitive", "sea"), {"eels"}),
    (where("none", "is_empty"), {p[0] for p in PEOPLE}),
    (where("note", "is_empty"), {"aliens", "boats", "clocks", "deer"}),
    (where("tags", "is_empty"), {p[0] for p in PEOPLE}),
    (where("year", "==", 1994), {"deer"}),
    (where("year", ">", 1994), {"eels"}),
    (where("draft", "==", 1), {"deer"}),
    (where("no such key", "==", "a"), set()),
    (where("no such key", "!=", "a"), {p[0] for p in PEOPLE}),
    (where("ref_doc_id", "==", "doc2"), {"boats", "clocks"}),
    (where("doc_id", "in", ["doc1", "doc3"]), {"aliens", "eels"}),
    (where("document_id", "==", "None"), {"deer"}),
    (where("_node_type", "==", "TextNode"), {p[0] for p in PEOPLE}),
    (MetadataFilters(filters=[]), {p[0] for p in PEOPLE}),
    (group("and", one("rank", "!=", "b"), one("weight", ">", 1)), {"boats"}),
    (group("or", one("rank", "==", "b"), one("year", "==", 1994)), {"clocks", "deer"}),
    (group("not", one("rank", "==", "b"), one("year", "==", 1994)), {"aliens", "boats", "eels"}),
)  # fmt: skip


@pytest.mark.parametrize(("filters", "expected"), CASES, ids=[str(c[0].filters)[:70] for c in CASES])
def test_filters_are_core_s(both: Both, filters: MetadataFilters, expected: set[str]) -> None:
    """Each operator and condition lets through what core's simple store lets through, as written here."""
    assert set(both.check(both.query(filters))) == expected
    assert {n.node_id for n in both.ours.get_nodes(filters=filters)} == expected


NESTED: tuple[tuple[MetadataFilters, set[str]], ...] = (
    (group("and", one("weight", ">", 0), group("or", one("rank", "==", "a"), one("rank", "==", "b"))), {"aliens", "clocks"}),
    (group("or", group("and", one("weight", ">", 1), one("rank", "==", "c")), one("year", "<", 1994.2)), {"boats", "deer"}),
    (group("not", group("and", one("weight", ">", 1), one("weight", "<", 3)), one("year", ">", 0)), {"aliens", "clocks"}),
    (group("and", group("not", group("not", one("rank", "==", "a")))), {"aliens"}),
    (group("and", group("and"), one("rank", "==", "a")), {"aliens"}),
)  # fmt: skip


@pytest.mark.parametrize(("filters", "expected"), NESTED)
def test_nested_filters(both: Both, filters: MetadataFilters, expected: set[str]) -> None:
    """Groups hold groups, to any depth that a person writes; core's simple store refuses them."""
    assert {n.node_id for n in both.ours.get_nodes(filters=filters)} == expected


@pytest.mark.parametrize(
    "filters",
    [
        where("rank", ">", 3),
        where("weight", "text_match", "a"),
        where("weight", "contains", "a"),
        where("quality", "<", 2),
        where("weight", "any", ["a"]),
        where("weight", "in", None),
    ],
)
def test_what_cannot_be_compared_does_not_match(both: Both, filters: MetadataFilters) -> None:
    """Where core's simple store raises a TypeError, a value of another type is one that does not match."""
    with pytest.raises(TypeError):
        both.simple.query(both.query(filters))
    assert both.ours.get_nodes(filters=filters) == []


def test_too_deep_a_filter_is_refused() -> None:
    """A filter of a hundred levels is an InputError, not a RecursionError."""
    deep = where("a", "==", 1)
    for _ in range(100):
        deep = group("not", deep)
    with pytest.raises(InputError, match="nested more than"):
        condition_of(deep)
    for _ in range(5000):
        deep = group("not", deep)
    with pytest.raises(InputError, match="nested more than"):
        condition_of(deep)


@pytest.mark.parametrize("wrong", [{"a": 1}, "a == 1", where("a", "==", 1).filters])
def test_what_is_no_filter_is_refused(wrong: Any) -> None:
    """A dict, a text or a bare list in place of MetadataFilters is an InputError that says what to give."""
    with pytest.raises(InputError, match=r"give MetadataFilters\("):
        condition_of(wrong)


def test_half_a_surrogate_pair_is_no_node_s_id(both: Both) -> None:
    """An id that no stored text can hold finds nothing."""
    assert both.ours.get_nodes(["\ud800"]) == []
    assert both.ours.get_nodes(filters=where("name", "in", ["\ud800"])) == []


def test_own_ids_of_the_user_are_found(tmp_path: Path) -> None:
    """A user's own metadata `doc_id` is what a filter on it tests, where core's store puts the source document there."""
    both = Both(tmp_path / "i", HashEmbedder())
    both.ours.add(
        [node("a", "src", "one text", {"doc_id": "mine", "author": {"name": "Ada"}}, both.embedder)]
    )

    def found(filters: MetadataFilters) -> list[str]:
        return [n.node_id for n in both.ours.get_nodes(filters=filters)]

    assert found(where("doc_id", "==", "mine")) == found(where("document_id", "==", "src")) == ["a"]
    assert found(where("doc_id", "==", "src")) == []
    assert found(where("author.name", "==", "Ada")) == ["a"]
    assert found(where("author", "is_empty")) == []


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": st.integers(-3, 3) | st.sampled_from([-1.5, 0.0, 2.0, 2.5]),
    "word": st.sampled_from(["", "a", "ab", "B", "é", "null"]),
    "list": st.lists(st.sampled_from(["a", "ab", "c"]), max_size=2),
    "mixed": st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["1", "a"]) | st.just(["a"]),
}
METADATA = st.fixed_dictionaries({}, optional=VALUES)
OPERANDS = st.integers(-3, 3) | st.sampled_from([2.5, 0.0]) | st.sampled_from(["a", "B", "ab"]) | st.lists(
    st.sampled_from(["a", "ab", "c"]), min_size=1, max_size=2
)  # fmt: skip
TESTS = st.builds(
    lambda key, operator, value: MetadataFilter(key=key, operator=operator, value=value),
    st.sampled_from([*VALUES, "ref_doc_id"]),
    st.sampled_from(list(FilterOperator)),
    OPERANDS,
)
FILTERS = st.builds(group, st.sampled_from(["and", "or", "not"]), TESTS, TESTS) | st.builds(
    group, st.just("and"), TESTS
)
NAMES = st.sampled_from([f"n{i}" for i in range(8)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(NAMES, METADATA), min_size=1, max_size=4)),
        st.tuples(st.just("delete"), st.sampled_from(["d0", "d1", "None"])),
        st.tuples(st.just("nodes"), st.none() | st.lists(NAMES, max_size=3), st.none() | FILTERS),
    ),
    min_size=2,
    max_size=6,
)


@pytest.fixture(scope="module")
def embedder() -> Iterator[HashEmbedder]:
    """One embedder for all examples."""
    yield HashEmbedder()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, filters=st.lists(FILTERS, min_size=3, max_size=6))
def test_any_changes_and_filters_give_core_s_answers(
    embedder: HashEmbedder, steps: list[tuple[Any, ...]], filters: list[MetadataFilters]
) -> None:
    """Whatever is added, replaced and deleted, filtered queries find what core's simple store finds, with its scores."""
    with tempfile.TemporaryDirectory() as folder:
        both = Both(Path(folder) / "i", embedder)
        for what, *told in steps:
            if what == "add":
                rows = dict(told[0])
                both.add([node(n, f"d{int(n[1]) % 3}" if n != "n7" else "", f"word{n} thing", m, embedder) for n, m in rows.items()])  # fmt: skip
            elif what == "delete":
                both.delete(told[0])
            else:
                try:
                    both.simple.query(both.query(told[1]))
                except TypeError:  # it would stop half-way
                    continue
                both.delete_nodes(*told)
        both.check(both.query())
        for chosen in filters:
            try:
                both.simple.query(both.query(chosen))
            except TypeError:
                both.ours.query(both.query(chosen))
            else:
                both.check(both.query(chosen))
