"""hnswlib: HNSW over float32 vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

BLOCK = 20_000


def build(base: Any, folder: Path, setting: dict[str, Any]) -> None:
    """Add all vectors with one thread and save."""
    index = hnswlib.Index(space="ip", dim=base.shape[1])
    index.init_index(max_elements=len(base), M=setting["M"], ef_construction=setting["ef_construction"])
    index.set_num_threads(1)
    for i in range(0, len(base), BLOCK):
        rows = np.ascontiguousarray(base[i : i + BLOCK])
        index.add_items(rows, np.arange(i, i + len(rows)), num_threads=1)
    index.save_index(str(folder / "hnswlib.index"))


class Searcher:
    """Search the loaded index."""

    batches = True

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        self._index = hnswlib.Index(space="ip", dim=np.load(base, mmap_mode="r").shape[1])
        self._index.load_index(str(folder / "hnswlib.index"))
        self._index.set_num_threads(1)
        self.files: list[str] = []
        self._ef = 0

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [queries, k]; effort: ef_search."""
        if self._ef != effort["ef_search"]:
            self._ef = effort["ef_search"]
            self._index.set_ef(self._ef)
        return self._index.knn_query(queries, k, num_threads=1)[0].astype(np.int64)
