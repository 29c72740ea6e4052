"""Nearest neighbours by FAISS: the only file that imports it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedkit.errors import CorruptIndexError, InputError, MissingExtraError
from embedkit.threads import limit_blas, thread_count
from embedkit_indexes import engine_lists
from embedkit_indexes.engine_approximate import ApproximateEngine
from embedkit_indexes.engine_exact import ExactScan
from embedkit_indexes.engine_file import CELLS
from embedkit_indexes.planner import (
    EXACT_LIMIT,
    HNSW_LINKS,
    TYPES,
    EngineConfig,
    SearchEffort,
    cell_count,
    choose,
)
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.engine_exact import Found

__all__ = ["EXACT_LIMIT", "FILE", "Engine", "EngineConfig", "SearchEffort", "build", "open_engine"]

FILE = "faiss.index"
_FEWEST = 100
_HNSW_CONSTRUCTION = 100
_BLOCK = 32_768
_WRITTEN = 1 << 20  # bytes at a time


class Engine(Protocol):
    """Find the k best rows for each query vector; threads may share one."""

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
    """Choose the engine for these unit vectors, write its file if it has one, measure it, return its description.

    `vectors` is float16 or float32 [rows, dim]; `queries`, float32 [m, dim], are real ones to tune on. The
    description is plain JSON: "type", "files" (names in `folder`), "rows", "dim", "recall" (the target) and, for
    what is not exact, "curve" (points of effort, recall and seconds a query).

    Raises InputError for an engine that FAISS does not know and where nothing fits the memory budget.
    """
    from time import perf_counter

    config = config or EngineConfig()
    tell = progress or (lambda _: None)
    rows, dim = vectors.shape
    kind = choose(rows, dim, config, vectors.dtype.itemsize)
    description: dict[str, Any] = {
        "type": "exact", "files": [], "rows": rows, "dim": dim, "recall": config.recall
    }  # fmt: skip
    if kind in ("exact", "Flat") or rows < _FEWEST:
        return description
    check(config, dim)
    faiss = load()
    begun = perf_counter()
    cells = cell_count(rows)
    flags = 0
    if kind in ("ivf-pq", "ivf-rabitq", "ivf-sq8"):
        from embedkit_indexes import engine_cells

        index = engine_cells.build(faiss, vectors, kind, cells, tell)
    elif kind == "hnsw":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_CONSTRUCTION
        # The graph walks over the vectors of the segment: it is stored without a copy of them.
        flags = faiss.IO_FLAG_SKIP_STORAGE
        _fill(index, vectors, tell)
    elif kind == "cagra":
        from embedkit_indexes import gpu

        index = gpu.cagra(faiss, vectors, HNSW_LINKS)
    else:
        found = _from_factory(faiss, kind, vectors, tell)
        if found is None:
            # `info` shows it.
            return description | {"instead_of": kind}
        index = found
    files = [FILE]
    if kind == "ivf-pq":
        files.append(CELLS)
        with (folder / CELLS).open("wb") as f:
            engine_lists.write(faiss, index, f)
    _write(faiss, index, folder / FILE, flags)
    filled = perf_counter()
    description |= {"type": kind, "files": files, "cells": cells}
    engine = ApproximateEngine(load, folder / FILE, vectors, description)
    del index
    tell("measuring")
    curve = engine.measure(queries)
    description["curve"] = [vars(p) for p in curve]
    description["tuned_on"] = "documents" if queries is None else "queries"
    description["seconds"] = {
        "build": round(filled - begun, 3),
        "measure": round(perf_counter() - filled, 3),
    }
    return description


def _fill(index: Any, vectors: NDArray[np.generic], tell: Callable[[str], None]) -> None:
    import numpy as np

    for start in range(0, len(vectors), _BLOCK):
        tell(f"coding {start:,} of {len(vectors):,}")
        index.add(np.asarray(vectors[start : start + _BLOCK], dtype=np.float32))


def _from_factory(faiss: Any, factory: str, vectors: NDArray[np.generic], tell: Callable[[str], None]) -> Any:
    import numpy as np

    rows, dim = vectors.shape
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        ivf = faiss.try_extract_index_ivf(index)
        size = min(rows, max(100_000, 64 * ivf.nlist if ivf else 0))
        chosen = np.sort(np.random.default_rng(0).choice(rows, size, replace=False))
        tell("training")
        index.train(np.asarray(vectors[chosen], dtype=np.float32))
    except RuntimeError as e:
        if rows <= EXACT_LIMIT:
            # What was checked before the work and fails now has too few rows to train on: a small change of a large index.
            return None
        raise InputError(_unknown(factory, dim, e)) from e
    try:
        _fill(index, vectors, tell)
    except RuntimeError as e:
        raise InputError(_unknown(factory, dim, e)) from e
    return index


def _write(faiss: Any, index: Any, path: Path, flags: int) -> None:
    # Through Python's file: FAISS's own says nothing where a full disk refuses the last bytes.
    with path.open("wb") as f:
        faiss.write_index(index, faiss.PyCallbackIOWriter(f.write, _WRITTEN), flags)


def check(config: EngineConfig, dim: int) -> None:
    """Raise InputError for a factory string that FAISS does not know: before anything is embedded, not after."""
    if config.type in TYPES:
        return
    if "Refine" in config.type or config.type.endswith("RFlat"):
        raise InputError(
            f"the engine {config.type!r} refines by itself: leave that part out, every engine here refines exactly"
        )
    faiss = load()
    try:
        faiss.index_factory(dim, config.type, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as e:
        raise InputError(_unknown(config.type, dim, e)) from e


def _unknown(factory: str, dim: int, error: RuntimeError) -> str:
    reason = str(error).splitlines()[-1].split("failed: ")[-1]
    return (
        f"FAISS cannot build the engine {factory!r} for vectors of {dim} dimensions ({reason}): take auto, exact, "
        "ivf-pq, ivf-rabitq, ivf-sq8, hnsw, cagra (on a GPU) or another factory string"
    )


def open_engine(folder: Path, vectors: NDArray[np.generic], description: Mapping[str, Any]) -> Engine:
    """Open the engine that `build` described over the same vectors, mapped read-only.

    Raises CorruptIndexError for a file that is missing, broken or belongs to other vectors.
    """
    if description.get("rows") != len(vectors) or description.get("dim") != vectors.shape[1]:
        raise CorruptIndexError(
            f"{folder}: the engine was built for {description.get('rows')} vectors of {description.get('dim')} "
            f"dimensions, and there are {len(vectors)} of {vectors.shape[1]}: restore the index or build it anew"
        )
    if description["type"] == "exact":
        return ExactEngine(vectors)
    if not description.get("curve"):
        raise CorruptIndexError(
            f"{folder} uses engine {description['type']!r}, unknown here: update embedkit"
        )
    try:
        engine = ApproximateEngine(load, folder / FILE, vectors, description)
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptIndexError(
            f"{folder}: the manifest's entry of the engine {description['type']} is damaged ({e!r}): restore the index "
            "or build it anew with `embedkit index`"
        ) from e
    engine.read_sparsely()
    return engine


class ExactEngine:
    """Compare the query with every vector, where they lie in the mapped file."""

    def __init__(self, vectors: NDArray[np.generic]) -> None:
        self._scan = ExactScan(load(), vectors)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        effort: SearchEffort | None = None,
    ) -> Found:
        """See `Engine.search`."""
        load(len(queries))
        return self._scan.search(queries, k, allowed)

    def plan(
        self, k: int, allowed: RowSet | None = None, effort: SearchEffort | None = None
    ) -> dict[str, Any]:
        """See `Engine.plan`."""
        return {
            "engine": "exact",
            "scanned": len(self._scan.vectors) if allowed is None else allowed.count,
            "k": k,
        }


_ready: list[Any] = []
_thread = threading.local()
# OpenMP's threads do not come along into a forked process, and waiting for them never ends: one thread works there.
_process = os.getpid()


def load(queries: int = 2) -> Any:
    """Return the module faiss, with the number of threads set that this thread's call shall use: one for one query.

    Raises MissingExtraError where it is missing or broken.
    """
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
        limit_blas()
        _ready.append(faiss)
    # OpenMP keeps the number for each thread that calls it. One query has nothing to share out, and waking a second
    # thread for it costs milliseconds where the cores are busy.
    threads = 1 if queries < 2 or os.getpid() != _process else thread_count()
    if getattr(_thread, "threads", None) != threads:
        _ready[0].omp_set_num_threads(threads)
        _thread.threads = threads
    return _ready[0]
