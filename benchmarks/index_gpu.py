"""Time the engine's build and its batch search with the GPU against the CPU of the same machine.

    python benchmarks/index_gpu.py [--rows 1000000] [--queries 10000] [--rounds 3] [--threads 16]

Needs `.[gpu]` or `.[cuvs]` and a card. The same vectors (benchmarks/vectors.py, stored as float16), in turns, once with
the cards and once as if there were none: the build of an IVF-RaBitQ engine, the exact search of all queries in one
batch, and the share of the top 10 that both ways find. With --cpu-only it runs without a card, to be tried anywhere.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from vectors import prepare

from embedkit_indexes import EngineConfig, faiss_engine, gpu


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the mean share of equal row numbers."""
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(one, other, strict=True)]))


def run(vectors: NDArray[np.float16], queries: NDArray[np.float32]) -> dict[str, Any]:
    """Build and search once."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        description = faiss_engine.build(Path(folder), vectors, EngineConfig("ivf-pq"))
        built = time.perf_counter() - start
        engine = faiss_engine.open_engine(Path(folder), vectors, description)
        found = engine.search(queries[:1000], 10)[1]
    exact = faiss_engine.open_engine(Path(folder), vectors, {**description, "type": "exact"})
    exact.search(queries[:2], 10)
    start = time.perf_counter()
    truth = exact.search(queries, 10)[1]
    searched = time.perf_counter() - start
    return {"build": built, "search": searched, "found": found, "truth": truth}


def main() -> None:
    """Run both ways in turns and print the ratios of the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--cpu-only", action="store_true")
    args = parser.parse_args()
    os.environ["EMBEDKIT_THREADS"] = str(args.threads)
    base, queries, _ = prepare(args.rows, queries=args.queries)
    vectors = np.asarray(base, dtype=np.float16)
    asked = np.ascontiguousarray(queries)
    cards = gpu.device_count(faiss_engine.load())
    if not cards and not args.cpu_only:
        print(
            "skipped: FAISS sees no card; install .[gpu] or .[cuvs] on a machine with one, or try --cpu-only"
        )
        return
    runs: dict[str, list[dict[str, Any]]] = {"gpu": [], "cpu": []}
    for _ in range(args.rounds):
        runs["gpu"].append(run(vectors, asked))
        with mock.patch.object(gpu, "device_count", return_value=0):
            runs["cpu"].append(run(vectors, asked))
    for what in ("build", "search"):
        seconds = {way: statistics.median(r[what] for r in found) for way, found in runs.items()}
        print(
            f"{what}: {seconds['gpu']:.2f} s with {cards} cards, {seconds['cpu']:.2f} s with {args.threads} threads, "
            f"{seconds['cpu'] / seconds['gpu']:.1f} times"
        )
    one, other = runs["gpu"][0], runs["cpu"][0]
    print(f"same top 10: {overlap(one['truth'], other['truth']):.4f} exact, ", end="")
    print(f"{overlap(one['found'], other['found']):.4f} by cells")


if __name__ == "__main__":
    main()
