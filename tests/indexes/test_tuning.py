"""How an index measures itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedkit_indexes import tuning
from embedkit_indexes.planner import Point


def _vectors(count: int, dim: int = 16) -> NDArray[np.float32]:
    out = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    return tuning._unit(out)


def test_perturbed_documents_are_near_their_sources_and_not_the_same() -> None:
    """Unit queries, each nearer to its own document than chance, below a cosine of one; the same in every run."""
    vectors = _vectors(500).astype(np.float16)
    sample = tuning.held_out(vectors, count=64)
    np.testing.assert_allclose(np.linalg.norm(sample.queries, axis=1), 1, atol=1e-5)
    cosines = (sample.queries * vectors[sample.sources].astype(np.float32)).sum(axis=1)
    assert cosines.min() > 0.5
    assert cosines.max() < 0.999
    assert (tuning.held_out(vectors, count=64).queries == sample.queries).all()


def test_real_queries_are_taken_as_they_are() -> None:
    """They have no source, and no more than asked for are taken."""
    queries = _vectors(40)
    sample = tuning.held_out(_vectors(500), queries, count=25)
    assert sample.queries.shape == (25, 16)
    assert (sample.sources == -1).all()
    assert np.abs(sample.queries[:, None] - queries[None]).sum(axis=2).min(axis=1).max() < 1e-5


def test_a_querys_own_document_does_not_count() -> None:
    """It is taken out where it was found; where not, the last place goes."""
    rows = np.array([[5, 1, 2], [7, 8, 9]])
    assert tuning.without(rows, np.array([5, -1])).tolist() == [[1, 2], [7, 8]]
    unfilled = np.array([[3, -1, -1]])
    assert tuning.without(unfilled, np.array([-1])).tolist() == [[3, -1]]


def test_one_search_gives_the_recall_of_every_depth() -> None:
    """A true row counts from the depth on at which it stands; missing truth (-1) is not wanted."""
    candidates = np.array([[3, 9, 1, 4]])
    assert tuning.recall_by_depth(candidates, np.array([[1, 3]]), [1, 2, 3, 4]) == [0.5, 0.5, 1.0, 1.0]
    assert tuning.recall_by_depth(candidates, np.array([[8, -1]]), [4, 640]) == [0.0, 0.0]


def test_efforts_rise_to_the_limit() -> None:
    """Ascending, without repetition, the limit included."""
    tried = tuning.efforts(100)
    assert tried == sorted(set(tried))
    assert (tried[0], tried[-1]) == (1, 100)
    assert tuning.efforts(1) == [1]


def test_the_walk_keeps_what_nothing_beats_and_ends_when_recall_does() -> None:
    """Every step raises both cost and recall, and no effort is tried beyond perfect recall, then some at the target."""
    truth = np.arange(10)[None]
    asked: list[int] = []

    def search(effort: int, depth: int) -> tuple[NDArray[np.int64], float]:
        asked.append(effort)
        found = np.full((1, depth), -1)
        found[0, :10] = np.where(np.arange(10) < effort, np.arange(10), 99)
        return found, 10.0 * effort

    curve = tuning.walk(search, truth, np.array([-1]), [2, 4, 10, 20], depths=(5, 10))
    assert asked[:3] == [2, 4, 10]
    # Then some between 4, which misses the target of 0.95, and 10.
    assert asked[3:] == [5, 7, 8]
    assert [p.recall for p in curve] == [0.2, 0.4, 0.5, 0.7, 0.8, 1.0]
    assert [p.cost for p in curve] == sorted(p.cost for p in curve)


def test_a_thinned_curve_reaches_what_the_whole_one_reaches() -> None:
    """For every step the cheapest point stays, and the top."""
    curve = [Point(i, 10, i / 100, float(i)) for i in range(1, 99)]
    thin = tuning.thinned(curve, (0.5, 0.9, 0.999))
    assert [p.effort for p in thin] == [50, 90, 98]


def test_only_answers_without_ties_are_measured_by() -> None:
    """A query whose tenth and eleventh score the same is left out, its own document counts for neither."""
    scores = np.repeat(np.linspace(1, 0.4, 12, dtype=np.float32)[None], 40, axis=0)
    rows = np.repeat(np.arange(12)[None], 40, axis=0)
    sources = np.full(40, -1)
    sources[:20] = 0
    scores[1, 11] = scores[1, 10]  # of the eleven that are not its own the tenth and the last
    scores[30, 10] = scores[30, 9]
    sample = tuning.Sample(np.zeros((40, 4), np.float32), sources)
    kept, truth = tuning.clear_cut(sample, scores, rows)
    assert len(kept.queries) == len(truth) == 38
    assert truth[0].tolist() == list(range(1, 11))
    assert truth[-1].tolist() == list(range(10))
    scores[:] = 1.0
    assert len(tuning.clear_cut(sample, scores, rows)[1]) == 40
