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
_LINKS = 1 << 20  # looked at at a time


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
    problem = _mismatch(faiss, index, scan.vectors.shape)
    if not problem and kind == "ivf-pq":
        path = path.with_name(CELLS)
        problem = _attach(faiss, index, path, scan.vectors.shape)
    elif not problem:
        problem = _misfilled(faiss, index, len(scan.vectors))
    if problem:
        raise CorruptIndexError(
            f"{path} is broken or belongs to other vectors ({problem}): restore it or build the index anew with "
            "`embedkit index`"
        )
    return index


def _attach(faiss: Any, index: Any, path: Path, shape: tuple[int, ...]) -> str:
    if not isinstance(index, faiss.IndexIVFPQFastScan):
        return "another engine's index lies beside it"
    # All that its way through the cells depends on: checked before any is read.
    layout = (index.M, index.nbits, index.bbs, index.implem)
    if layout != (index.pq.M, 4, engine_lists.BLOCK, 0) or index.d != shape[1]:
        return "its codes are of other vectors"
    try:
        return engine_lists.attach(faiss, index, path, shape[0])
    except (OSError, RuntimeError, MemoryError, OverflowError) as e:
        return (str(e).strip() or type(e).__name__).splitlines()[-1]


def _misfilled(faiss: Any, index: Any, rows: int) -> str:
    import numpy as np

    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        sizes = np.array([ivf.invlists.list_size(i) for i in range(ivf.nlist)], dtype=np.uint64)
        if sizes.max(initial=0) > rows or int(sizes.sum()) != rows:
            return "the cells do not hold the rows"
    return ""


def _mismatch(faiss: Any, index: Any, shape: tuple[int, ...]) -> str:
    rows, dim = shape
    if (index.ntotal, index.d) != (rows, dim) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return f"{index.ntotal} vectors of {index.d} dimensions instead of {rows} of {dim}"
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        for quantizer in _parts(faiss, ivf.quantizer):
            if quantizer.ntotal != ivf.nlist or quantizer.d != ivf.d:
                return f"{quantizer.ntotal} centroids for {ivf.nlist} cells"
    if hasattr(index, "hnsw"):
        neighbors = index.hnsw.neighbors
        # Where they lie: a copy takes 256 MB a million rows.
        links = faiss.rev_swig_ptr(neighbors.data(), neighbors.size())
        for start in range(0, len(links), _LINKS):
            part = links[start : start + _LINKS]
            if part.max() >= rows or part.min() < -1:
                return "the graph leads to rows that do not exist"
    return ""


def _parts(faiss: Any, quantizer: Any) -> list[Any]:
    """Return the quantizer and, where it refines, the two that it is made of."""
    quantizer = faiss.downcast_index(quantizer)
    if not isinstance(quantizer, faiss.IndexRefine):
        return [quantizer]
    return [quantizer, quantizer.base_index, quantizer.refine_index]
