"""What runs on CUDA where FAISS finds a card: assignment to cells, exact search of batches, graphs (CAGRA).

FAISS is handed in by `faiss_engine`. Vectors are streamed in blocks and spread over all cards; nothing but results
stays, so there is never a GPU index to save.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedkit.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Found = tuple[NDArray[np.float32], NDArray[np.int64]]

# A block on a card with its scores must fit beside FAISS's scratch memory on the smallest cards in use (8 GB).
_BLOCK_BYTES = 1 << 30
_QUERIES = 4096
# FAISS's selection on a card ends there.
MOST_RESULTS = 2048


def device_count(faiss: Any) -> int:
    """Return how many CUDA devices FAISS can use: 0 for its CPU packages, and where there is none."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def nearest(faiss: Any, centroids: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
    """Return the function that assigns vectors [n, dim] to their nearest centroid, int64 [n], on all cards."""
    flat = faiss.IndexFlatIP(centroids.shape[1])
    flat.add(centroids)
    spread = faiss.index_cpu_to_all_gpus(flat)

    def assign(x: NDArray[np.float32]) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = spread.search(x, 1)[1][:, 0]
        return rows

    return assign


def search(
    faiss: Any,
    queries: NDArray[np.float32],
    vectors: NDArray[np.generic],
    k: int,
    numbers: NDArray[np.int64] | None = None,
) -> Found:
    """Return the k best rows (of `numbers`, None: of all) for each query, exactly; each card takes every n-th block."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    rows = len(vectors) if numbers is None else len(numbers)
    devices = device_count(faiss)
    size = max(k, min(_BLOCK_BYTES // (vectors.shape[1] * 4), -(-rows // devices)))
    starts = range(0, rows, size)

    def one_card(device: int) -> list[tuple[int, Found]]:
        resources = faiss.StandardGpuResources()
        out = []
        for start in starts[device::devices]:
            own = slice(start, min(rows, start + size))
            block = np.ascontiguousarray(vectors[own] if numbers is None else vectors[numbers[own]])
            for first in range(0, len(queries), _QUERIES):
                # The products are summed in float32 whatever the block's type: a query in float16 would lose digits.
                scores, places = faiss.knn_gpu(
                    resources,
                    queries[first : first + _QUERIES],
                    block.astype(np.float32, copy=False),
                    min(k, len(block)),
                    metric=faiss.METRIC_INNER_PRODUCT,
                    device=device,
                )
                out.append((first, (scores, places + start if numbers is None else numbers[own][places])))
        return out

    with ThreadPoolExecutor(devices) as pool:
        pieces = [piece for card in pool.map(one_card, range(devices)) for piece in card]
    scores = np.empty((len(queries), k), dtype=np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    for first in range(0, len(queries), _QUERIES):
        mine = [piece for begun, piece in pieces if begun == first]
        s, r = (np.concatenate([piece[i] for piece in mine], axis=1) for i in (0, 1))
        order = np.lexsort((r, -s), axis=1)[:, :k]
        own = slice(first, first + _QUERIES)
        scores[own], found[own] = np.take_along_axis(s, order, 1), np.take_along_axis(r, order, 1)
    return scores, found


def cagra(faiss: Any, vectors: NDArray[np.generic], links: int) -> Any:
    """Build a graph on the first card and return it as a CPU HNSW index.

    Raises InputError where FAISS has no CAGRA (package faiss-gpu-cuvs) or sees no card.
    """
    import numpy as np

    if not hasattr(faiss, "GpuIndexCagra") or not device_count(faiss):
        raise InputError(
            "the engine 'cagra' needs a CUDA card and faiss-gpu-cuvs (extra [cuvs]): choose 'hnsw' or 'auto' instead"
        )
    config = faiss.GpuIndexCagraConfig()
    config.graph_degree = 2 * links
    config.intermediate_graph_degree = 4 * links
    dim = vectors.shape[1]
    index = faiss.GpuIndexCagra(faiss.StandardGpuResources(), dim, faiss.METRIC_INNER_PRODUCT, config)
    index.train(np.ascontiguousarray(vectors, dtype=np.float32))
    out = faiss.IndexHNSWCagra(dim, links, faiss.METRIC_INNER_PRODUCT)
    # Only the base layer is CAGRA's; without the others, search starts from random entries there.
    out.base_level_only = True
    index.copyTo(out)
    return out
