"""Consistency and the negatives' threshold, judged by a real embedder whose cosines are known."""

from __future__ import annotations

import numpy as np
import pytest

from embedkit import get_embedder
from embedkit.errors import InputError
from embedkit_trainer.data.rows import parse_row
from embedkit_trainer.synthesis.filters.example import Changed, Dropped
from embedkit_trainer.synthesis.filters.ranking import ConsistencyFilter, Cosines, NegativeFilter
from tests.trainer.synthesis.made_rows import example, reasons


@pytest.fixture(scope="module")
def cosines(tmp_path_factory: pytest.TempPathFactory) -> Cosines:
    """A word-vector embedder: the cosine of "query" and "near97" is 0.97, and so on; "away" is opposite."""
    lines = ["query 1 0", "away -1 0"]
    for percent in (99, 97, 90, 80, 50):
        x = percent / 100
        lines.append(f"near{percent} {x:.6f} {np.sqrt(1 - x * x):.6f}")
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Cosines(get_embedder(str(path), cache=False))


def test_the_scores_are_the_cosines_of_positive_and_negatives(cosines: Cosines) -> None:
    """In the order of the row, and again the same from what is remembered."""
    rows = [example("query", "near97", negatives=["near50", "away"]).row, example("query", "query").row]
    for _ in range(2):
        first, second = cosines.of(rows)
        assert first == pytest.approx([0.97, 0.5, -1], abs=1e-5)
        assert second == pytest.approx([1.0], abs=1e-5)


def test_a_row_whose_negative_is_nearer_is_dropped(cosines: Cosines) -> None:
    """Every negative must be farther than the positive; a row without negatives has nothing against it."""
    rows = [
        example("query", "near97", negatives=["near90"]),
        example("query", "near90", negatives=["near50", "near97"]),
        example("query", "near90", negatives=["near90"]),
        example("query", "away"),
    ]
    judge = ConsistencyFilter(cosines)
    assert reasons(judge, rows) == ["", "inconsistent", "inconsistent", ""]
    assert getattr(judge.check(rows)[1], "detail", "") == "positive 0.900, negatives[1] 0.970"


def test_relabelling_swaps_positive_and_best_negative_with_all_that_is_theirs(cosines: Cosines) -> None:
    """Ids and scores go with their texts; what the trainer ignores stays as it was."""
    row = example(
        "query", "near80", negatives=["near50", "near97"], positive_id=7, negative_ids=["a", "b"],
        teacher_scores=[3, 1, 2], metadata={"model": "m"},
    )  # fmt: skip
    (outcome,) = ConsistencyFilter(cosines, relabel=True).check([row])
    assert isinstance(outcome, Changed) and outcome.reason == "relabelled" and outcome.before is row
    assert outcome.after.record == {
        "query": "query", "positive": "near97", "negatives": ["near50", "near80"], "positive_id": "b",
        "negative_ids": ["a", "7"], "teacher_scores": [2.0, 1.0, 3.0], "metadata": {"model": "m"},
    }  # fmt: skip
    assert outcome.after.row == parse_row(outcome.after.record, line=1)


def test_a_positive_without_negative_ids_keeps_its_identity_when_it_becomes_a_negative(
    cosines: Cosines,
) -> None:
    """The new positive has none, and so is nobody's class."""
    row = example("query", "near80", negatives=["near50", "near97"], positive_id="p")
    (outcome,) = ConsistencyFilter(cosines, relabel=True).check([row])
    assert isinstance(outcome, Changed)
    assert outcome.after.row.positive_id is None
    assert outcome.after.row.negative_ids == (None, "p")


def test_a_graded_row_and_a_tie_cannot_be_relabelled(cosines: Cosines) -> None:
    """A score belongs to its pair; of two equal texts none is better."""
    rows = [
        example("query", "near80", negatives=["near97"], score=4.5),
        example("query", "near80", negatives=["near80"]),
    ]
    assert reasons(ConsistencyFilter(cosines, relabel=True), rows) == ["inconsistent", "inconsistent"]


def test_negatives_near_the_positive_leave_their_row(cosines: Cosines) -> None:
    """Above 95% of the positive's score; the row stays, with none left too; below, nothing changes."""
    rows = [
        example("query", "near97", negatives=["near50", "near99", "near80"], negative_ids=["a", "b", "c"]),
        example("query", "near90", negatives=["near97"]),
        example("query", "near97", negatives=["near90"]),
        example("query", "away", negatives=["near50"]),
        example("query", "near97"),
    ]
    outcomes = NegativeFilter(cosines, 0.95).check(rows)
    assert [isinstance(o, Changed) for o in outcomes] == [True, True, False, True, False]
    assert not any(isinstance(o, Dropped) for o in outcomes)
    first, second = outcomes[0], outcomes[1]
    assert isinstance(first, Changed) and isinstance(second, Changed)
    assert first.after.row.negatives == ("near50", "near80")
    assert first.after.row.negative_ids == ("a", "c")
    assert "negatives" not in second.after.record


def test_a_ratio_that_makes_no_sense_is_refused(cosines: Cosines) -> None:
    """More than 0, at most 1."""
    with pytest.raises(InputError, match="largest ratio is 1.5"):
        NegativeFilter(cosines, 1.5)
