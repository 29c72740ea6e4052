"""Nearest neighbours by FAISS: the only file that imports it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedkit.errors import CorruptIndexError, MissingExtraError
from embedkit.threads import thread_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "faiss.index"
# Up to here one query scans everything in some 30 ms on a laptop core, and nothing need be trained.
EXACT_LIMIT = 100_000
# Filtered subsets up to this size are scanned exactly, whatever the engine.
_SUBSET_LIMIT = 50_000
_TRAIN_PER_CELL = 64
_BLOCK = 65_536


class Engine(Protocol):
    """Find the k best rows for each query vector."""

    def search(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (scores, row numbers), each [queries, k], best first; -1 where there are fewer than k.

        `rows` restricts the search to those row numbers, ascending.
        """
        ...

    def plan(self, k: int, rows: int | None = None) -> dict[str, Any]:
        """Say in plain values how a search would go."""
        ...


def build(folder: Path, vectors: NDArray[np.float32], exact_limit: int = EXACT_LIMIT) -> dict[str, Any]:
    """Choose the engine for these unit vectors, write its file if it has one, return its description."""
    n, dim = vectors.shape
    if n <= exact_limit:
        return {"type": "exact"}
    faiss = _faiss()
    cells = max(1, min(int(4 * n**0.5), n // 39))
    index = faiss.index_factory(dim, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index = _to_gpu(index)
    index.train(_sample(vectors, cells * _TRAIN_PER_CELL))
    for start in range(0, n, _BLOCK):
        index.add(vectors[start : start + _BLOCK])
    # A GPU index cannot be written.
    faiss.write_index(_to_cpu(index), str(folder / FILE))
    return {"type": "ivf-sq8", "cells": cells, "nprobe": max(8, cells // 32), "rerank": 4}


def open_engine(folder: Path, vectors: NDArray[np.float32], description: Mapping[str, Any]) -> Engine:
    """Open the engine that `build` described."""
    if description["type"] == "exact":
        return ExactEngine(vectors)
    if description["type"] == "ivf-sq8":
        return IVFEngine(folder / FILE, vectors, description)
    raise CorruptIndexError(f"{folder} uses engine {description['type']!r}, unknown here: update embedkit")


class ExactEngine:
    """Compare the query with every vector, where they lie in the mapped file."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def search(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Engine.search`."""
        if rows is None:
            return _knn(queries, self._vectors, k)
        return _knn_subset(queries, self._vectors, k, rows)

    def plan(self, k: int, rows: int | None = None) -> dict[str, Any]:
        """See `Engine.plan`."""
        return {"engine": "exact", "scanned": len(self._vectors) if rows is None else rows, "k": k}


class IVFEngine:
    """Probe the nearest cells of an IVF-SQ8 index, then rank the candidates by their exact vectors."""

    def __init__(self, path: Path, vectors: NDArray[np.float32], description: Mapping[str, Any]) -> None:
        faiss = _faiss()
        try:
            # FAISS for Windows is built without mapped inverted lists.
            self._index = faiss.read_index(str(path), 0 if sys.platform == "win32" else faiss.IO_FLAG_MMAP)
        except RuntimeError as e:
            raise CorruptIndexError(f"{path} cannot be read by FAISS: rebuild with `embedkit index`") from e
        self._vectors = vectors
        self._nprobe = int(description["nprobe"])
        self._cells = int(description["cells"])
        self._rerank = int(description["rerank"])

    def search(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Engine.search`; never fewer than k while k rows match."""
        import numpy as np

        if rows is not None and len(rows) <= _SUBSET_LIMIT:
            return _knn_subset(queries, self._vectors, k, rows)
        faiss = _faiss()
        depth = min(len(self._vectors), max(k * self._rerank, 100))
        selector = None if rows is None else faiss.IDSelectorBatch(rows)
        parameters = faiss.SearchParametersIVF(nprobe=self._nprobe, sel=selector)
        _, found = self._index.search(queries, depth, params=parameters)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        best = np.full((len(queries), k), -1, dtype=np.int64)
        wanted = min(k, len(self._vectors) if rows is None else len(rows))
        for i, probed in enumerate(found):
            candidates = np.sort(probed[probed >= 0])
            if len(candidates) < wanted:
                # The probed cells hold too few matches: scan all that match instead.
                candidates = np.arange(len(self._vectors)) if rows is None else rows
            s, r = _knn_subset(queries[i : i + 1], self._vectors, k, candidates)
            scores[i], best[i] = s[0], r[0]
        return scores, best

    def plan(self, k: int, rows: int | None = None) -> dict[str, Any]:
        """See `Engine.plan`."""
        if rows is not None and rows <= _SUBSET_LIMIT:
            return {"engine": "exact over the filter's matches", "scanned": rows, "k": k}
        share = self._nprobe / self._cells
        return {
            "engine": "ivf-sq8, exact re-ranking",
            "cells": self._cells,
            "nprobe": self._nprobe,
            "scanned": int(len(self._vectors) * share),
            "reranked": min(len(self._vectors), max(k * self._rerank, 100)),
            "k": k,
        }


def _knn(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import numpy as np

    faiss = _faiss()
    # FAISS pads with -1 on its own; asking for no more than there is saves the heap.
    top = min(k, len(vectors))
    if _gpu_count() and len(queries) * len(vectors) > 10_000_000:
        scores, rows = faiss.knn_gpu(
            _gpu_resources(), queries, vectors, top, metric=faiss.METRIC_INNER_PRODUCT
        )
    else:
        scores, rows = faiss.knn(queries, vectors, top, metric=faiss.METRIC_INNER_PRODUCT)
    if top < k:
        scores = np.pad(scores, ((0, 0), (0, k - top)), constant_values=-np.inf)
        rows = np.pad(rows, ((0, 0), (0, k - top)), constant_values=-1)
    return scores, rows


def _knn_subset(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search the given rows exactly, a block of them at a time."""
    import numpy as np

    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    best = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        s, r = _knn(queries, np.ascontiguousarray(vectors[block]), k)
        s = np.concatenate([scores, s], axis=1)
        r = np.concatenate([best, np.where(r >= 0, block[r], -1)], axis=1)
        order = np.argsort(-s, axis=1, kind="stable")[:, :k]
        scores, best = np.take_along_axis(s, order, axis=1), np.take_along_axis(r, order, axis=1)
    return scores, best


def _sample(vectors: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    import numpy as np

    if size >= len(vectors):
        return np.ascontiguousarray(vectors)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))
    return np.ascontiguousarray(vectors[rows])


_ready: list[Any] = []


def _faiss() -> Any:
    if not _ready:
        try:
            import faiss
        except ImportError as e:
            raise MissingExtraError("searching", "cpu") from e
        except RuntimeError as e:
            raise MissingExtraError(
                f"FAISS is installed but broken ({e}); run `embedkit doctor`. Searching", "cpu"
            ) from e
        faiss.omp_set_num_threads(thread_count())
        # The default of 1.15 sends batches of up to some hundred queries down the slow path.
        faiss.cvar.distance_compute_blas_threshold = 20
        _ready.append(faiss)
    return _ready[0]


def _gpu_count() -> int:
    faiss = _faiss()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


_resources: list[Any] = []


def _gpu_resources() -> Any:
    if not _resources:
        _resources.append(_faiss().StandardGpuResources())
    return _resources[0]


def _to_gpu(index: Any) -> Any:
    return _faiss().index_cpu_to_gpu(_gpu_resources(), 0, index) if _gpu_count() else index


def _to_cpu(index: Any) -> Any:
    return _faiss().index_gpu_to_cpu(index) if _gpu_count() else index
