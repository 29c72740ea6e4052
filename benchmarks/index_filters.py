"""Measure recall@10 and time of filtered searches at several selectivities.

    python benchmarks/index_filters.py [--rows 1000000] [--queries 500] [--recall 0.95] [--engine auto]

One thread, one query at a time, over the vectors of vectors.py. A filter lets through a share of the rows: drawn at random,
or whole clusters (the rows nearest to some rows drawn at random, as a source or a language would be), either of them far from
most queries. The engine chooses way and effort itself; exact search of the same subset is what it is measured by, and
timed beside it in turns. The engine's own index is built once and kept under .bench/filters.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ["EMBEDKIT_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray
from vectors import FOLDER, prepare

from embedkit_indexes import EngineConfig, SearchEffort, faiss_engine
from embedkit_indexes.rows import RowSet

SHARES = (0.95, 0.5, 0.1, 0.01, 0.001)
SEEDS = 300


def opened(rows: int, kind: str, recall: float) -> tuple[faiss_engine.Engine, NDArray[np.float16]]:
    """Return the engine and its vectors, built where they are missing."""
    folder = FOLDER.parent / "filters" / f"{rows}-{kind}-{recall}"
    vectors_at, described = folder / "vectors.npy", folder / "description.json"
    if not described.exists():
        folder.mkdir(parents=True, exist_ok=True)
        base = prepare(rows)[0]
        out = np.lib.format.open_memmap(vectors_at, "w+", np.float16, base.shape)
        for start in range(0, rows, 50_000):
            out[start : start + 50_000] = base[start : start + 50_000]
        out.flush()
        config = EngineConfig(kind, recall=recall)
        description = faiss_engine.build(folder, np.load(vectors_at, mmap_mode="r"), config)
        described.write_text(json.dumps(description))
    vectors = np.load(vectors_at, mmap_mode="r")
    return faiss_engine.open_engine(folder, vectors, json.loads(described.read_text())), vectors


def nearness(base: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each row's product with the nearest of some rows drawn at random: what a filter by clusters cuts at."""
    seeds = np.asarray(base[np.sort(np.random.default_rng(3).choice(len(base), SEEDS, replace=False))])
    blocks = [(np.asarray(base[s : s + 50_000]) @ seeds.T).max(axis=1) for s in range(0, len(base), 50_000)]
    return np.concatenate(blocks)


def measure(engine: faiss_engine.Engine, asked: NDArray[np.float32], allowed: RowSet) -> dict[str, Any]:
    """Search by the engine's own choice and exactly, in turns; the medians and the recall."""
    own: list[float] = []
    exact: list[float] = []
    hits = 0
    for query in asked:
        begun = time.perf_counter()
        found = engine.search(query[None], 10, allowed)[1]
        between = time.perf_counter()
        truth = engine.search(query[None], 10, allowed, SearchEffort(recall=1.0))[1]
        own.append(between - begun)
        exact.append(time.perf_counter() - between)
        if (found < 0).any() and allowed.count >= 10:
            raise SystemExit("fewer than ten found where there are ten")
        hits += len(np.intersect1d(found, truth))
    return {
        "recall": hits / (10 * len(asked)),
        "ms": statistics.median(own) * 1e3,
        "exact_ms": statistics.median(exact) * 1e3,
        "plan": engine.plan(10, allowed),
    }


def main() -> None:
    """Print a line for each filter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--engine", default="auto")
    args = parser.parse_args()
    base, queries, _ = prepare(args.rows)
    engine, _ = opened(args.rows, args.engine, args.recall)
    asked = np.ascontiguousarray(queries[: args.queries])
    near, chance = nearness(base), np.random.default_rng(4).random(args.rows)
    print("| rows allowed | of | recall@10 | ms | exact, ms | way |\n| --- | --- | --- | --- | --- | --- |")
    for share in SHARES:
        for kind, values in (("at random", chance), ("clusters", near)):
            allowed = RowSet(values > np.quantile(values, 1 - share))
            found = measure(engine, asked, allowed)
            plan = found["plan"]
            way = f"{plan.get('way', 'exact')}, nprobe {plan.get('nprobe', '-')}, {plan.get('refined', '-')} refined"
            print(
                f"| {share:.1%} | {kind} | {found['recall']:.3f} | {found['ms']:.2f} | {found['exact_ms']:.2f} | {way} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
