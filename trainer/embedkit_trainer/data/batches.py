"""Batches: token ids and identities of the rows of one step, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedkit.errors import InputError
from embedkit_trainer.data.store import TokenStore

_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold the global batch of one step: B queries and N >= B documents.

    Row i owns `documents[offsets[i]:offsets[i + 1]]`; its positive comes first. `query_keys` hash the rendered
    queries (instruction included), `text_keys` the documents' texts, `id_keys` their ids (0: none). `scores` are
    graded similarities of query and positive (nan: none), `teacher_scores` one number a document (nan: none); both
    are None where no row has one. The teacher's vectors are as wide as the teacher. `rows` are (source, row),
    `sources` the first of each pair.
    """

    step: int
    queries: list[NDArray[np.int32]]
    documents: list[NDArray[np.int32]]
    offsets: NDArray[np.int64]
    query_keys: NDArray[np.int64]
    text_keys: NDArray[np.int64]
    id_keys: NDArray[np.int64]
    scores: NDArray[np.float32] | None
    teacher_scores: NDArray[np.float32] | None
    teacher_queries: NDArray[np.float32] | None
    teacher_documents: NDArray[np.float32] | None
    rows: list[tuple[int, int]]
    sources: NDArray[np.int64]


class Teacher(Protocol):
    """Give a source's teacher vectors by number: float32 `[len(numbers), dim]`."""

    def queries(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors that the queries of these rows regress."""
        ...

    def documents(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of these documents, counted through the store (`TokenStore.document_starts`)."""
        ...


def assemble(
    stores: Sequence[TokenStore],
    rows: Sequence[tuple[int, int]],
    *,
    step: int,
    negatives: int | Sequence[int],
    seed: int,
    teacher: Sequence[Teacher] | None = None,
    longest: bool = False,
) -> Batch:
    """Gather the batch of (source, row) pairs from the sources' stores; token ids are views, not copies.

    `negatives` is the most that a row brings, one number or one a source. A row with more brings that many in a
    circle from a place drawn by a hash of (seed, step, source, row): another one each time, the same in every process.
    `longest` takes the longest instead, for a trial of the worst batch. `teacher` holds one for each source. Raises InputError for counts that do not fit the stores.
    """
    counts = [negatives] * len(stores) if isinstance(negatives, int) else list(negatives)
    for what, given in (("negatives", counts), ("teachers", stores if teacher is None else teacher)):
        if len(given) != len(stores):
            raise InputError(f"{len(given)} {what} for {len(stores)} stores: give one each")
    if any(n < 0 for n in counts):
        raise InputError(f"negatives is {min(counts)}: give 0 or more")
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    if longest:
        places = [_longest(stores[s], i, counts[s]) for s, i in rows]
    else:
        places = _places(pairs, step, seed)
    found = [stores[s].row(i, place, counts[s]) for (s, i), place in zip(rows, places, strict=True)]
    sizes = [len(row.documents) for row in found]
    offsets = np.zeros(len(found) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    scores = np.array([row.score for row in found], np.float32)
    teacher_scores = None
    if any(row.teacher_scores is not None for row in found):
        pieces = [row.teacher_scores or (float("nan"),) * n for row, n in zip(found, sizes, strict=True)]
        teacher_scores = np.array([x for piece in pieces for x in piece], np.float32)
    teacher_queries = teacher_documents = None
    if teacher is not None:
        numbers = [
            stores[s].document_numbers(i, place, counts[s])
            for (s, i), place in zip(rows, places, strict=True)
        ]
        flat = np.array([n for piece in numbers for n in piece], np.int64)
        teacher_queries = _scattered(teacher, pairs[:, 0], pairs[:, 1], "queries")
        teacher_documents = _scattered(teacher, np.repeat(pairs[:, 0], sizes), flat, "documents")
    return Batch(
        step=step,
        queries=[row.query for row in found],
        documents=[d for row in found for d in row.documents],
        offsets=offsets,
        query_keys=np.array([row.query_key for row in found], np.int64),
        text_keys=np.array([k for row in found for k in row.text_keys], np.int64),
        id_keys=np.array([k for row in found for k in row.id_keys], np.int64),
        scores=None if np.isnan(scores).all() else scores,
        teacher_scores=teacher_scores,
        teacher_queries=teacher_queries,
        teacher_documents=teacher_documents,
        rows=list(rows),
        sources=pairs[:, 0].copy(),
    )


def _places(pairs: NDArray[np.int64], step: int, seed: int) -> list[int]:
    """Return one hash of (seed, step, source, row) a pair, by the mixing of splitmix64."""
    state = np.full(len(pairs), seed % (1 << 64), np.uint64)
    for part in (np.uint64(step), pairs[:, 0].astype(np.uint64), pairs[:, 1].astype(np.uint64)):
        state = state + part + np.uint64(_GOLDEN)
        for shift, factor in _MIX:
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    places: list[int] = state.tolist()
    return places


def _longest(store: TokenStore, i: int, count: int) -> int:
    """Return the place from which a circle of `count` negatives is longest."""
    start, end = store.document_starts[i : i + 2].tolist()
    lengths = store.all_document_lengths[start + 1 : end].astype(np.int64)
    if count >= len(lengths):
        return 0
    return int(np.argmax(sum((np.roll(lengths, -n) for n in range(count)), np.zeros_like(lengths))))


def _scattered(
    teacher: Sequence[Teacher], sources: NDArray[np.int64], numbers: NDArray[np.int64], side: str
) -> NDArray[np.float32]:
    """Look up each source's numbers at its own teacher, and put the vectors where the numbers stood."""
    parts = []
    for source in np.unique(sources):
        at = np.flatnonzero(sources == source)
        one = teacher[source]
        parts.append((at, one.queries(numbers[at]) if side == "queries" else one.documents(numbers[at])))
    out = np.empty((len(numbers), parts[0][1].shape[1]), np.float32)
    for at, vectors in parts:
        out[at] = vectors
    return out
