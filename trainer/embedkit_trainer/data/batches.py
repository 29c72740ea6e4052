"""Batches: token ids and identities of the rows of one step, the same in every process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold the global batch of one step: B queries and N >= B documents.

    Row i owns `documents[offsets[i]:offsets[i + 1]]`; its positive comes first. `query_keys` hash the rendered
    queries (instruction included), `text_keys` the documents' texts, `id_keys` their ids (0: none). `scores` are
    graded similarities of query and positive, `teacher_scores` one number a document (nan: none), and the teacher's
    vectors are as wide as the teacher. `rows` are (source, row), `sources` the first of each pair.
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
