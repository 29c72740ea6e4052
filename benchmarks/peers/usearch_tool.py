"""usearch: HNSW over float16 or int8 vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from usearch.index import Index

BLOCK = 20_000


def build(base: Any, folder: Path, setting: dict[str, Any]) -> None:
    """Add all vectors with one thread and save."""
    index = Index(
        ndim=base.shape[1],
        metric="ip",
        dtype=setting["dtype"],
        connectivity=setting["connectivity"],
        expansion_add=setting["ef_construction"],
    )
    for i in range(0, len(base), BLOCK):
        rows = np.ascontiguousarray(base[i : i + BLOCK])
        index.add(np.arange(i, i + len(rows)), rows, threads=1)
    index.save(str(folder / "usearch.index"))


class Searcher:
    """Search the loaded index, or a view of its file."""

    batches = True

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        self._index = Index.restore(str(folder / "usearch.index"), view=setting.get("view", False))
        self.files: list[str] = []

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [queries, k]; effort: ef_search."""
        if self._index.expansion_search != effort["ef_search"]:
            self._index.expansion_search = effort["ef_search"]
        if len(queries) == 1:
            return self._index.search(queries[0], k, threads=1).keys.astype(np.int64)[None]
        return self._index.search(queries, k, threads=1).keys.astype(np.int64)
