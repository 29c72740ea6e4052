"""Facts about reciprocal rank fusion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit.errors import InputError
from embedkit_indexes.fusion import reciprocal_rank_fusion

RANKING = st.lists(st.integers(0, 15), max_size=10, unique=True)


def test_the_formula() -> None:
    """Weight over constant plus rank, summed over the rankings that hold the item."""
    fused = reciprocal_rank_fusion([["a", "b"], ["b", "c"]], weights=[2.0, 1.0])
    assert fused == [("b", 2 / 62 + 1 / 61), ("a", 2 / 61), ("c", 1 / 62)]
    assert reciprocal_rank_fusion([["a"], ["a"]], constant=0) == [("a", 2.0)]


def test_no_ranking_gates_another() -> None:
    """What stands in one ranking alone is fused all the same, also when the other ranking is empty."""
    assert [item for item, _ in reciprocal_rank_fusion([["a", "b"], []])] == ["a", "b"]
    assert {item for item, _ in reciprocal_rank_fusion([["a"], ["b"]])} == {"a", "b"}


def test_equal_scores_keep_their_order() -> None:
    """Ties go to what appears first, the first ranking first; a second run gives the same."""
    rankings = [["b", "x"], ["a", "y"], ["c", "z"]]
    assert [item for item, _ in reciprocal_rank_fusion(rankings)] == ["b", "a", "c", "x", "y", "z"]


def test_repeats_count_once() -> None:
    """The first place of a repeated item counts, and the items behind it move up."""
    assert reciprocal_rank_fusion([["a", "a", "b"]]) == [("a", 1 / 61), ("b", 1 / 62)]


def test_weight_zero_switches_a_ranking_off() -> None:
    """A ranking of weight 0 brings in nothing."""
    assert reciprocal_rank_fusion([["a"], ["b"]], weights=[1, 0]) == [("a", 1 / 61)]


def test_nothing_to_fuse() -> None:
    """No ranking at all gives no result."""
    assert reciprocal_rank_fusion([]) == []


@given(st.lists(RANKING, max_size=4), st.integers(1, 20))
def test_k_cuts_the_whole_list(rankings: list[list[int]], k: int) -> None:
    """The best k are the first k of all, best first, each item once."""
    whole = reciprocal_rank_fusion(rankings)
    assert reciprocal_rank_fusion(rankings, k=k) == whole[:k]
    assert {item for item, _ in whole} == {item for ranking in rankings for item in ranking}
    assert len({item for item, _ in whole}) == len(whole)
    assert [s for _, s in whole] == sorted((s for _, s in whole), reverse=True)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"weights": [1.0]}, "1 weights for 2 rankings"),
        ({"weights": [1.0, -1.0]}, "from 0 on"),
        ({"weights": [1.0, float("nan")]}, "from 0 on"),
        ({"constant": -1.0}, "constant"),
        ({"k": 0}, "at least one"),
    ],
)
def test_wrong_options(wrong: dict[str, object], sentence: str) -> None:
    """Wrong weights, a negative constant and k below 1 are refused in one sentence."""
    with pytest.raises(InputError, match=sentence):
        reciprocal_rank_fusion([["a"], ["b"]], **wrong)  # type: ignore[arg-type]
