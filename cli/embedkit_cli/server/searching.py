"""POST /search: one query under several tasks, encoded in one batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from embedkit.tasks import Task, get_task
from embedkit_cli.server.batching import Unit
from embedkit_cli.server.embedders import ServedEmbedder, prepared
from embedkit_cli.server.embeddings import check_text
from embedkit_cli.server.errors import ApiError, invalid
from embedkit_cli.server.schemas import SearchBody, read_body
from embedkit_cli.server.service import Service

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes import Index, SearchHit, SearchResult
    from embedkit_indexes.filters import Condition


class Asked(NamedTuple):
    """One way to ask: a task, or an instruction, or neither."""

    task: Task | None
    instruction: str | None


class Question(NamedTuple):
    """What is asked, of which version of an index."""

    version: Index
    body: SearchBody
    condition: Condition | None


async def search(service: Service, request: Request) -> Response:
    """Answer POST /search."""
    service.check_ready()
    body = read_body(SearchBody, request.scope["embedkit.body"])
    limits = service.config.limits
    served = service.indexes.get(body.index)
    index = served.current()
    check_text(body.query, limits, "query", "the query", visible=True)
    if body.k > limits.k:
        raise invalid(f"k is {body.k:,}: ask for {limits.k:,} or fewer hits", "k")
    asked = _asked(body, index, limits.tasks, limits.text_characters)
    question = Question(index, body, _condition(body.where))
    if service.searching >= limits.searches:
        raise ApiError(
            429, f"the server is busy: {service.searching} searches wait; try again in 1 s", code="queue_full",
            headers={"Retry-After": "1"},
        )  # fmt: skip
    service.searching += 1
    try:
        vectors = {} if body.mode == "lexical" else await _encoded(index, body.query, asked)
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(service.searchers, _found, served.name, question, asked, vectors)
    finally:
        service.searching -= 1
    return Response(content, media_type="application/json")


async def _encoded(index: Index, query: str, asked: list[Asked]) -> dict[Unit, NDArray[np.float32]]:
    embedder = index.embedder
    assert isinstance(embedder, ServedEmbedder)  # the only kind that a served index is opened with
    units = list(dict.fromkeys(Unit("query", embedder.instruction_for(*a), query) for a in asked))
    done = await asyncio.wrap_future(embedder.batcher.submit(units))
    return dict(zip(units, done.vectors, strict=True))


def _asked(body: SearchBody, index: Index, most: int, longest: int) -> list[Asked]:
    if body.tasks is None:
        return [Asked(None, None)]
    if len(body.tasks) > most:
        raise invalid(f"{len(body.tasks)} tasks are more than the {most} that one search may have", "tasks")
    out = []
    for task in body.tasks:
        if isinstance(task, str):
            out.append(Asked(get_task(task, index.tasks), None))
        elif len(task.instruction) > longest:
            raise invalid(f"the instruction is longer than {longest:,} characters", "tasks")
        else:
            out.append(Asked(None, task.instruction))
    return out


def _condition(where: str | Mapping[str, Any] | None) -> Condition | None:
    if where is None:
        return None
    from embedkit_indexes.filters import from_dict
    from embedkit_indexes.where import parse_where

    return parse_where(where) if isinstance(where, str) else from_dict(where)


def _found(
    name: str,
    question: Question,
    asked: list[Asked],
    vectors: Mapping[Unit, NDArray[np.float32]],
) -> bytes:
    """Search for each task and return the answer's JSON; runs in a thread of its own."""
    token = prepared.set(vectors)
    try:
        results = [_result(question, one) for one in asked]
    finally:
        prepared.reset(token)
    version, body, _ = question
    answer = {
        "index": name,
        "generation": version.manifest.generation,
        "query": body.query,
        "results": results,
    }
    return orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS)


def _result(question: Question, asked: Asked) -> dict[str, Any]:
    version, body, condition = question
    began = time.perf_counter()
    result = version.search(
        body.query, task=asked.task, instruction=asked.instruction, k=body.k, lang=body.lang, where=condition,
        effort=body.recall, mode=body.mode, weights=body.weights or (1.0, 1.0),
    )  # fmt: skip
    out: dict[str, Any] = {
        "task": result.task,
        "instruction": result.instruction,
        "obeys": result.obeys,
        "truncated": result.truncated,
        "hits": [_hit(hit) for hit in result.hits],
    }
    if body.explain:
        out |= _explained(version, result, body.mode)
    return out | {"took_ms": round((time.perf_counter() - began) * 1000, 3)}


def _explained(index: Index, result: SearchResult, mode: str) -> dict[str, Any]:
    tokenizer = None if mode == "lexical" else index.embedder.tokenizer
    tokens = None if tokenizer is None else tokenizer.encode(result.encoded).tokens
    return {"encoded": None if mode == "lexical" else result.encoded, "tokens": tokens}


def _hit(hit: SearchHit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "score": hit.score,
        "document_id": hit.document_id,
        "chunk_id": hit.chunk_id,
        "position": hit.position,
        "title": hit.title,
        "text": hit.text,
        "lang": hit.lang,
        "source": shown_source(hit.source),
        "start": hit.start,
        "end": hit.end,
        "metadata": hit.metadata,
        "cosine": hit.cosine,
        "bm25": hit.bm25,
    }


def shown_source(source: str) -> str:
    """Return a source as a client may see it: of an absolute path, the last part alone."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(source)
        if path.is_absolute() or ".." in path.parts:
            return path.name
    return source
