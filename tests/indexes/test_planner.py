"""The choice of an engine, and of how hard it searches."""

from __future__ import annotations

import pytest

from embedkit.errors import InputError
from embedkit_indexes.planner import (
    EngineConfig,
    Point,
    SearchEffort,
    cell_count,
    choose,
    fetches,
    pick,
    plan_search,
    resident_bytes,
    subspaces,
)

CURVE = [Point(4, 20, 0.80, 900), Point(16, 40, 0.956, 2400), Point(32, 40, 0.97, 3000), Point(256, 240, 0.994, 9000)]  # fmt: skip
MILLION = 1_000_000


@pytest.mark.parametrize(
    ("rows", "config", "expected"),
    [
        (1000, EngineConfig(), "exact"),
        (MILLION, EngineConfig(), "ivf-pq"),
        (MILLION, EngineConfig(recall=0.999), "ivf-sq8"),
        (MILLION, EngineConfig(recall=1), "exact"),
        (MILLION, EngineConfig(recall=0.999, memory_budget=100_000_000), "ivf-pq"),
        (100_000, EngineConfig(memory_budget=20_000_000), "ivf-pq"),
        (MILLION, EngineConfig("hnsw"), "hnsw"),
        (MILLION, EngineConfig("OPQ32,IVF64,PQ32"), "OPQ32,IVF64,PQ32"),
    ],
)
def test_size_target_and_budget_choose_the_engine(rows: int, config: EngineConfig, expected: str) -> None:
    """Small segments are scanned, large ones coded; the budget beats the preference, a named type beats all."""
    assert choose(rows, 384, config) == expected


@pytest.mark.parametrize("kind", ["auto", "ivf-sq8"])
def test_a_budget_that_nothing_fits_is_refused(kind: str) -> None:
    """The error says what is needed and what there is."""
    with pytest.raises(InputError, match=r"1,000,000 vectors of 384 dimensions need .* MB .* is 1\.0 MB"):
        choose(MILLION, 384, EngineConfig(kind, memory_budget=1_000_000))


def test_four_bits_for_four_dimensions_are_the_smallest() -> None:
    """A million vectors of 384 dimensions stay below 65 MB, a sixth of eight bits and a tenth of float16."""
    kinds = ("ivf-pq", "ivf-rabitq", "ivf-sq8", "exact")
    pq, rabitq, sq8, exact = (resident_bytes(k, MILLION, 384) or 0 for k in kinds)
    assert pq < 65_000_000 < rabitq < 80_000_000 < 5 * rabitq < sq8 < exact
    assert resident_bytes("PQ32", MILLION, 384) is None


def test_cells_never_outnumber_what_can_be_trained() -> None:
    """Four times the root, and at least 39 rows for each."""
    assert cell_count(MILLION) == 4000
    assert [cell_count(n) for n in (1, 39, 100, 10_000)] == [1, 1, 2, 256]


@pytest.mark.parametrize(("dim", "parts"), [(384, 96), (300, 75), (50, 25), (51, 17), (49, 49)])
def test_every_dimension_can_be_coded(dim: int, parts: int) -> None:
    """Four dimensions a code, or three, two, one where they do not divide."""
    assert subspaces(dim) == parts


@pytest.mark.parametrize(("recall", "effort"), [(0.5, 4), (0.95, 16), (0.96, 32), (0.99, 256), (0.999, 256)])
def test_the_cheapest_point_that_reaches_the_recall_is_picked(recall: float, effort: int) -> None:
    """With a margin for the sample's error; beyond the curve, its top."""
    assert pick(CURVE, recall).effort == effort


def _plan(
    k: int = 10, effort: SearchEffort | None = None, allowed: int | None = None, **more: bool
) -> tuple[str, int, int]:
    found = plan_search(MILLION, k, CURVE[1], limit=4000, effort=effort, allowed=allowed, **more)
    return found.way, found.effort, found.depth


def test_filters_choose_the_way() -> None:
    """Few allowed rows are scanned, many are sought in their cells, nearly all in passing with a raised effort."""
    assert _plan() == ("probe", 16, 40)
    assert _plan(allowed=950_000) == ("probe", 17, 42)
    assert _plan(allowed=500_000) == ("cells", 16, 80)
    assert _plan(allowed=100_000)[0] == "cells"
    assert [_plan(allowed=n) for n in (10_000, 1000, 0)] == [("exact", 0, 0)] * 3


def test_a_graph_cannot_skip_cells() -> None:
    """Half allowed: twice the effort; fewer: everything is scanned."""
    assert _plan(allowed=600_000, cells=False) == ("probe", 53, 80)
    assert _plan(allowed=300_000, cells=False) == ("exact", 0, 0)


def test_more_results_need_more_effort() -> None:
    """Depth and cells grow with k; nearly all rows are scanned outright."""
    assert _plan(100) == ("probe", 36, 340)
    way, effort, depth = _plan(1000)
    assert way == "probe" and effort > 36 and depth >= 3000
    assert _plan(400_000)[0] == "exact"


def test_what_the_caller_asks_for_is_done() -> None:
    """nprobe, ef_search and refine are taken as given, k at least; a recall of one scans."""
    assert _plan(effort=SearchEffort(nprobe=99, refine=7)) == ("probe", 99, 10)
    assert _plan(effort=SearchEffort(ef_search=64)) == ("probe", 64, 40)
    assert _plan(effort=SearchEffort(nprobe=9999))[1] == 4000
    assert _plan(effort=SearchEffort(recall=1)) == ("exact", 0, 0)


def test_an_older_curve_is_read() -> None:
    """A point of a manifest that calls the candidates compared exactly `rerank` is read as one of today."""
    written = {"effort": 16, "recall": 0.956, "cost": 2400.0}
    assert (
        Point.from_plain({**written, "rerank": 40}) == Point.from_plain({**written, "refine": 40}) == CURVE[1]
    )


def test_few_rows_are_fetched_by_number() -> None:
    """A thousand of a million are fetched, a tenth is met in passing."""
    assert fetches(MILLION, 1000)
    assert not fetches(MILLION, 100_000)


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan")])
def test_an_impossible_recall_is_refused(value: float) -> None:
    """In the engine's target and in a search's."""
    for make in (EngineConfig, SearchEffort):
        with pytest.raises(InputError, match="share above 0"):
            make(recall=value)


def test_senseless_numbers_are_refused() -> None:
    """Each error names the argument and its value."""
    with pytest.raises(InputError, match="nprobe is 0"):
        SearchEffort(nprobe=0)
    for value in (2.5, True, "8"):
        with pytest.raises(InputError, match="whole number"):
            SearchEffort(refine=value)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="memory_budget is -5"):
        EngineConfig(memory_budget=-5)
