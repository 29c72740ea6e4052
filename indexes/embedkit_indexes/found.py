"""What a search found in an index's rows, and the result that is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from embedkit_indexes.results import SearchResult, late_hits, late_result

if TYPE_CHECKING:
    from embedkit.embedder import Embedder
    from embedkit_indexes.snapshot import Ranking, Snapshot


class Found(NamedTuple):
    """What one query found; `cosines` and `bm25` hold what is known of each row."""

    query: str
    task: str | None
    instruction: str | None
    encoded: str
    obeys: bool
    ranking: Ranking
    cosines: dict[int, float]
    bm25: dict[int, float]


def result_of(snapshot: Snapshot, embedder: Embedder | None, found: Found) -> SearchResult:
    """Return the result whose hits are read when they are asked for; `embedder` is None for a search by words."""
    query, task, instruction, encoded, obeys, ranking, cosines, bm25 = found
    hits = late_hits(ranking, snapshot.places(ranking.rows), cosines, bm25)
    if embedder is None:
        return SearchResult(query, task, instruction, encoded, obeys, 0, hits)
    return late_result(
        query=query, task=task, instruction=instruction, encoded=encoded, obeys=obeys, hits=hits,
        embedder=embedder,
    )  # fmt: skip
