"""Nearest neighbours by FAISS: the only file that imports it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedkit.errors import CorruptIndexError, MissingExtraError
from embedkit.threads import thread_count
from embedkit_indexes.planner import EXACT_LIMIT, EngineConfig, SearchEffort, cell_count, choose
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Found = tuple[NDArray[np.float32], NDArray[np.int64]]

__all__ = ["EXACT_LIMIT", "FILE", "Engine", "EngineConfig", "SearchEffort", "build", "open_engine"]

FILE = "faiss.index"
_TRAIN_PER_CELL = 64
_BLOCK = 32_768


class Engine(Protocol):
    """Find the k best rows for each query vector."""

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        effort: SearchEffort | None = None,
    ) -> Found:
        """Return (scores, row numbers), each [queries, k], best first; -inf and -1 where there are fewer than k.

        `allowed` restricts the search to those rows; while k of them exist, k are returned.
        """
        ...

    def plan(
        self, k: int, allowed: RowSet | None = None, effort: SearchEffort | None = None
    ) -> dict[str, Any]:
        """Say in plain values how a search would go."""
        ...


def build(
    folder: Path,
    vectors: NDArray[np.generic],
    config: EngineConfig | None = None,
    queries: NDArray[np.float32] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Choose the engine for these unit vectors, write its file if it has one, return its description.

    `vectors` is float16 or float32 [rows, dim]; `queries`, float32 [m, dim], are real ones to tune on.
    """
    import numpy as np

    config = config or EngineConfig()
    rows, dim = vectors.shape
    kind = choose(rows, config)
    if kind == "exact" or rows < 100:
        return {"type": "exact", "files": [], "rows": rows, "dim": dim}
    faiss = _faiss()
    cells = cell_count(rows)
    index = faiss.index_factory(dim, f"RR{dim},IVF{cells},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    index.train(_sample(vectors, cells * _TRAIN_PER_CELL))
    for start in range(0, rows, _BLOCK):
        index.add(np.asarray(vectors[start : start + _BLOCK], dtype=np.float32))
    faiss.write_index(index, str(folder / FILE))
    return {"type": "ivf-rabitq", "files": [FILE], "rows": rows, "dim": dim, "cells": cells, "nprobe": 32, "rerank": 200}  # fmt: skip


def open_engine(folder: Path, vectors: NDArray[np.generic], description: Mapping[str, Any]) -> Engine:
    """Open the engine that `build` described over the same vectors, mapped read-only."""
    if description["type"] == "exact":
        return ExactEngine(vectors)
    if description["type"] == "ivf-rabitq":
        return IVFEngine(folder / FILE, vectors, description)
    raise CorruptIndexError(f"{folder} uses engine {description['type']!r}, unknown here: update embedkit")


class ExactEngine:
    """Compare the query with every vector, where they lie in the mapped file."""

    def __init__(self, vectors: NDArray[np.generic]) -> None:
        self._vectors = vectors
        self._index = _wrap(vectors) if len(vectors) else None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        effort: SearchEffort | None = None,
    ) -> Found:
        """See `Engine.search`."""
        faiss = _faiss()
        top = min(k, len(self._vectors) if allowed is None else allowed.count)
        if self._index is None or not top or not len(queries):
            return _pad(None, len(queries), k)
        parameters = None
        if allowed is not None:
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(allowed.packed))
        return _pad(self._index.search(queries, top, params=parameters), len(queries), k)

    def plan(
        self, k: int, allowed: RowSet | None = None, effort: SearchEffort | None = None
    ) -> dict[str, Any]:
        """See `Engine.plan`."""
        return {
            "engine": "exact",
            "scanned": len(self._vectors) if allowed is None else allowed.count,
            "k": k,
        }


class IVFEngine:
    """Probe the nearest cells of an IVF index, then rank the candidates by their exact vectors."""

    def __init__(self, path: Path, vectors: NDArray[np.generic], description: Mapping[str, Any]) -> None:
        faiss = _faiss()
        try:
            # FAISS for Windows is built without mapped inverted lists.
            base = faiss.read_index(str(path), 0 if sys.platform == "win32" else faiss.IO_FLAG_MMAP)
        except RuntimeError as e:
            raise CorruptIndexError(f"{path} cannot be read by FAISS: rebuild with `embedkit index`") from e
        if (base.ntotal, base.d) != vectors.shape:
            raise CorruptIndexError(f"{path} does not belong to these vectors: rebuild with `embedkit index`")
        self._exact = ExactEngine(vectors)
        self._base = base
        self._index = faiss.IndexRefine(base, self._exact._index)
        self._nprobe = int(description["nprobe"])
        self._rerank = int(description["rerank"])
        self._rows = len(vectors)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        effort: SearchEffort | None = None,
    ) -> Found:
        """See `Engine.search`."""
        faiss = _faiss()
        count = self._rows if allowed is None else allowed.count
        if count <= self._rows // 4 or k * 4 >= count or not len(queries):
            return self._exact.search(queries, k, allowed)
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed.packed)
        probing = faiss.SearchParametersPreTransform(
            index_params=faiss.IVFRaBitQSearchParameters(nprobe=self._nprobe, sel=selector)
        )
        depth = max(k * 4, self._rerank)
        parameters = faiss.IndexRefineSearchParameters(k_factor=depth / k, base_index_params=probing)
        scores, rows = self._index.search(queries, k, params=parameters)
        short = (rows[:, -1] < 0).nonzero()[0]
        if len(short):
            scores[short], rows[short] = self._exact.search(queries[short], k, allowed)
        return scores, rows

    def plan(
        self, k: int, allowed: RowSet | None = None, effort: SearchEffort | None = None
    ) -> dict[str, Any]:
        """See `Engine.plan`."""
        return {"engine": "ivf-rabitq", "nprobe": self._nprobe, "reranked": max(k * 4, self._rerank), "k": k}


def _wrap(vectors: NDArray[np.generic]) -> Any:
    """Return a FAISS index over the vectors where they lie, float16 or float32 [rows, dim]; nothing is copied."""
    import numpy as np

    faiss = _faiss()
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


def _pad(found: Found | None, queries: int, k: int) -> Found:
    import numpy as np

    scores = np.full((queries, k), -np.inf, dtype=np.float32)
    rows = np.full((queries, k), -1, dtype=np.int64)
    if found is not None:
        if found[0].shape[1] == k:
            return found
        scores[:, : found[0].shape[1]], rows[:, : found[1].shape[1]] = found
    return scores, rows


def _sample(vectors: NDArray[np.generic], size: int) -> NDArray[np.float32]:
    import numpy as np

    if size >= len(vectors):
        return np.ascontiguousarray(vectors, dtype=np.float32)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), size, replace=False))
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


_ready: list[Any] = []
_thread = threading.local()


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
        # The default of 1.15 sends batches of up to some hundred queries down the slow path.
        faiss.cvar.distance_compute_blas_threshold = 20
        _ready.append(faiss)
    if not hasattr(_thread, "set"):
        # OpenMP keeps this number for each thread that calls it.
        _ready[0].omp_set_num_threads(thread_count())
        _thread.set = True
    return _ready[0]
