"""milvus-lite by its Python interface, without the gRPC server that pymilvus would put between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from milvus_lite import CollectionSchema, DataType, FieldSchema, MilvusLite

faiss.omp_set_num_threads(1)
BLOCK = 5000


def build(base: Any, folder: Path, setting: dict[str, Any]) -> None:
    """Insert in batches, index, and load once, which is when it builds."""
    fields = [
        FieldSchema(name="id", dtype=DataType.INT64, is_primary=True),
        FieldSchema(name="vector", dtype=DataType.FLOAT_VECTOR, dim=base.shape[1]),
    ]
    with MilvusLite(str(folder / "milvus")) as database:
        table = database.create_collection("vectors", CollectionSchema(fields=fields))
        for i in range(0, len(base), BLOCK):
            rows = base[i : i + BLOCK].tolist()
            table.insert([{"id": i + j, "vector": row} for j, row in enumerate(rows)])
        table.flush()
        table.create_index(
            "vector", {"index_type": setting["index"], "metric_type": "IP", "params": setting["options"]}
        )
        table.load()


class Searcher:
    """Search the loaded collection."""

    batches = True

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        self._database = MilvusLite(str(folder / "milvus"))
        self._table = self._database.get_collection("vectors")
        self._table.load()
        self.files: list[str] = []

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [queries, k]; effort: ef or nprobe."""
        hits = self._table.search(
            queries.tolist(), top_k=k, metric_type="IP", output_fields=[], search_params=effort
        )
        return np.array([[h["id"] for h in row] + [-1] * (k - len(row)) for row in hits], dtype=np.int64)
