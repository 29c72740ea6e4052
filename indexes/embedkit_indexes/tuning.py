"""An index measures itself: recall@10 against exact search on held-out queries, over efforts and depths of refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from embedkit_indexes.planner import Point, pick

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

K = 10
QUERIES = 256
DEPTHS = (10, 20, 30, 40, 60, 80, 100, 120, 160, 240, 320, 480, 640)
# One exact comparison, with its jump to the vector's place, takes as long as so many of codes; so does what a cell
# costs before its first code.
REFINE_COST = 35
CELL_COST = 80
# Beyond this the curve is not followed: exact search is what is meant there.
_ENOUGH = 0.997
_NOISE = 0.5
_TIE = 1e-6
_FEWEST = 16
# A manifest need not hold more of the curve than somebody may ask for.
STEPS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.955, 0.965, 0.975, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9965)


class Sample(NamedTuple):
    """Queries, float32 [m, dim]; the row each was made from, int64 [m], -1 for a real query."""

    queries: NDArray[np.float32]
    sources: NDArray[np.int64]


def held_out(
    vectors: NDArray[np.generic], queries: NDArray[np.float32] | None = None, count: int = QUERIES
) -> Sample:
    """Return real queries, at most `count` of them, or documents perturbed so that they resemble queries.

    The noise is the difference of two other documents, so it has the spectrum of the data: white noise would be nearly
    orthogonal to everything and perturb nothing. A query's own document counts neither as found nor as missed.
    """
    import numpy as np

    rng = np.random.default_rng(1)
    if queries is not None and len(queries):
        chosen = np.sort(rng.choice(len(queries), min(count, len(queries)), replace=False))
        real = np.ascontiguousarray(queries[chosen], dtype=np.float32)
        return Sample(_unit(real), np.full(len(real), -1, dtype=np.int64))
    count = min(count, len(vectors))
    sources = np.sort(rng.choice(len(vectors), count, replace=False))
    one, other = (vectors[np.sort(rng.integers(0, len(vectors), count))].astype(np.float32) for _ in range(2))
    noise = _unit(rng.permutation(one) - rng.permutation(other))
    return Sample(_unit(vectors[sources].astype(np.float32) + np.float32(_NOISE) * noise), sources)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(length, np.float32(1e-12)), dtype=np.float32)


def without(rows: NDArray[np.int64], sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `rows`, [m, k], each without its own source: [m, k - 1], the others in their order."""
    import numpy as np

    own = (rows == sources[:, None]) & (sources[:, None] >= 0)
    # Where the source was not found, the last goes.
    own[:, -1] |= ~own.any(axis=1)
    return rows[np.nonzero(~own)[0], np.nonzero(~own)[1]].reshape(len(rows), -1)


def clear_cut(
    sample: Sample, scores: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[Sample, NDArray[np.int64]]:
    """Return the queries whose K nearest are certain, and their rows, [m, K], of what was found for K + 2.

    Where the next ones have the same score, as many copies of a text have, an answer with those is as good, and would
    count as a miss. Where that is so of nearly all queries, all stay.
    """
    import numpy as np

    own = rows == sample.sources[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, : K + 1]
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    clear = scores[:, K - 1] - scores[:, K] > _TIE
    if clear.sum() < _FEWEST:
        clear[:] = True
    return Sample(sample.queries[clear], sample.sources[clear]), rows[clear, :K]


def recall_by_depth(
    candidates: NDArray[np.int64], truth: NDArray[np.int64], depths: Iterable[int]
) -> list[float]:
    """Return, for each depth, the share of `truth` [m, k] among the first `depth` of `candidates` [m, d].

    A candidate that is compared exactly and belongs to the truth is found: one search serves all depths.
    """
    import numpy as np

    wanted = max(1, int((truth >= 0).sum()))
    # Where each of the truth's rows stands among the candidates: [m, k, d] by a query at a time.
    places = []
    for found, true in zip(candidates, truth, strict=True):
        hit = found[None, :] == true[true >= 0, None]
        places.append(np.where(hit.any(axis=1), hit.argmax(axis=1), np.iinfo(np.int64).max))
    flat = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
    return [float((flat < d).sum()) / wanted for d in depths]


def efforts(limit: int) -> list[int]:
    """Return the efforts to try, ascending, about 1.4 apart, up to `limit`."""
    out: list[int] = []
    value = 1.0
    while round(value) < limit:
        if not out or round(value) != out[-1]:
            out.append(round(value))
        value *= 2**0.5
    return [*out, limit]


def walk(
    search: Callable[[int, int], tuple[NDArray[np.int64], float]],
    truth: NDArray[np.int64],
    sources: NDArray[np.int64],
    tried: Sequence[int],
    *,
    depths: Sequence[int] = DEPTHS,
    target: float = 0.95,
) -> list[Point]:
    """Measure every pair of effort and depth, and return the Pareto curve, ascending in recall.

    `search(effort, depth)` returns the unranked candidates, best first by their codes, and the mean number of codes
    compared for a query. Ascending efforts are tried until recall ends rising, then some about the target's.
    """
    points: list[Point] = []
    best = 0.0

    def measure(effort: int) -> float:
        found, codes = search(effort, max(depths) + 1)
        at = recall_by_depth(without(found, sources), truth, depths)
        points.extend(
            Point(effort, d, r, codes + REFINE_COST * d)
            for d, r in zip(depths, at, strict=True)
            if d <= found.shape[1]
        )
        return at[-1]

    for effort in tried:
        recall = measure(effort)
        if recall >= _ENOUGH or (recall > 0.9 and recall - best < 1e-4):
            break
        best = recall
    for effort in between(pareto(points), target):
        measure(effort)
    return pareto(points)


def between(curve: Sequence[Point], target: float) -> list[int]:
    """Return up to three efforts between the one picked for the target and the last that misses it."""
    chosen = pick(curve, target).effort
    below = max((p.effort for p in curve if p.effort < chosen), default=chosen)
    return sorted({below + (chosen - below) * part // 4 for part in (1, 2, 3)} - {below, chosen})


def pareto(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other one beats in both cost and recall, ascending."""
    out: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, -p.recall)):
        if not out or p.recall > out[-1].recall:
            out.append(p)
    return out


def thinned(curve: Sequence[Point], steps: Sequence[float] = STEPS) -> list[Point]:
    """Return the cheapest point that reaches each step of recall, and the top one, ascending."""
    kept = [min((p for p in curve if p.recall >= s), key=lambda p: p.cost, default=None) for s in steps]
    return sorted({p for p in [*kept, *curve[-1:]] if p is not None}, key=lambda p: p.cost)


def timed(curve: Sequence[Point], seconds: Callable[[Point], float]) -> list[Point]:
    """Return the curve with each point's seconds for a query filled in."""
    return [replace(p, seconds=seconds(p)) for p in curve]
