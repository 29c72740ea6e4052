"""Search an index for LlamaIndex: by a vector that is there already, by words, by both, or for variety."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from embedkit.errors import InputError
from embedkit_indexes.llama_filters import condition_of
from embedkit_indexes.planner import SearchEffort
from embedkit_indexes.request import EVEN, Mode, make_request
from embedkit_indexes.results import SearchHit, late_hits
from embedkit_indexes.searching import search_snapshot
from embedkit_indexes.snapshot import Ranking, Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.filters import Condition

_WORDS = (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH)
_BOTH = (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID)
_KNOWN = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR, *_WORDS, *_BOTH)
# How many of the nearest are looked at for variety: so many times k, and no fewer than this.
_MMR_FACTOR = 4.0
_MMR_LEAST = 256


def answer_query(
    snapshot: Snapshot, query: VectorStoreQuery, options: dict[str, Any]
) -> tuple[SearchHit, ...]:
    """Return what a vector store's query asks for, best first; `options` are those of the call.

    Raises InputError for a mode that there is not, and for a query without what its mode needs.
    """
    if query.mode not in _KNOWN:
        names = ", ".join(m.value for m in _KNOWN)
        raise InputError(
            f"query mode {getattr(query.mode, 'value', query.mode)!r} is not supported: use one of {names}"
        )
    condition = condition_of(query.filters, node_ids=query.node_ids or None, doc_ids=query.doc_ids)
    k = query.similarity_top_k
    if query.mode in _WORDS:
        return search_hits(snapshot, text=_text(query), k=k, condition=condition, mode="lexical")
    if query.query_embedding is None:
        raise InputError("the query has no vector: pass query_embedding, or ask by words (text_search)")
    name = str(snapshot.manifest.embedder["name"])
    vector = _unit_query(query.query_embedding, snapshot.manifest.dim, name)
    if query.mode is VectorStoreQueryMode.MMR:
        return search_mmr(snapshot, vector, k, condition, {"mmr_threshold": query.mmr_threshold, **options})
    if query.mode in _BOTH:
        return search_hits(
            snapshot, vector=vector, text=_text(query), k=query.hybrid_top_k or k, condition=condition,
            mode="hybrid", weights=_weights(query.alpha),
        )  # fmt: skip
    return search_hits(snapshot, vector=vector, k=k, condition=condition)


def _text(query: VectorStoreQuery) -> str:
    if not query.query_str or not query.query_str.strip():
        raise InputError("a query by words needs words: pass query_str")
    return query.query_str


def _weights(alpha: float | None) -> tuple[float, float]:
    """Return the weights of vectors and words that `alpha` stands for."""
    if alpha is None:
        return EVEN
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha!r}: give a number from 0 (words alone) to 1 (vectors alone)")
    return (float(alpha), 1.0 - float(alpha))


def search_hits(
    snapshot: Snapshot,
    *,
    vector: NDArray[np.float32] | None = None,
    text: str = "",
    k: int,
    condition: Condition | None = None,
    mode: Mode = "dense",
    weights: Sequence[float] = EVEN,
    effort: SearchEffort | float | None = None,
) -> tuple[SearchHit, ...]:
    """Return the `k` best chunks, best first; `vector` is a query's, float32 [dim], of unit length or zeros."""
    request = make_request(
        None, None, k, lang=None, where=condition, effort=effort, mode=mode, weights=weights
    )
    allowed = snapshot.allowed(request.condition)
    vectors = None if vector is None else vector[None, :]
    ((ranking, cosines, bm25),) = search_snapshot(snapshot, [text], vectors, allowed, request)
    return late_hits(ranking, snapshot.places(ranking.rows), cosines, bm25)


def search_mmr(
    snapshot: Snapshot,
    vector: NDArray[np.float32],
    k: int,
    condition: Condition | None,
    options: dict[str, Any],
) -> tuple[SearchHit, ...]:
    """Return `k` chunks by maximal marginal relevance, as core computes it, from among the nearest.

    `options` may hold `mmr_threshold` (0..1, 1 is nearness alone; 0.5), and `mmr_prefetch_k` or `mmr_prefetch_factor`:
    how many of the nearest are looked at.
    """
    import numpy as np

    k = make_request(None, None, k, lang=None, where=None, effort=None, mode="dense", weights=EVEN).k
    threshold = options.get("mmr_threshold")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise InputError(
            f"mmr_threshold is {threshold!r}: give a number from 0 (variety) to 1 (nearness alone)"
        )
    depth = min(_prefetch(k, options), len(snapshot)) or 1
    scores, rows = snapshot.nearest(vector[None, :], int(depth), snapshot.allowed(condition))
    numbers = [n for n in (rows[0].tolist() if scores.size else []) if n >= 0]
    if not numbers:
        return ()
    vectors = [np.asarray(_vector(snapshot, n), np.float32) for n in numbers]
    found, order = get_top_k_mmr_embeddings(
        vector,  # type: ignore[arg-type]
        vectors,  # type: ignore[arg-type]
        similarity_fn=lambda a, b: float(np.dot(a, b)),
        similarity_top_k=k,
        embedding_ids=numbers,
        mmr_threshold=threshold,
    )
    return late_hits(Ranking(found, order), snapshot.places(order), {}, {})


def _prefetch(k: int, options: dict[str, Any]) -> float:
    asked, factor = options.get("mmr_prefetch_k"), options.get("mmr_prefetch_factor")
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < k:
            raise InputError(
                f"mmr_prefetch_k is {asked!r}: give a whole number, at least similarity_top_k ({k})"
            )
        return asked
    if factor is not None and not (isinstance(factor, int | float) and 1 <= factor < float("inf")):
        raise InputError(f"mmr_prefetch_factor is {factor!r}: give a number from 1 on")
    return max(_MMR_LEAST, k * float(_MMR_FACTOR if factor is None else factor))


def _vector(snapshot: Snapshot, number: int) -> Any:
    segment, row = snapshot.place(number)
    return snapshot.segments[segment].vectors[row]


def hits_where(snapshot: Snapshot, condition: Condition | None) -> tuple[SearchHit, ...]:
    """Return all chunks that satisfy a condition, in the index's order."""
    import numpy as np

    rows: list[int] = []
    for start, segment, allowed in zip(
        snapshot.offsets, snapshot.segments, snapshot.allowed(condition), strict=False
    ):
        own = np.arange(len(segment)) if allowed is None else allowed.numbers
        rows += (own + start).tolist()
    return late_hits(Ranking([0.0] * len(rows), rows), snapshot.places(rows), {}, {})


def _unit_query(embedding: Sequence[float], dim: int, name: str) -> NDArray[np.float32]:
    """Return a query's vector at unit length, float32 [dim]. Raises InputError for one of another model's length."""
    import numpy as np

    try:
        row = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError):
        row = np.empty(0)
    if row.shape != (dim,):
        found = f"has {row.size:,} numbers" if row.ndim == 1 else f"is no list of numbers (shape {row.shape})"
        raise InputError(
            f"the query's vector {found}, the index holds vectors of {dim:,}: embed queries with {name}, which the "
            "index was built with"
        )
    if not np.isfinite(row).all():
        raise InputError("the query's vector holds NaN or infinity: mend the embed model")
    peak = float(np.abs(row).max(initial=0.0))
    row = row / peak if peak else row
    length = float(np.linalg.norm(row))
    unit: NDArray[np.float32] = (row / length if length else row).astype(np.float32)
    return unit
