"""Search a snapshot by vectors, by words, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit_indexes.request import SearchRequest
from embedkit_indexes.rows import RowSet
from embedkit_indexes.snapshot import Ranking, Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rankings = list[tuple[Ranking, dict[int, float], dict[int, float]]]

# How deep each of the two rankings is read before they are fused.
_FUSED_DEPTH = 100


def search_snapshot(
    snapshot: Snapshot,
    queries: Sequence[str],
    vectors: NDArray[np.float32] | None,
    allowed: Sequence[RowSet | None],
    request: SearchRequest,
) -> Rankings:
    """Return for each query its ranking, and the cosine and the BM25 score of each row where they are known.

    `vectors` are those of the queries, float32 [queries, dim]; None with mode "lexical".
    """
    if vectors is None and request.mode != "lexical":
        raise ValueError(f"a {request.mode} search needs vectors")
    k = min(request.k, len(snapshot))
    if not k:
        return [(Ranking([], []), {}, {}) for _ in queries]
    if vectors is None or request.mode == "lexical":
        found = (snapshot.lexical(q, k, allowed) for q in queries)
        return [(r, {}, _by_row(r)) for r in found]
    depth = k if request.mode == "dense" else max(k, _FUSED_DEPTH)
    scores, rows = snapshot.nearest(vectors, depth, allowed, request.effort)
    dense = [_ranking(s, r) for s, r in zip(scores, rows, strict=True)]
    if request.mode == "dense":
        return [(r, {}, {}) for r in dense]
    lexical = [snapshot.lexical(q, depth, allowed) for q in queries]
    return [
        _fused(snapshot, vector, d, w, request) for vector, d, w in zip(vectors, dense, lexical, strict=True)
    ]


def _fused(
    snapshot: Snapshot,
    vector: NDArray[np.float32],
    dense: Ranking,
    words: Ranking,
    request: SearchRequest,
) -> tuple[Ranking, dict[int, float], dict[int, float]]:
    from embedkit_indexes.fusion import reciprocal_rank_fusion

    best = reciprocal_rank_fusion([dense.rows, words.rows], request.weights, k=request.k)
    rows = [row for row, _ in best]
    cosines = _by_row(dense)
    missing = [r for r in rows if r not in cosines]
    cosines.update(zip(missing, snapshot.cosine(vector, missing), strict=True))
    return Ranking([score for _, score in best], rows), cosines, _by_row(words)


def _ranking(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> Ranking:
    """Return what was found for one query, without the -1 that stand where there was less than was asked for."""
    listed: list[int] = rows.tolist()
    if -1 in listed:
        found = rows >= 0
        return Ranking(scores[found].tolist(), rows[found].tolist())
    return Ranking(scores.tolist(), listed)


def _by_row(ranking: Ranking) -> dict[int, float]:
    return dict(zip(ranking.rows, ranking.scores, strict=True))
