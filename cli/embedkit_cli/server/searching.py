"""POST /search: one query under several tasks, encoded in one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from embedkit.errors import InputError, UnknownNameError
from embedkit.tasks import Task, get_task
from embedkit_cli.server.contexts import context_of
from embedkit_cli.server.embedders import ServedEmbedder, prepared
from embedkit_cli.server.embeddings import check_text
from embedkit_cli.server.errors import ApiError, invalid, json_bytes, sentence
from embedkit_cli.server.hits import shown_hit
from embedkit_cli.server.schemas import SearchBody, check_cost, check_filter, read_body
from embedkit_cli.server.service import Service
from embedkit_cli.server.snippets import Passage, by_words
from embedkit_cli.server.units import Unit
from embedkit_cli.server.workers import check_wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_cli.server.config import Limits
    from embedkit_indexes import Index, SearchResult
    from embedkit_indexes.filters import Condition


class Asked(NamedTuple):
    """One way to ask: a task, or an instruction, or neither."""

    task: Task | None
    instruction: str | None


class Question(NamedTuple):
    """What is asked, of which version of an index; `vectors` are those of the query under each instruction."""

    name: str
    version: Index
    body: SearchBody
    vectors: Mapping[Unit, NDArray[np.float32]]
    encode_ms: float


async def search(service: Service, request: Request) -> Response:
    """Search an index: one query, under one task or several, with a filter, by vectors, words or both."""
    service.check_ready()
    raw = request.scope["embedkit.body"]
    limits = service.config.limits
    if len(raw) > limits.search_body:
        raise ApiError(413, f"the body is larger than {limits.search_body:,} bytes, which no search needs")
    body = read_body(SearchBody, raw)
    check_cost(body, limits)
    served = service.indexes.get(body.index)
    index = served.current()
    check_text(body.query, limits, "query", "the query", visible=True)
    if body.where is not None:
        check_filter(body.where)
    if body.rerank is not None and body.rerank not in service.rerankers:
        raise invalid(UnknownNameError("reranker", body.rerank, service.rerankers).message, "rerank")
    asked = _asked(body, index, limits)
    shared = service.rerankers.get(body.rerank or "")
    try:
        with service.searchers.place(), shared.workers.place() if shared else nullcontext():
            began = time.perf_counter()
            vectors = {} if body.mode == "lexical" else await _encoded(index, body.query, asked)
            question = Question(served.name, index, body, vectors, _ms(began))
            workers = shared.workers if shared else service.searchers
            content = await workers.run(_found, service, question, asked)
    except InputError as e:
        raise invalid(sentence(e).replace(str(served.directory), served.name), _field(e, body)) from None
    return Response(content, media_type="application/json")


async def _encoded(index: Index, query: str, asked: list[Asked]) -> dict[Unit, NDArray[np.float32]]:
    embedder = index.embedder
    assert isinstance(embedder, ServedEmbedder)  # the only kind that a served index is opened with
    units = list(dict.fromkeys(Unit("query", embedder.instruction_for(*a), query) for a in asked))
    done = await embedder.batcher.encode(units)
    return dict(zip(units, done.vectors, strict=True))


def _asked(body: SearchBody, index: Index, limits: Limits) -> list[Asked]:
    out = []
    for number, task in enumerate(body.tasks or ()):
        if isinstance(task, str):
            try:
                out.append(Asked(get_task(task, index.tasks), None))
            except UnknownNameError as e:
                raise invalid(e.message, f"tasks.{number}") from None
        else:
            check_text(task.instruction, limits, f"tasks.{number}", "the instruction", visible=True)
            out.append(Asked(None, task.instruction))
    return out or [Asked(None, None)]


def _field(error: InputError, body: SearchBody) -> str | None:
    """Return the field that an index's complaint is about, None where it may be another."""
    if isinstance(error, UnknownNameError) and error.kind == "language":
        return "lang"
    return "where" if body.where is not None else None


def _condition(where: str | Mapping[str, Any] | None) -> Condition | None:
    if where is None:
        return None
    from embedkit_indexes.filters import from_dict
    from embedkit_indexes.where import parse_where

    return parse_where(where) if isinstance(where, str) else from_dict(where)


def _found(service: Service, question: Question, asked: list[Asked]) -> bytes:
    """Search for each task and return the answer's JSON; runs in a thread of its own."""
    body = question.body
    condition = _condition(body.where)
    shared = service.rerankers.get(body.rerank or "")
    second = {"rerank": shared.reranker, "rerank_depth": body.rerank_depth} if shared else {}
    prepared.set(question.vectors)
    found = [_search(question, one, condition, second) for one in asked]
    results = [record for _, record in found]
    if body.snippets:
        check_wanted()
        add_snippets(service, question, [result for result, _ in found], results)
    return json_bytes(
        {
            "index": question.name,
            "generation": question.version.manifest.generation,
            "query": body.query,
            "results": results,
            "encode_ms": question.encode_ms,
        }
    )


def _search(
    question: Question, asked: Asked, condition: Condition | None, second: Mapping[str, Any]
) -> tuple[SearchResult, dict[str, Any]]:
    check_wanted()
    began = time.perf_counter()
    body = question.body
    result = question.version.search(
        body.query, task=asked.task, instruction=asked.instruction, k=body.k, lang=body.lang, where=condition,
        effort=body.recall, mode=body.mode, weights=body.weights or (1.0, 1.0), **second,
    )  # fmt: skip
    out: dict[str, Any] = {
        # Words are searched without an instruction; the task was asked for all the same.
        "task": asked.task.name if asked.task is not None else result.task,
        "instruction": result.instruction,
        "obeys": result.obeys,
        "truncated": result.truncated,
        "hits": [shown_hit(hit) for hit in result.hits],
        "took_ms": _ms(began),
    }
    if result.rerank is not None:
        # The model's own name may be a path.
        out["rerank"] = {**asdict(result.rerank), "reranker": body.rerank}
    if body.explain:
        out |= _explained(question.version, result, body.mode)
    if body.context is not None:
        check_wanted()
        out["context"] = context_of(question.version, result, body.context, body.mode)
    return result, out


def add_snippets(
    service: Service, question: Question, found: Sequence[SearchResult], results: Sequence[dict[str, Any]]
) -> None:
    """Put the best-matching passage into the first hits of each result; by meaning, into as many as the limits allow."""
    body, limits, embedder = question.body, service.config.limits, question.version.embedder
    by_meaning = body.snippets == "meaning" and body.mode != "lexical"
    each = min(limits.meanings // len(results), limits.snippets) if by_meaning else 0
    near = [(r, hit) for r, record in zip(found, results, strict=True) for hit in record["hits"][:each]]
    if near:
        assert isinstance(embedder, ServedEmbedder)
        vectors = question.vectors
        asked = [(vectors[Unit("query", r.instruction, body.query)], hit["text"]) for r, hit in near]
        _show([hit for _, hit in near], service.passages.best(embedder, asked))
    rest = [hit for record in results for hit in record["hits"][each : limits.snippets]]
    _show(rest, by_words(body.query, [hit["text"] for hit in rest]))


def _show(hits: Sequence[dict[str, Any]], best: Sequence[Passage | None]) -> None:
    for hit, passage in zip(hits, best, strict=True):
        if passage is not None:
            hit["snippet"] = {
                "text": hit["text"][passage.start : passage.end], "start": passage.start, "end": passage.end
            }  # fmt: skip


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)


def _explained(index: Index, result: SearchResult, mode: str) -> dict[str, Any]:
    tokenizer = None if mode == "lexical" else index.embedder.tokenizer
    tokens = None if tokenizer is None else tokenizer.encode(result.encoded).tokens
    return {"encoded": None if mode == "lexical" else result.encoded, "tokens": tokens}
