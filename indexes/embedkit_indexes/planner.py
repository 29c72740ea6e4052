"""Which engine to build, and with what effort to search it: pure functions of sizes and targets."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.errors import InputError

# Up to here one query scans everything in some 30 ms on a laptop core, and nothing need be trained.
EXACT_LIMIT = 200_000
TYPES = ("auto", "exact", "ivf-rabitq", "ivf-sq8", "hnsw")


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
        if not 0 < self.recall <= 1:
            raise InputError(f"recall is {self.recall}: give a share above 0 and up to 1, such as 0.95")


@dataclass(frozen=True)
class SearchEffort:
    """Say how hard to search: a recall@10 to reach by the measured curve, or the parameters themselves.

    `rerank` is how many candidates are compared exactly.
    """

    recall: float | None = None
    nprobe: int | None = None
    ef_search: int | None = None
    rerank: int | None = None

    def __post_init__(self) -> None:
        if self.recall is not None and not 0 < self.recall <= 1:
            raise InputError(f"recall is {self.recall}: give a share above 0 and up to 1, such as 0.95")
        for name in ("nprobe", "ef_search", "rerank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: give a whole number of at least 1")


def choose(rows: int, config: EngineConfig) -> str:
    """Return the engine's type: "exact", "ivf-rabitq", … or the factory string asked for."""
    if config.type != "auto":
        return config.type
    return "exact" if rows <= config.exact_limit else "ivf-rabitq"


def cell_count(rows: int) -> int:
    """Return into how many cells an IVF index divides `rows` vectors: 4·√rows, each cell with 39 or more."""
    return max(1, min(int(4 * rows**0.5), rows // 39))
