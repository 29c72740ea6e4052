"""Which engine to build, and with what effort to search it: pure functions of sizes, budgets and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from embedkit.errors import InputError, UnknownNameError

# Up to here one query scans everything in some 10 ms on a laptop core, and nothing need be trained.
EXACT_LIMIT = 200_000
TYPES = ("auto", "exact", "ivf-pq", "ivf-rabitq", "ivf-sq8", "hnsw", "cagra")
HNSW_LINKS = 32
# Above this target the short codes need so deep a refinement that eight bits a dimension are cheaper.
_FINE_RECALL = 0.99
# Seconds for one row on one core, in orders of magnitude (docs/experiments.md): compared where it lies, passed
# over by the bitmap, fetched by its number.
_COMPARED, _PASSED, _FETCHED = 60e-9, 3e-9, 250e-9
# An exact answer in this time is taken, though probing were faster: it cannot miss.
_QUICK = 4e-3
# From this share of allowed rows on, the others are passed over inside the usual search.
_WIDE = 0.9
# The effort grows with the results asked for to this power.
RAISED = 0.35
# The probed cells hold at least so many times k rows.
_CELLS_FOR_K = 8


@dataclass(frozen=True)
class EngineConfig:
    """Say what a segment's engine is built for.

    `type` is one of TYPES or a FAISS factory string; `recall` the recall@10 to reach; `memory_budget` the bytes that
    the searched structure may keep resident (None: no bound); up to `exact_limit` rows "auto" scans all.
    """

    type: str = "auto"
    recall: float = 0.95
    memory_budget: int | None = None
    exact_limit: int = EXACT_LIMIT

    def __post_init__(self) -> None:
        _check_recall(self.recall)
        if self.memory_budget is not None:
            _check_whole("memory_budget", self.memory_budget, "bytes")
            if self.memory_budget < 1:
                raise InputError(f"memory_budget is {self.memory_budget}: give bytes, at least 1")
        if not isinstance(self.type, str):
            raise InputError(
                f"type is {self.type!r:.60}, {type(self.type).__name__}: give a name, such as hnsw"
            )
        if self.type not in TYPES and not any(c.isupper() for c in self.type):
            # FAISS's factory strings hold capitals, all of them.
            raise UnknownNameError("engine", self.type, TYPES, "A FAISS factory string will do too.")
        _check_whole("exact_limit", self.exact_limit, "rows")
        if self.exact_limit < 0:
            raise InputError(f"exact_limit is {self.exact_limit}: give 0 or more rows")


@dataclass(frozen=True)
class SearchEffort:
    """Say how hard to search: a recall@10 to reach by the measured curve, or the parameters themselves.

    `refine` is how many candidates are compared exactly. A recall of 1 scans everything.
    """

    recall: float | None = None
    nprobe: int | None = None
    ef_search: int | None = None
    refine: int | None = None

    def __post_init__(self) -> None:
        if self.recall is not None:
            _check_recall(self.recall)
        for name in ("nprobe", "ef_search", "refine"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, Integral) or value < 1
            ):
                raise InputError(f"{name} is {value!r}: give a whole number of at least 1")


def _check_whole(name: str, value: object, unit: str) -> None:
    # What JSON does not hold, as NumPy's integers, could not be stored with the index.
    if type(value) is not int:
        raise InputError(f"{name} is {value!r:.60}, {type(value).__name__}: give a whole number of {unit}")


def _check_recall(recall: float) -> None:
    if not isinstance(recall, int | float) or isinstance(recall, bool):
        raise InputError(f"recall is {recall!r:.60}, {type(recall).__name__}: give a number, such as 0.95")
    if not 0 < recall <= 1:
        raise InputError(f"recall is {recall}: give a share above 0 and up to 1, such as 0.95")


def choose(rows: int, dim: int, config: EngineConfig, itemsize: int = 2) -> str:
    """Return the engine's type: "exact", "ivf-pq", … or the factory string asked for.

    Raises InputError where nothing fits the memory budget.
    """
    budget = config.memory_budget
    if config.type != "auto":
        needed = resident_bytes(config.type, rows, dim, itemsize)
        if budget is not None and needed is not None and needed > budget:
            raise InputError(_too_large(config.type, rows, dim, needed, budget))
        return config.type
    order = ["ivf-pq"]
    if config.recall > _FINE_RECALL:
        order.insert(0, "ivf-sq8")
    if rows <= config.exact_limit or config.recall == 1:
        order.insert(0, "exact")
    for kind in order:
        needed = resident_bytes(kind, rows, dim, itemsize) or 0
        if budget is None or needed <= budget:
            return kind
    least = resident_bytes(order[-1], rows, dim, itemsize) or 0
    raise InputError(_too_large(order[-1], rows, dim, least, budget or 0))


def _too_large(kind: str, rows: int, dim: int, needed: int, budget: int) -> str:
    return (
        f"{rows:,} vectors of {dim} dimensions need {_size(needed)} as {kind}, and the memory budget is "
        f"{_size(budget)}: raise it, truncate the vectors (--dim), or split the corpus into several indexes"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count:,} bytes"


def resident_bytes(kind: str, rows: int, dim: int, itemsize: int = 2) -> int | None:
    """Return what a search keeps resident, the few vectors of the refinement apart; None for a factory string."""
    if kind == "exact":
        return rows * dim * itemsize
    # Centroids in float32 and in codes of a bit a dimension.
    cells = cell_count(rows) * dim * 33 // 8
    return {
        "ivf-pq": rows * (-(-subspaces(dim) // 2) + 8) + cells,
        "ivf-rabitq": rows * (-(-dim // 8) + 16) + cells,
        "ivf-sq8": rows * (dim + 8) + cells,
        "hnsw": rows * (dim * itemsize + 8 * HNSW_LINKS + 16),
        "cagra": rows * (4 * dim + 8 * HNSW_LINKS + 16),
    }.get(kind)


def subspaces(dim: int) -> int:
    """Return how many codes of four bits stand for a vector: one for each four dimensions, or for the most that fit."""
    return next(dim // width for width in (4, 3, 2, 1) if dim % width == 0)


def cell_count(rows: int) -> int:
    """Return into how many cells an IVF index divides `rows` vectors: 4·√rows, each with 39 rows or more."""
    return max(1, min(int(4 * rows**0.5), rows // 39))


@dataclass(frozen=True)
class Point:
    """One setting of a curve: `effort` is nprobe or ef_search, `refine` the candidates compared exactly.

    `recall` is recall@10 against exact search; `cost` counts comparisons of codes, others weighed against them;
    `seconds` are those of one query on one thread when the index was built.
    """

    effort: int
    refine: int
    recall: float
    cost: float
    seconds: float = 0.0

    @staticmethod
    def from_plain(value: Mapping[str, Any]) -> Point:
        """Return the point that a manifest holds."""
        return Point(
            int(value["effort"]),
            int(value["refine" if "refine" in value else "rerank"]),  # its name until the second stage had it
            float(value["recall"]),
            float(value["cost"]),
            float(value.get("seconds", 0.0)),
        )


def pick(curve: Sequence[Point], recall: float) -> Point:
    """Return the cheapest point that reaches the recall, with a margin for the sample's error, else the top one."""
    wanted = recall + min(0.005, (1 - recall) / 4)
    reaching = [p for p in curve if p.recall >= wanted]
    if reaching:
        return min(reaching, key=lambda p: (p.cost, p.effort))
    return max(curve, key=lambda p: (p.recall, -p.cost))


@dataclass(frozen=True)
class SearchPlan:
    """How one search goes: `way` is "exact", "probe" (all rows) or "cells" (those that hold allowed rows).

    `effort` is nprobe or ef_search, `depth` the candidates compared exactly; both 0 where all is scanned.
    """

    way: str
    effort: int = 0
    depth: int = 0


def plan_search(
    rows: int,
    k: int,
    point: Point,
    *,
    limit: int,
    effort: SearchEffort | None = None,
    allowed: int | None = None,
    cells: bool = True,
) -> SearchPlan:
    """Return how to search `rows` rows for k, `allowed` of them (None: all); `limit` bounds nprobe or ef_search.

    `point` is the one for the asked recall. `cells` is false for an engine that cannot skip what a filter empties.
    """
    count = rows if allowed is None else allowed
    # Refining a good part of what matches costs more than scanning it.
    if (effort is not None and effort.recall == 1) or 10 * k >= count:
        return SearchPlan("exact")
    share = count / rows
    given = effort or SearchEffort()
    probed = max(_raised(point.effort, k), _CELLS_FOR_K * k * limit // rows if cells else k)
    if given.nprobe or given.ef_search:
        probed = given.nprobe or given.ef_search or probed
    depth = max(k, given.refine or _depth(point.refine, k))
    if share >= _WIDE:
        probed = round(probed / share)
        return SearchPlan("probe", min(limit, probed), min(rows, round(depth / share)))
    if scan_seconds(rows, count) <= max(_QUICK, 2 * point.seconds):
        return SearchPlan("exact")
    if not cells:
        if share < 0.5:
            return SearchPlan("exact")
        return SearchPlan("probe", min(limit, round(2 * probed / share)), min(rows, round(2 * depth)))
    return SearchPlan("cells", min(limit, probed), min(count, 2 * depth))


def scan_seconds(rows: int, count: int) -> float:
    """Estimate how long one query takes to be compared with `count` of `rows` rows."""
    return min(rows * _PASSED + count * _COMPARED, count * _FETCHED)


def fetches(rows: int, count: int) -> bool:
    """Say whether `count` of `rows` rows are sooner fetched by their numbers than met in passing."""
    return count * _FETCHED < rows * _PASSED + count * _COMPARED


def _raised(effort: int, k: int) -> int:
    """Return the effort for k results, where it was measured for ten: more neighbours lie in more cells."""
    return effort if k <= 10 else round(effort * (k / 10) ** RAISED)


def _depth(refine: int, k: int) -> int:
    """Return how many candidates to compare for k results, where `refine` serve for ten."""
    return refine if k <= 10 else min(refine * k // 10, 3 * k + refine)
