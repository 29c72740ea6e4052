"""The second stage of a search: a reranker reads query and text together and orders the candidates anew."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit.rerankers.base import Reranker
from embedkit.tasks import Task, get_task, resolve_instruction
from embedkit_indexes.results import RerankReport, SearchResult, reordered

if TYPE_CHECKING:
    from embedkit_indexes.request import SearchRequest

#: How many candidates of the first stage are scored where nobody says.
DEPTH = 50


def widened(request: SearchRequest, rerank: Reranker, depth: int) -> SearchRequest:
    """Return the request of the first stage, for `depth` candidates or k. Raises InputError."""
    if not isinstance(rerank, Reranker):
        raise InputError(
            f"rerank is {rerank!r:.60}, {type(rerank).__name__}: pass a Reranker, such as get_reranker(name) gives"
        )
    try:
        depth = int(operator.index(depth))
    except TypeError:
        raise InputError(f"rerank_depth is {depth!r}: give a whole number") from None
    if depth < 1:
        raise InputError(f"rerank_depth is {depth}: give 1 or more candidates")
    return replace(request, k=max(request.k, depth))


def rerank_results(
    results: Sequence[SearchResult],
    reranker: Reranker,
    k: int,
    request: SearchRequest,
    tasks: Mapping[str, Task],
) -> list[SearchResult]:
    """Return the results with the `k` best of their hits by the reranker's score; equal ones stay in their order.

    `tasks` are those stored with the index. Raises what the reranker raises.
    """
    named = get_task(request.task, tasks) if isinstance(request.task, str) else request.task
    # What is asked for in words alone has an instruction too: words take none, a reranker may.
    given = resolve_instruction(named, request.instruction)
    out = []
    for result in results:
        instruction = given
        if given is None and reranker.info.instruction_trained:
            instruction = result.instruction  # the embedder's own default
        started = perf_counter()
        texts = [hit.text for hit in result.hits]
        scores, tokens = reranker.measured(result.query, texts, instruction=instruction)
        report = RerankReport(reranker.info.name, len(texts), tokens, perf_counter() - started)
        # Python's sort is stable, reversed too.
        order = sorted(range(len(texts)), key=scores.tolist().__getitem__, reverse=True)[:k]
        out.append(reordered(result, order, scores.tolist(), report))
    return out
