"""embedkit's own engine over one segment of float16 vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from embedkit_indexes.faiss_engine import EngineConfig, SearchEffort, open_engine
from embedkit_indexes.faiss_engine import build as build_engine

BLOCK = 50_000
TUNED_ON = 1000


def build(base: Any, folder: Path, setting: dict[str, Any]) -> None:
    """Write the vectors as a segment holds them, then build the engine, which tunes itself."""
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, base.shape)
    for i in range(0, len(base), BLOCK):
        vectors[i : i + BLOCK] = base[i : i + BLOCK]
    vectors.flush()
    mapped = np.load(folder / "vectors.npy", mmap_mode="r")
    # Queries that nobody is judged by: those asked are the first thousand.
    queries = (
        np.load(folder.parent.parent / "queries.npy", mmap_mode="r")[-TUNED_ON:] if setting["tuned"] else None
    )
    description = build_engine(folder, mapped, EngineConfig(**setting["config"]), queries)
    (folder / "description.json").write_text(json.dumps(description))


class Searcher:
    """Search the opened engine; no effort: what its own tuning chose for the recall it was built for."""

    batches = True

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        description = json.loads((folder / "description.json").read_text())
        self._engine = open_engine(folder, np.load(folder / "vectors.npy", mmap_mode="r"), description)
        self.files: list[str] = []

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [queries, k]; effort: SearchEffort's fields."""
        return self._engine.search(queries, k, effort=SearchEffort(**effort) if effort else None)[1]
