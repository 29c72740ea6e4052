"""Measure how building, memory, files and latency grow with the number of vectors, and fit the exponents.

    python benchmarks/index_growth.py [--rows 10000 100000 1000000] [--engine ivf-pq] [--queries 300]

Each size in a process of its own, one thread: the engine is built over the first rows of benchmarks/vectors.py (float16),
opened afresh and asked one query at a time. An exponent is the slope of the logarithms (least squares): 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["EMBEDKIT_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from vectors import FOLDER, prepare

from embedkit_indexes import EngineConfig, faiss_engine

COLUMNS = ("build_cpu_s", "peak_mb", "index_mb", "vectors_mb", "open_ms", "query_ms")


def measure(rows: int, engine: str, queries: int) -> dict[str, float]:
    """Build and search an engine of so many rows."""
    base, asked, truth = prepare(rows)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = Path(folder, "vectors.f16")
        out = np.memmap(path, np.float16, "w+", shape=base.shape)
        for start in range(0, rows, 50_000):
            out[start : start + 50_000] = base[start : start + 50_000]
        out.flush()
        vectors = np.memmap(path, np.float16, "r", shape=base.shape)
        del out
        cpu = time.process_time()
        description = faiss_engine.build(Path(folder), vectors, EngineConfig(engine))
        cpu = time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start_ = time.perf_counter()
        opened = faiss_engine.open_engine(Path(folder), vectors, description)
        opening = time.perf_counter() - start_
        times, found = [], []
        for i in range(queries):
            start_ = time.perf_counter()
            found.append(opened.search(asked[i : i + 1], 10)[1][0])
            times.append(time.perf_counter() - start_)
        hit = [len(set(f) & set(t[:10])) / 10 for f, t in zip(found, truth, strict=False)]
        size = sum((Path(folder) / name).stat().st_size for name in description["files"])
        return {
            "rows": rows, "build_cpu_s": cpu, "peak_mb": peak, "index_mb": size / 1e6, "vectors_mb": vectors.nbytes / 1e6,
            "open_ms": opening * 1e3, "query_ms": statistics.median(times) * 1e3, "recall": float(np.mean(hit)),
        }  # fmt: skip


def main() -> None:
    """Run each size in its own process, print the table and the exponents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--engine", default="ivf-pq")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.engine, args.queries)))
        return
    prepare(max(args.rows))
    found = []
    for rows in args.rows:
        done = subprocess.run(
            [
                *(sys.executable, __file__, "--one", str(rows), "--engine", args.engine),
                *("--queries", str(args.queries)),
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout))
        print({k: round(v, 3) for k, v in found[-1].items()}, flush=True)
    sizes = np.log([f["rows"] for f in found])
    for name in COLUMNS:
        slope = np.polyfit(sizes, np.log([f[name] for f in found]), 1)[0]
        print(f"{name}: rows ^ {slope:.2f}")


if __name__ == "__main__":
    main()
