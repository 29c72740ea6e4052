"""Exact nearest neighbours of many queries, block by block: memory is that of one block of scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16_384


def nearest(
    queries: NDArray[np.float32], documents: NDArray[np.float32], k: int, block: int = _BLOCK
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Return for each query the numbers and scores of its k nearest documents, best first, ties by number.

    `documents` are multiplied `block` rows at a time.
    """
    best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    for start in range(0, len(documents), block):
        scores = queries @ documents[start : start + block].T
        take = min(k, scores.shape[1])
        limits = np.partition(scores, -take, axis=1)[:, -take]
        for i, limit in enumerate(limits):
            # All that tie with the last are taken in, so that the cut below is by number.
            local = np.flatnonzero(scores[i] >= limit)
            numbers = np.concatenate([best[i][0], local + start])
            values = np.concatenate([best[i][1], scores[i, local]])
            order = np.lexsort((numbers, -values))[:k]
            best[i] = numbers[order], values[order]
    return best
