"""LanceDB: a table of vectors with one of its indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import lancedb.index
import numpy as np
import pyarrow as pa

BLOCK = 50_000


def build(base: Any, folder: Path, setting: dict[str, Any]) -> None:
    """Write the table, then its index."""
    dim = base.shape[1]
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])

    def batches() -> Any:
        for i in range(0, len(base), BLOCK):
            rows = np.ascontiguousarray(base[i : i + BLOCK])
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dim)
            yield pa.RecordBatch.from_arrays([pa.array(np.arange(i, i + len(rows))), vectors], schema=schema)

    table = lancedb.connect(folder / "lance").create_table("vectors", batches(), schema=schema)
    config = getattr(lancedb.index, setting["index"])(distance_type="dot", **setting["options"])
    # In some versions the first parameter is the metric's name, unless there is a configuration: then the column's.
    table.create_index("vector", config=config)


class Searcher:
    """Search the table, one query at a time."""

    batches = False

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        self._table = lancedb.connect(folder / "lance").open_table("vectors")
        self.files: list[str] = []

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [1, k]; effort: nprobes, refine, ef."""
        query = self._table.search(queries[0]).distance_type("dot").limit(k).select(["id", "_distance"])
        query = query.nprobes(effort["nprobes"])
        if "refine" in effort:
            query = query.refine_factor(effort["refine"])
        if "ef" in effort:
            query = query.ef(effort["ef"])
        found = query.to_arrow()["id"].to_numpy()
        return np.pad(found, (0, k - len(found)), constant_values=-1)[None]
