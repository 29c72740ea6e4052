"""Divide vectors into cells and fill an IVF index with their codes. FAISS is handed in by `faiss_engine`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedkit_indexes import gpu
from embedkit_indexes.planner import subspaces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Assign = Callable[[NDArray[np.float32]], NDArray[np.int64]]

# Lloyd's iterations, each on so many rows of the sample per cell: the first ones need not be exact. Fewer of the last
# kind cost recall: 0.957 of the true ten lie in the 16 nearest of 4,000 cells after four, 0.961 after eight.
_SCHEDULE = (16, 32, *(64,) * 7)
_SEED = 7
# From so many cells on, the nearest ones are found by four-bit codes and compared exactly.
_MANY_CELLS = 1024
# A row in a cell that is not its nearest is found less often: one in a thousand is with 32, one in forty with 8.
_ASSIGN_FACTOR = 32
_PROBE_FACTOR = 4
_BLOCK = 32_768


def coarse(faiss: Any, centroids: NDArray[np.float32]) -> Any:
    """Return the index that finds a vector's nearest cells.

    A flat one of 4,096 x 384 reads 6 MB for each query, more than all that follows: four-bit codes with exact
    refinement found 0.99 of the 32 nearest in a twentieth of the time.
    """
    cells, dim = centroids.shape
    fast = cells >= _MANY_CELLS and dim % 4 == 0
    index = faiss.index_factory(
        dim, f"PQ{dim // 4}x4fs,Refine(Flat)" if fast else "SQfp16", faiss.METRIC_INNER_PRODUCT
    )
    index.train(centroids)
    index.add(centroids)
    if fast:
        index.k_factor = _ASSIGN_FACTOR
    return index


def assigner(faiss: Any, centroids: NDArray[np.float32], quantizer: Any = None) -> Assign:
    """Return the function that assigns vectors, float32 [n, dim], to cells, int64 [n]: on the GPU if there is one."""
    if gpu.device_count(faiss):
        return gpu.nearest(faiss, centroids)
    if len(centroids) < _MANY_CELLS:
        return lambda x: (x @ centroids.T).argmax(axis=1)
    index = quantizer or coarse(faiss, centroids)
    return lambda x: index.search(x, 1)[1][:, 0]


def train(faiss: Any, vectors: NDArray[np.generic], cells: int) -> NDArray[np.float32]:
    """Return the cells' centroids, float32 [cells, dim], unit vectors: spherical k-means on a sample.

    FAISS's own training takes some six times as long on a CPU for the same recall: its assignment is exact and every
    iteration sees the whole sample.
    """
    import numpy as np

    rng = np.random.default_rng(_SEED)
    size = min(len(vectors), cells * max(_SCHEDULE))
    chosen = np.sort(rng.choice(len(vectors), size, replace=False))
    sample = np.asarray(vectors[chosen], dtype=np.float32)
    sample = sample[rng.permutation(size)]
    centroids = sample[:cells].copy()
    for per_cell in _SCHEDULE:
        part = sample[: cells * per_cell]
        assign = assigner(faiss, centroids)
        labels = np.concatenate([assign(part[s : s + _BLOCK]) for s in range(0, len(part), _BLOCK)])
        centroids = _means(part, labels, centroids, rng)
    return centroids


def _means(
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64],
    centroids: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return each cell's mean at unit length; an empty cell starts anew at a random vector."""
    import numpy as np

    order = np.argsort(labels, kind="stable")
    sums = np.zeros_like(centroids)
    bounds = np.searchsorted(labels[order], np.arange(len(centroids) + 1))
    for cell in range(len(centroids)):
        members = order[bounds[cell] : bounds[cell + 1]]
        sums[cell] = vectors[members].sum(axis=0) if len(members) else vectors[rng.integers(len(vectors))]
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    means: NDArray[np.float32] = sums / np.maximum(length, np.float32(1e-12))
    return means


def build(
    faiss: Any, vectors: NDArray[np.generic], kind: str, cells: int, tell: Callable[[str], None]
) -> Any:
    """Return a filled IVF index over the vectors: codes of four bits for four dimensions ("ivf-pq"), packed for fast
    scan, of one bit ("ivf-rabitq") or eight ("ivf-sq8") a dimension."""
    import numpy as np

    rows, dim = vectors.shape
    tell("training")
    centroids = train(faiss, vectors, cells)
    turn = None
    if kind == "ivf-rabitq":
        # One bit a dimension needs the dimensions to matter alike.
        turn = faiss.RandomRotationMatrix(dim, dim)
        turn.init(_SEED)
        centroids = turn.apply(centroids)
    quantizer = coarse(faiss, centroids)
    ivf = _empty(faiss, quantizer, kind, dim, cells)
    sample = np.asarray(vectors[:: max(1, rows // 20_000)], dtype=np.float32)
    _train_codes(faiss, ivf, turn.apply(sample) if turn else sample)
    assign = assigner(faiss, centroids, quantizer)
    for start in range(0, rows, _BLOCK):
        tell(f"coding {start:,} of {rows:,}")
        block = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32)
        if turn:
            block = turn.apply(block)
        labels = np.ascontiguousarray(assign(block), dtype=np.int64)
        numbers = np.arange(start, start + len(block), dtype=np.int64)
        ivf.add_core(len(block), faiss.swig_ptr(block), faiss.swig_ptr(numbers), faiss.swig_ptr(labels))
    if hasattr(quantizer, "k_factor"):
        quantizer.k_factor = _PROBE_FACTOR
    if kind == "ivf-pq":
        # Filled directly, it would assign the rows once more, by itself.
        ivf = faiss.IndexIVFPQFastScan(ivf)
    # FAISS's index holds a bare pointer to it.
    ivf.referenced_objects = [quantizer]
    if turn is None:
        return ivf
    index = faiss.IndexPreTransform(turn, ivf)
    index.referenced_objects = [turn, ivf]
    return index


def _train_codes(faiss: Any, ivf: Any, sample: NDArray[np.float32]) -> None:
    # A hundred k-means of 16 centroids: threads would wait for one another at each of their steps.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        ivf.train(sample)
    finally:
        faiss.omp_set_num_threads(threads)


def _empty(faiss: Any, quantizer: Any, kind: str, dim: int, cells: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "ivf-pq":
        # Codes of the difference to the centroid: at 16 of 4,096 cells and 80 candidates recall 0.948 instead of 0.927.
        ivf = faiss.IndexIVFPQ(quantizer, dim, cells, subspaces(dim), 4, metric)
        ivf.by_residual = True
        # Few rows give rougher codes, which is no reason to warn: each would be told of by itself.
        ivf.pq.cp.min_points_per_centroid = 1
    elif kind == "ivf-rabitq":
        ivf = faiss.IndexIVFRaBitQ(quantizer, dim, cells, metric)
    else:
        ivf = faiss.IndexIVFScalarQuantizer(quantizer, dim, cells, faiss.ScalarQuantizer.QT_8bit, metric)
        # Residuals would change with the cell, and the refinement is exact anyway.
        ivf.by_residual = False
    return ivf
