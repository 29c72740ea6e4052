"""Exact search over vectors where they lie: one query, batches, subsets. FAISS is handed in by `faiss_engine`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedkit_indexes import gpu
from embedkit_indexes.planner import fetches
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Found = tuple[NDArray[np.float32], NDArray[np.int64]]

# From so many queries on, converting a block to float32 for a matrix product beats comparing float16 one by one.
_BATCH = 24
_BLOCK = 32_768


def wrap(faiss: Any, vectors: NDArray[np.generic]) -> Any:
    """Return a FAISS index over the vectors where they lie, float16 or float32 [rows, dim]; nothing is copied."""
    import numpy as np

    rows, dim = vectors.shape
    if vectors.dtype == np.float16:
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(dim)
    flat = np.ascontiguousarray(vectors).reshape(-1).view(np.uint8)
    # Its owner is an empty shared pointer, which only lives as long as the vector that it is part of.
    nobody = faiss.MaybeOwnedVectorUInt8()
    index.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(flat), flat.nbytes, nobody.owner)
    index.ntotal = rows
    index.referenced_objects = [flat]
    return index


class ExactScan:
    """Compare queries with all vectors of a segment, or with a subset; threads may share it."""

    def __init__(self, faiss: Any, vectors: NDArray[np.generic]) -> None:
        self._faiss = faiss
        self.vectors = vectors
        self.index = wrap(faiss, vectors)

    def search(self, queries: NDArray[np.float32], k: int, allowed: RowSet | None = None) -> Found:
        """Return (scores float32, rows int64), each [queries, k]: best first, ties by row; -inf and -1 at the end."""
        count = len(self.vectors) if allowed is None else allowed.count
        top = min(k, count)
        if not top or not len(queries):
            return pad(None, len(queries), k)
        if len(queries) >= _BATCH:
            found = self._in_blocks(queries, top, None if allowed is None else allowed.numbers)
        elif allowed is None:
            found = self.index.search(queries, top)
        elif fetches(len(self.vectors), count):
            found = self.among(queries, top, allowed.numbers)
        else:
            selector = self._faiss.IDSelectorBitmap(allowed.packed)
            parameters = self._faiss.SearchParameters(sel=selector)
            found = self.index.search(queries, top, params=parameters)
        return pad(by_row(*found), len(queries), k)

    def among(self, queries: NDArray[np.float32], k: int, numbers: NDArray[np.int64]) -> Found:
        """Return the k best of these rows, k at most their number."""
        scores, places = wrap(self._faiss, self.vectors[numbers]).search(queries, k)
        return scores, numbers[places]

    def _in_blocks(self, queries: NDArray[np.float32], k: int, numbers: NDArray[np.int64] | None) -> Found:
        import numpy as np

        if k <= gpu.MOST_RESULTS and gpu.device_count(self._faiss):
            return gpu.search(self._faiss, queries, self.vectors, k, numbers)
        best: Found | None = None
        rows = len(self.vectors) if numbers is None else len(numbers)
        for start in range(0, rows, _BLOCK):
            own = slice(start, min(rows, start + _BLOCK))
            block = self.vectors[own] if numbers is None else self.vectors[numbers[own]]
            scores, places = self._faiss.knn(
                queries,
                np.asarray(block, dtype=np.float32),
                min(k, len(block)),
                metric=self._faiss.METRIC_INNER_PRODUCT,
            )
            found = places + start if numbers is None else numbers[own][places]
            best = (scores, found) if best is None else merge(best, (scores, found), k)
        assert best is not None
        return best


def merge(one: Found, other: Found, k: int) -> Found:
    """Return the k best of two results, those of `one` first where scores are equal."""
    import numpy as np

    scores = np.concatenate([one[0], other[0]], axis=1)
    rows = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def by_row(scores: NDArray[np.float32], rows: NDArray[np.int64]) -> Found:
    """Order equal scores by row, in place; FAISS leaves them as its heap had them."""
    import numpy as np

    same = scores[:, 1:] == scores[:, :-1]
    if not same.any():
        return scores, rows
    for i in np.flatnonzero(same.any(axis=1)):
        order = np.lexsort((rows[i], -scores[i]))
        scores[i], rows[i] = scores[i][order], rows[i][order]
    return scores, rows


def pad(found: Found | None, queries: int, k: int) -> Found:
    """Return the result widened to [queries, k]: -inf and -1 where nothing was found."""
    import numpy as np

    if found is not None and found[0].shape[1] == k:
        return found
    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    rows = np.full((queries, k), -1, dtype=np.int64)
    if found is not None:
        width = found[0].shape[1]
        scores[:, :width], rows[:, :width] = found
    return scores, rows
