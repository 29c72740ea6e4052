"""Open FAISS's file by memory map, and refuse one that does not fit. FAISS is handed in by `faiss_engine`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from embedkit.errors import CorruptIndexError
from embedkit_indexes import engine_lists
from embedkit_indexes.engine_exact import ExactScan

# Beside the index proper: the mapped cells of "ivf-pq".
CELLS = "faiss.cells"


def read(faiss: Any, path: Path, kind: str, scan: ExactScan) -> Any:
    """Map the file and refuse what does not fit the vectors: a search must never read beyond a broken file."""
    # FAISS for Windows is built without mapped files. The older IO_FLAG_MMAP starts 32 threads for every IVF search,
    # to read ahead: a millisecond, four times the search.
    flags = 0 if sys.platform == "win32" else faiss.IO_FLAG_MMAP_IFC
    try:
        index = faiss.read_index(str(path), flags | (faiss.IO_FLAG_SKIP_STORAGE if kind == "hnsw" else 0))
    except (RuntimeError, MemoryError) as e:
        raise CorruptIndexError(
            f"{path} cannot be read by FAISS: restore it or build the index anew with `embedkit index`"
        ) from e
    if kind == "hnsw" and hasattr(index, "storage"):
        index.storage = scan.index
        index.own_fields = False
    problem = ""
    if kind == "ivf-pq":
        path, problem = (
            path.with_name(CELLS),
            _attach(faiss, index, path.with_name(CELLS), scan.vectors.shape),
        )
    problem = problem or _mismatch(faiss, index, scan.vectors.shape)
    if problem:
        raise CorruptIndexError(
            f"{path} is broken or belongs to other vectors ({problem}): restore it or build the index anew with "
            "`embedkit index`"
        )
    return index


def _attach(faiss: Any, index: Any, path: Path, shape: tuple[int, ...]) -> str:
    if not isinstance(index, faiss.IndexIVFPQFastScan):
        return "another engine's index lies beside it"
    # Its blocks are as long as the codes that are searched for: checked before any is read.
    if index.M != index.pq.M or index.d != shape[1]:
        return "its codes are of other vectors"
    try:
        return engine_lists.attach(faiss, index, path, shape[0])
    except (OSError, RuntimeError) as e:
        return str(e).strip().splitlines()[-1]


def _mismatch(faiss: Any, index: Any, shape: tuple[int, ...]) -> str:
    import numpy as np

    rows, dim = shape
    if (index.ntotal, index.d) != (rows, dim) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return f"{index.ntotal} vectors of {index.d} dimensions instead of {rows} of {dim}"
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        sizes = np.array([ivf.invlists.list_size(i) for i in range(ivf.nlist)], dtype=np.uint64)
        if ivf.quantizer.ntotal != ivf.nlist or ivf.quantizer.d != ivf.d:
            return f"{ivf.quantizer.ntotal} centroids for {ivf.nlist} cells"
        if sizes.max(initial=0) > rows or int(sizes.sum()) != rows:
            return "the cells do not hold the rows"
    if hasattr(index, "hnsw"):
        links = faiss.vector_to_array(index.hnsw.neighbors) if hasattr(index.hnsw, "neighbors") else None
        if links is not None and len(links) and (links.max() >= rows or links.min() < -1):
            return "the graph leads to rows that do not exist"
    return ""
