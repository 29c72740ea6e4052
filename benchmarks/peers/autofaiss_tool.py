"""autofaiss: it chooses the FAISS index and its parameters from the memory allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from autofaiss import build_index

faiss.omp_set_num_threads(1)


def build(base: Any, folder: Path, setting: dict[str, Any]) -> None:
    """Let autofaiss choose, under its own defaults or a memory budget."""
    source = folder / "source"
    source.mkdir()
    np.save(source / "base.npy", base)
    build_index(
        str(source),
        index_path=str(folder / "faiss.index"),
        index_infos_path=str(folder / "infos.json"),
        metric_type="ip",
        nb_cores=1,
        **setting["options"],
    )
    (source / "base.npy").unlink()
    source.rmdir()


class Searcher:
    """Search what autofaiss built; effort's `parameters` (FAISS's ParameterSpace text) change its own choice."""

    batches = True

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        self._index = faiss.read_index(str(folder / "faiss.index"))
        self._own = json.loads((folder / "infos.json").read_text())["index_param"]
        self._set = ""
        self.files: list[str] = []

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [queries, k]."""
        wanted = effort.get("parameters", self._own)
        if wanted != self._set:
            values = dict(p.split("=") for p in self._own.split(","))
            values |= {n: v for n, v in (p.split("=") for p in wanted.split(",")) if n in values}
            text = ",".join(f"{n}={v}" for n, v in values.items())
            faiss.ParameterSpace().set_index_parameters(self._index, text)
            self._set = wanted
        return self._index.search(queries, k)[1]
