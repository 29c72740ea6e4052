"""Search the cells that hold what a filter leaves. FAISS is handed in by `faiss_engine`."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

from embedkit_indexes.engine_exact import ExactScan, pad
from embedkit_indexes.planner import RAISED, SearchPlan
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.engine_exact import Found

# RaBitQ: four bits of the query serve as well as eight or as its floats, which take thirty times as long.
_QUERY_BITS = 4
# So many times as many cells are probed as without a filter: what it leaves may all be far from a query.
_MORE = 1.6
# So many times the cells wanted are looked up, before all are: those near a query may be empty.
_NEAR = 4


def can_skip(faiss: Any, ivf: Any) -> bool:
    """Say whether FAISS searches given cells of an index of this kind under a selector."""
    kinds = ("IndexIVFPQFastScan", "IndexIVFRaBitQ", "IndexIVFScalarQuantizer", "IndexIVFFlat")
    return isinstance(ivf, tuple(getattr(faiss, kind) for kind in kinds))


def probing(faiss: Any, ivf: Any, nprobe: int, selector: Any) -> Any:
    """Return FAISS's search parameters for an IVF index."""
    if isinstance(ivf, faiss.IndexIVFRaBitQ):
        return faiss.IVFRaBitQSearchParameters(nprobe=nprobe, sel=selector, qb=_QUERY_BITS)
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)


class CellSearch:
    """Search an IVF index under filters; threads may share it."""

    def __init__(self, faiss: Any, ivf: Any, transforms: list[Any], scan: ExactScan) -> None:
        self._faiss = faiss
        self._ivf = ivf
        self._transforms = transforms
        self._scan = scan
        self._kept_weights: weakref.WeakKeyDictionary[RowSet, Any] = weakref.WeakKeyDictionary()

    def search(self, queries: NDArray[np.float32], k: int, allowed: RowSet, plan: SearchPlan) -> Found:
        """Probe the nearest cells that hold allowed rows, until they weigh as much as serves for them.

        A filter that goes with the clusters empties most cells near a query; a fixed nprobe would find nothing there.
        A query that fewer than k rows were found for has -1 in all its places.
        """
        import numpy as np

        turned = queries
        for transform in self._transforms:
            turned = transform.apply(turned)
        turned = np.ascontiguousarray(turned, dtype=np.float32)
        closeness, cells = self._nearest(turned, self._weights(allowed), _MORE * plan.effort)
        rows = np.empty((len(queries), plan.depth), dtype=np.int64)
        by_code = np.empty(rows.shape, dtype=np.float32)
        selector = self._faiss.IDSelectorBitmap(allowed.packed)
        parameters = probing(self._faiss, self._ivf, cells.shape[1], selector)
        at = self._faiss.swig_ptr
        # FAISS's own wrapper in Python takes no parameters here.
        self._ivf.search_preassigned_c(
            len(queries), at(turned), plan.depth, at(cells), at(closeness), at(by_code), at(rows), False, parameters
        )  # fmt: skip
        scores, best = pad(None, len(queries), k)
        for i, found in enumerate(rows):
            candidates = found[found >= 0]
            if len(candidates) >= k:
                scores[i : i + 1], best[i : i + 1] = self._scan.among(queries[i : i + 1], k, candidates)
        return scores, best

    def _nearest(
        self, queries: NDArray[np.float32], weights: NDArray[np.float32], wanted: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest cells that weigh `wanted` together, with their products, each [queries, cells].

        A place that is not to be probed holds -1, which FAISS passes over.
        """
        import numpy as np

        near = min(self._ivf.nlist, round(_NEAR * wanted))
        closeness, cells = self._ivf.quantizer.search(queries, near)
        # It may leave places empty, as -1, and the last weight would stand for them.
        weight = np.where(cells >= 0, weights[cells], np.float32(0))
        if near < self._ivf.nlist and weight.sum(axis=1).min() < wanted:
            products = queries @ self._centroids.T
            cells = np.argsort(-products, axis=1)
            closeness, weight = np.take_along_axis(products, cells, axis=1), weights[cells]
        before = np.cumsum(weight, axis=1) - weight
        probed = (weight > 0) & (before < wanted)
        width = int(np.flatnonzero(probed.any(axis=0)).max(initial=0)) + 1
        chosen = np.where(probed[:, :width], cells[:, :width], -1)
        return np.ascontiguousarray(closeness[:, :width], dtype=np.float32), np.ascontiguousarray(chosen)

    def _weights(self, allowed: RowSet) -> NDArray[np.float32]:
        """Return what each cell counts for under a filter: 1 where it leaves all rows, 0 where none, float32 [cells].

        With a share s of the rows left, drawn at random, the neighbours lie as many cells apart as those of k/s did.
        """
        import numpy as np

        weights: NDArray[np.float32] | None = self._kept_weights.get(allowed)
        if weights is None:
            left = np.bincount(self._cells[allowed.mask], minlength=self._ivf.nlist)
            weights = np.asarray((left / np.maximum(self._sizes, 1)) ** RAISED, dtype=np.float32)
            self._kept_weights[allowed] = weights
        return weights

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Each cell's number of rows, int64 [cells]."""
        import numpy as np

        return np.bincount(self._cells, minlength=self._ivf.nlist)

    @cached_property
    def _cells(self) -> NDArray[np.int32]:
        """Each row's cell, int32 [rows]."""
        import numpy as np

        lists = self._ivf.invlists
        total = len(self._scan.vectors)
        out = np.zeros(total, dtype=np.int32)
        for cell in range(self._ivf.nlist):
            size = lists.list_size(cell)
            if size:
                ids = self._faiss.rev_swig_ptr(lists.get_ids(cell), size)
                out[ids[(ids >= 0) & (ids < total)]] = cell
        return out

    @cached_property
    def _centroids(self) -> NDArray[np.float32]:
        """The cells' centroids, float32 [cells, dim]."""
        centroids: NDArray[np.float32] = self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist)
        return centroids
