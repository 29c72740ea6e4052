"""Search of codes or graphs with exact refinement. FAISS is handed in by `faiss_engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedkit.errors import CorruptIndexError, InputError
from embedkit_indexes import tuning
from embedkit_indexes.engine_exact import ExactScan, by_row
from embedkit_indexes.engine_file import read
from embedkit_indexes.engine_filtered import CellSearch, can_skip, probing
from embedkit_indexes.paging import read_here_and_there, read_through
from embedkit_indexes.planner import (
    HNSW_LINKS,
    Point,
    SearchEffort,
    SearchPlan,
    fetches,
    pick,
    plan_search,
)
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit_indexes.engine_exact import Found

_PREPARED = 256
# The selector that keeps a broken file's row numbers out costs a tenth of a search, and a look at all of them some ten
# searches of a million rows: a process that searches more often looks once.
_LOOKS_AFTER = 50


class ApproximateEngine:
    """Search codes or a graph, then rank the candidates by their exact vectors, both inside FAISS."""

    def __init__(
        self,
        load: Callable[[int], Any],
        path: Path,
        vectors: NDArray[np.generic],
        description: Mapping[str, Any],
    ) -> None:
        self._load = load
        self._faiss = faiss = load(1)
        self._type = str(description["type"])
        self._folder = path.parent
        self._rows = len(vectors)
        self._scan = ExactScan(faiss, vectors)
        self._target = float(description["recall"])
        self._curve = [Point.from_plain(p) for p in description.get("curve", [])]
        self._base = read(faiss, path, self._type, self._scan)
        ivf = faiss.try_extract_index_ivf(self._base)
        # It comes as the base class, which would hide what kind it is.
        self._ivf: Any = None if ivf is None else faiss.downcast_index(ivf)
        self._graph = hasattr(self._base, "hnsw")
        self._limit = self._ivf.nlist if self._ivf else self._rows
        # Of these kinds FAISS searches given cells under a selector.
        self._skips = can_skip(faiss, self._ivf)
        self._refine = faiss.IndexRefine(self._base, self._scan.index)
        self._prepared: dict[tuple[int, SearchEffort | None], tuple[SearchPlan, Any]] = {}
        chain = self._base.chain if isinstance(self._base, faiss.IndexPreTransform) else None
        transforms = (
            [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())] if chain else []
        )
        self._cells = CellSearch(faiss, self._ivf, transforms, self._scan)
        self._sparse = False
        self._searches = 0
        self._looked = self._trusted = False

    def read_sparsely(self) -> None:
        """Keep no more of the vectors in memory than the searches touch, until one compares all."""
        read_here_and_there(self._scan.vectors)
        self._sparse = True

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        effort: SearchEffort | None = None,
    ) -> Found:
        """See `faiss_engine.Engine.search`. Raises ValueError for queries of another dimension."""
        import numpy as np

        dim = self._scan.vectors.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dim:
            # FAISS gets a bare pointer and would read on behind them.
            raise ValueError(f"queries of shape {queries.shape} for vectors of {dim} dimensions")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        self._load(len(queries))
        plan, parameters = self._prepare(k, allowed, effort)
        if plan.way == "exact" or not len(queries):
            return self._compare_all(queries, k, allowed)
        try:
            if plan.way == "cells" and allowed is not None:
                scores, rows = self._cells.search(queries, k, allowed, plan)
            else:
                scores, rows = self._probe(queries, k, parameters)
        except RuntimeError as e:
            raise self._broken(str(e).splitlines()[-1]) from e
        if (rows[0, -1] if len(rows) == 1 else rows[:, -1].min()) < 0:
            # The cells held too few: k are promised while k exist.
            short = (rows[:, -1] < 0).nonzero()[0]
            scores[short], rows[short] = self._compare_all(queries[short], k, allowed)
        return by_row(scores, rows)

    def _compare_all(self, queries: NDArray[np.float32], k: int, allowed: RowSet | None) -> Found:
        if self._sparse and (allowed is None or not fetches(self._rows, allowed.count)):
            read_through(self._scan.vectors)
            self._sparse = False
        return self._scan.search(queries, k, allowed)

    def _probe(self, queries: NDArray[np.float32], k: int, parameters: Any) -> Found:
        """Search as FAISS's own `search` does, whose checks of what was checked here take a tenth of one query."""
        import numpy as np

        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        at = self._faiss.swig_ptr
        self._refine.search_c(len(queries), at(queries), k, at(scores), at(rows), parameters)
        return scores, rows

    def _prepare(self, k: int, allowed: RowSet | None, effort: SearchEffort | None) -> tuple[SearchPlan, Any]:
        """Return the plan and FAISS's parameters for it; without a filter they are kept: they cost 0.1 ms."""
        if not self._trusted:
            self._searches += 1
            if self._searches >= _LOOKS_AFTER and not self._looked:
                self._looked = True
                if self._ivf is not None and not self._numbers_are_right():
                    raise self._broken("its cells do not hold each row once")
                self._trusted = self._ivf is not None
                self._prepared = {}
        kept = self._prepared.get((k, effort)) if allowed is None else None
        if kept is not None:
            return kept
        plan = self._plan(k, allowed, effort)
        parameters = None
        if plan.way == "probe":
            parameters = self._faiss.IndexRefineSearchParameters(
                # What is cut off by the conversion to a whole number must not be a candidate.
                k_factor=(plan.depth + 0.5) / k,
                base_index_params=self._parameters(plan.effort, plan.depth, allowed),
            )
        if allowed is None and len(self._prepared) < _PREPARED:
            self._prepared[k, effort] = plan, parameters
        return plan, parameters

    def plan(
        self, k: int, allowed: RowSet | None = None, effort: SearchEffort | None = None
    ) -> dict[str, Any]:
        """See `faiss_engine.Engine.plan`."""
        plan = self._plan(k, allowed, effort)
        count = self._rows if allowed is None else allowed.count
        if plan.way == "exact":
            return {"engine": "exact", "scanned": count, "k": k}
        name = "ef_search" if self._graph else "nprobe"
        # The curve knows nothing of other numbers of results, of filters, and of settings that are not on it.
        given = effort is not None and (effort.nprobe or effort.ef_search or effort.refine)
        measured = k == tuning.K and allowed is None and not given
        return {
            "engine": self._type,
            "way": plan.way,
            name: plan.effort,
            "refined": plan.depth,
            "allowed": count,
            "k": k,
            "recall": self._point(effort).recall if measured else None,
        }

    def _point(self, effort: SearchEffort | None) -> Point:
        return pick(self._curve, self._target if effort is None or effort.recall is None else effort.recall)

    def _plan(self, k: int, allowed: RowSet | None, effort: SearchEffort | None) -> SearchPlan:
        if effort is not None and (effort.nprobe if self._graph else effort.ef_search):
            given, kind = ("nprobe", "a graph") if self._graph else ("ef_search", "cells")
            raise InputError(
                f"{given} means nothing to the engine {self._type}, which searches {kind}: "
                f"give {'ef_search' if self._graph else 'nprobe'}"
            )
        if effort is None and self._target >= 1:
            return SearchPlan("exact")
        count = None if allowed is None else allowed.count
        if count is not None and self._ivf is None and not self._graph:
            # Many of FAISS's flat codes take no selector.
            return SearchPlan("exact")
        return plan_search(
            self._rows,
            k,
            self._point(effort),
            limit=self._limit,
            effort=effort,
            allowed=count,
            cells=self._skips,
        )

    def _parameters(self, effort: int, depth: int, allowed: RowSet | None) -> Any:
        """Return FAISS's search parameters; the selector also keeps a broken file's row numbers out."""
        faiss = self._faiss
        if allowed is None:
            selector = None if self._trusted else faiss.IDSelectorRange(0, self._rows)
        else:
            selector = faiss.IDSelectorBitmap(allowed.packed)
        if self._graph:
            return faiss.SearchParametersHNSW(efSearch=max(effort, depth), sel=selector)
        if self._ivf is None:
            return None
        parameters = probing(faiss, self._ivf, effort, selector)
        if isinstance(self._base, faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=parameters)
        return parameters

    def _numbers_are_right(self) -> bool:
        """Return whether the cells hold the number of each row once."""
        import numpy as np

        lists = self._ivf.invlists
        found = np.zeros(self._rows, dtype=np.bool_)
        for cell in range(self._limit):
            size = lists.list_size(cell)
            if size:
                ids = self._faiss.rev_swig_ptr(lists.get_ids(cell), size)
                if ids.min() < 0 or ids.max() >= self._rows:
                    return False
                found[ids] = True
        # As many as there are rows, and all of them: none came twice.
        return bool(found.all())

    def _broken(self, problem: str) -> CorruptIndexError:
        return CorruptIndexError(
            f"{self._folder}: the engine {self._type} is damaged ({problem}): run `embedkit verify`, and restore the index or "
            "build it anew with `embedkit index`"
        )

    def measure(self, queries: NDArray[np.float32] | None = None) -> list[Point]:
        """Return the curve of efforts and depths of refinement, measured on `queries`, None: on perturbed documents."""
        from time import thread_time

        self._load(tuning.QUERIES)
        sample = tuning.held_out(self._scan.vectors, queries, tuning.QUERIES)
        sample, truth = tuning.clear_cut(sample, *self._scan.search(sample.queries, tuning.K + 2))
        deepest = min(max(tuning.DEPTHS) + 1, self._rows)

        def search(effort: int, depth: int) -> tuple[NDArray[np.int64], float]:
            depth = deepest if not self._graph else min(depth, effort)
            parameters = self._parameters(effort, 1, None)
            _, rows = self._base.search(sample.queries, depth, params=parameters)
            return rows, effort * (self._rows / self._limit + tuning.CELL_COST if self._ivf else HNSW_LINKS)

        def seconds(point: Point) -> float:
            self._load(1)
            few = sample.queries[:32]
            parameters = self._faiss.IndexRefineSearchParameters(
                k_factor=point.refine / tuning.K,
                base_index_params=self._parameters(point.effort, point.refine, None),
            )
            begun = thread_time()
            for q in few:
                self._refine.search(q[None], tuning.K, params=parameters)
            return round((thread_time() - begun) / len(few), 6)

        tried, depths = tuning.efforts(self._limit), [*tuning.DEPTHS]
        if self._graph:
            tried, depths = tuning.efforts(2048)[8:], [tuning.K]
        elif self._ivf is None:
            tried = [1]
        curve = tuning.walk(search, truth, sample.sources, tried, depths=depths, target=self._target)
        return tuning.timed(tuning.thinned(curve), seconds)
