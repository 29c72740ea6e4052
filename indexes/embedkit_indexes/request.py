"""What is asked of an index: checked once, the same for one index and for several."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

from embedkit.errors import InputError, UnknownNameError
from embedkit.tasks import Task
from embedkit.texts import is_visible
from embedkit_indexes.planner import SearchEffort

if TYPE_CHECKING:
    from embedkit.rerankers.base import Reranker
    from embedkit_indexes.filters import Condition

Mode = Literal["dense", "hybrid", "lexical"]
MODES = ("dense", "hybrid", "lexical")
# Of vectors and words.
EVEN = (1.0, 1.0)


class SearchOptions(TypedDict, total=False):
    """What `Index.search` may be told beside the query."""

    task: str | Task | None
    instruction: str | None
    k: int
    lang: str | None
    where: str | Condition | None
    effort: SearchEffort | float | None
    mode: Mode
    weights: Sequence[float]
    rerank: Reranker | None
    rerank_depth: int


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Say how to search: see `Index.search`."""

    task: str | Task | None = None
    instruction: str | None = None
    k: int = 10
    condition: Condition | None = None
    effort: SearchEffort | None = None
    mode: Mode = "dense"
    weights: tuple[float, float] = EVEN


def make_request(
    task: str | Task | None,
    instruction: str | None,
    k: int,
    *,
    lang: str | None,
    where: str | Condition | None,
    effort: SearchEffort | float | None,
    mode: Mode,
    weights: Sequence[float],
) -> SearchRequest:
    """Check what the caller gave. Raises InputError, UnknownNameError."""
    try:
        k = int(operator.index(k))
    except TypeError:
        raise InputError(f"k is {k!r}: give a whole number") from None
    if k < 1:
        raise InputError(f"k is {k}: ask for 1 or more results")
    if mode not in MODES:
        raise UnknownNameError("mode", str(mode), MODES)
    if effort is not None and (
        isinstance(effort, bool) or not isinstance(effort, float | int | SearchEffort)
    ):
        raise InputError(f"effort is {effort!r}: give a recall such as 0.95, or a SearchEffort")
    if isinstance(effort, float | int):
        effort = SearchEffort(recall=float(effort))
    both = EVEN if weights is EVEN else _checked_weights(weights)
    return SearchRequest(task, instruction, k, _condition(lang, where), effort, mode, both)


def _checked_weights(given: Sequence[float]) -> tuple[float, float]:
    weights = _numbers(given)
    if len(weights) != 2 or min(weights) < 0 or not max(weights) > 0 or not sum(weights) < float("inf"):
        raise InputError(
            f"weights are {weights!r}: give two numbers, of vectors and words, none below 0, not both 0"
        )
    return weights[0], weights[1]


def _numbers(weights: Sequence[float]) -> tuple[float, ...]:
    try:
        if not isinstance(weights, str):
            return tuple(float(w) for w in weights)
    except (TypeError, ValueError):
        pass
    raise InputError(f"weights are {weights!r}: give two numbers, of vectors and words")


def _condition(lang: str | None, where: str | Condition | None) -> Condition | None:
    if lang is None and where is None:
        return None
    from embedkit_indexes.filters import Condition, F
    from embedkit_indexes.where import parse_where

    condition = parse_where(where) if isinstance(where, str) else where
    if condition is not None and not isinstance(condition, Condition):
        raise InputError(f'where is {where!r}: write it as text, or as F("year") >= 2020')
    if lang is None:
        return condition
    spoken = F("lang") == lang
    return spoken if condition is None else spoken & condition


def checked_queries(queries: Sequence[str]) -> list[str]:
    """Return the queries as a list. Raises InputError for one that is no text, or blank."""
    if isinstance(queries, str):
        raise InputError(f"several queries were expected, got one string: write [{queries[:30]!r}]")
    queries = list(queries)
    for number, query in enumerate(queries):
        where = f" {number + 1}" if len(queries) > 1 else ""
        if not isinstance(query, str):
            raise InputError(f"query{where} is {type(query).__name__}, not str")
        if not is_visible(query):
            raise InputError(f"query{where} is empty: write what you look for")
    return queries
