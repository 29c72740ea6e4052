"""FAISS as a person would set it up by hand: a factory string, and a store of exact vectors to refine by."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

faiss.omp_set_num_threads(1)
BLOCK = 50_000
TRAIN_PER_CELL = 64


def _coarse(base: Any, folder: Path, cells: int) -> tuple[Any, Any, list[float]]:
    """Return (centroids, assignment, [wall, CPU] seconds they took before), shared by all indexes of as many cells."""
    at = folder.parent / f"coarse-{cells}"
    if (at / "cost.json").exists():
        return (
            np.load(at / "centroids.npy"),
            np.load(at / "assignment.npy"),
            json.loads((at / "cost.json").read_text()),
        )
    at.mkdir(exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    means = faiss.Kmeans(base.shape[1], cells, niter=10, spherical=True, max_points_per_centroid=256)
    means.train(_sample(base, cells))
    quantizer = faiss.IndexFlatIP(base.shape[1])
    quantizer.add(means.centroids)
    assignment = np.concatenate(
        [quantizer.search(base[i : i + BLOCK], 1)[1][:, 0] for i in range(0, len(base), BLOCK)]
    )
    np.save(at / "centroids.npy", means.centroids)
    np.save(at / "assignment.npy", assignment)
    (at / "cost.json").write_text(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
    return means.centroids, assignment, [0.0, 0.0]


def _sample(base: Any, cells: int) -> Any:
    rows = np.random.default_rng(0).choice(len(base), min(len(base), cells * TRAIN_PER_CELL), replace=False)
    return base[np.sort(rows)]


def _store(base: Any, folder: Path, kind: str) -> list[float]:
    """Write the vectors to refine by, shared by all indexes; return the [wall, CPU] seconds they took before."""
    at = folder.parent / f"store-{kind}"
    if (at / "cost.json").exists():
        cost: list[float] = json.loads((at / "cost.json").read_text())
        return cost
    at.mkdir(exist_ok=True)
    wall, cpu = time.perf_counter(), time.process_time()
    index = faiss.index_factory(base.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(_sample(base, 1000))
    for i in range(0, len(base), BLOCK):
        index.add(base[i : i + BLOCK])
    faiss.write_index(index, str(at / "faiss.index"))
    (at / "cost.json").write_text(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
    return [0.0, 0.0]


def build(base: Any, folder: Path, setting: dict[str, Any]) -> list[float]:
    """Train, add and write; k-means and the store are shared between settings, and their cost counted for each."""
    spent = [0.0, 0.0]
    index = faiss.index_factory(base.shape[1], setting["factory"], faiss.METRIC_INNER_PRODUCT)
    if setting["factory"].startswith("HNSW"):
        faiss.downcast_index(index).hnsw.efConstruction = setting["ef_construction"]
        index.train(_sample(base, 1000))
        for i in range(0, len(base), BLOCK):
            index.add(base[i : i + BLOCK])
    else:
        spent = _fill(index, base, folder)
    faiss.write_index(index, str(folder / "faiss.index"))
    if setting.get("store"):
        cost = _store(base, folder, setting["store"])
        spent = [spent[0] + cost[0], spent[1] + cost[1]]
    return spent


def _fill(index: Any, base: Any, folder: Path) -> list[float]:
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    centroids, assignment, spent = _coarse(base, folder, ivf.nlist)
    chain = faiss.downcast_index(index).chain if isinstance(index, faiss.IndexPreTransform) else None
    turn = (lambda x: x) if chain is None else faiss.downcast_VectorTransform(chain.at(0)).apply
    sample = _sample(base, ivf.nlist)
    if chain is not None:
        faiss.downcast_VectorTransform(chain.at(0)).train(sample)
        index.is_trained = True
    quantizer = faiss.downcast_index(ivf.quantizer)
    quantizer.train(turn(centroids))
    quantizer.add(turn(centroids))
    if isinstance(quantizer, faiss.IndexRefine):
        quantizer.k_factor = 4
    elif isinstance(quantizer, faiss.IndexHNSW):
        quantizer.hnsw.efSearch = 128
    ivf.train(turn(sample))
    # Fast-scan indexes assign rows themselves.
    direct = "FastScan" not in type(ivf).__name__
    for i in range(0, len(base), BLOCK):
        rows = np.ascontiguousarray(turn(np.ascontiguousarray(base[i : i + BLOCK])))
        if direct:
            ids = np.arange(i, i + len(rows))
            cells = np.ascontiguousarray(assignment[i : i + len(rows)])
            ivf.add_core(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(ids), faiss.swig_ptr(cells))
        else:
            ivf.add(rows)
    index.ntotal = ivf.ntotal
    return spent


class Searcher:
    """Search one index, with refinement where it has a store."""

    batches = True

    def __init__(self, base: Path, folder: Path, setting: dict[str, Any]) -> None:
        self._hnsw = setting["factory"].startswith("HNSW")
        flags = faiss.IO_FLAG_MMAP_IFC if self._hnsw else 0
        self._base = faiss.read_index(str(folder / "faiss.index"), flags)
        self.files: list[str] = []
        self._index = self._base
        if setting.get("store"):
            path = folder.parent / f"store-{setting['store']}" / "faiss.index"
            self.files.append(str(path))
            self._store = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            self._index = faiss.IndexRefine(self._base, self._store)
        self._turned = isinstance(faiss.downcast_index(self._base), faiss.IndexPreTransform)
        self._rabitq = "RaBitQ" in setting["factory"]

    def search(self, queries: Any, k: int, effort: dict[str, Any]) -> Any:
        """Return row numbers int64 [queries, k]; effort: nprobe or ef_search, qb, k_factor."""
        if self._hnsw:
            parameters = faiss.SearchParametersHNSW(efSearch=effort["ef_search"])
        elif self._rabitq:
            parameters = faiss.IVFRaBitQSearchParameters(nprobe=effort["nprobe"], qb=effort.get("qb", 0))
        else:
            parameters = faiss.SearchParametersIVF(nprobe=effort["nprobe"])
        if self._turned:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        if self._index is not self._base:
            parameters = faiss.IndexRefineSearchParameters(
                k_factor=effort["k_factor"], base_index_params=parameters
            )
        return self._index.search(queries, k, params=parameters)[1]
