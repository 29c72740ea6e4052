"""Measure a large index as its users meet it: build, files, first answer, memory, latency against FAISS alone.

    python benchmarks/index_latency.py [--rows 1000000] [--rounds 5] [--queries 500] [--rebuild]

The vectors are those of benchmarks/vectors.py, handed out by an embedder that looks them up, so that nothing but the
index is timed. The index is built once, through `Index.build`, under .bench/latency/ROWS, and kept.

- first: a fresh process imports everything and then, timed, opens the index and answers its first query, with the
  files in the page cache (the median of the processes); and what its resident memory grew by, and after 1,000 queries.
- latency: `Index.search`, one query at a time, against the same FAISS index opened by hand and searched with the same
  parameters and re-ranking (`faiss.IndexRefine`), in turns, one thread; medians of the queries, ratio of the medians
  of the rounds. `rank` leaves out the texts of the hits. Finding a query's vector is timed apart and taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("EMBEDKIT_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from vectors import TRUTH_QUERIES, prepare

from embedkit import Embedder, EmbedderInfo
from embedkit_indexes import Document, Index
from embedkit_indexes.snapshot import Snapshot

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench" / "latency"


class Lookup(Embedder):
    """Give "document N" and "query N" the vectors of those numbers."""

    window = 8192

    def __init__(self, rows: int) -> None:
        self._base, self._queries, _ = prepare(rows)
        dim = self._base.shape[1]
        self.info = EmbedderInfo(
            name="lookup", dim=dim, max_length=64, pooling="mean", weights=f"lookup-{rows}"
        )

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        out = np.empty((len(texts), self.info.dim), dtype=np.float32)
        for i, text in enumerate(texts):
            kind, _, number = text.rpartition(" ")
            known = kind in ("document", "query") and number.isdigit()
            out[i] = (self._base if kind == "document" else self._queries)[int(number) if known else 0]
        return out


def resident() -> float:
    """Return this process's resident memory in MB: its own and that of mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("this system tells no resident memory")


def first(rows: int) -> None:
    """Print, as JSON, how long opening and the first answer took, and the memory."""
    import faiss  # noqa: F401
    import pyarrow  # noqa: F401

    embedder = Lookup(rows)
    embedder.encode_query(["query 0"])
    before = resident()
    start = time.perf_counter()
    index = Index.open(FOLDER / str(rows), embedder)
    opened = time.perf_counter()
    hits = index.search("query 1").hits
    done = time.perf_counter()
    after = resident()
    for number in range(TRUTH_QUERIES):
        index.search(f"query {number}")
    print(
        json.dumps(
            {
                "open_ms": (opened - start) * 1e3, "first_ms": (done - opened) * 1e3, "hits": len(hits),
                "grown_mb": after - before, "grown_mb_after_1000": resident() - before,
            }
        )
    )  # fmt: skip


def median_ms(call: Any, items: Sequence[Any]) -> float:
    """Return the median milliseconds of a call on each item."""
    times = []
    for item in items:
        start = time.perf_counter()
        call(item)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def latency(rows: int, rounds: int, count: int) -> dict[str, Any]:
    """Search one query at a time by the index and by FAISS alone, in turns."""
    import faiss

    embedder = Lookup(rows)
    directory = FOLDER / str(rows)
    index = Index.open(directory, embedder)
    index.search("query 0")
    snapshot = Snapshot.open(directory)
    (segment,) = snapshot.segments
    engine: Any = segment.engine
    plan = engine.plan(10)
    vectors = segment.vectors
    texts = [f"query {n}" for n in range(count)]
    queries = [embedder.encode_query([t]) for t in texts]
    faiss.omp_set_num_threads(1)
    if segment.record.engine["type"] == "exact":
        raw = faiss.IndexFlatIP(vectors.shape[1])
        raw.add(np.asarray(vectors, dtype=np.float32))
        parameters = None
    else:
        coarse = faiss.read_index(str(segment.folder / "faiss.index"), faiss.IO_FLAG_MMAP_IFC)
        exact = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        exact.train(np.zeros((1, vectors.shape[1]), dtype=np.float32))
        for start in range(0, len(vectors), 100_000):
            exact.add(np.asarray(vectors[start : start + 100_000], dtype=np.float32))
        raw = faiss.IndexRefine(coarse, exact)
        parameters = faiss.IndexRefineSearchParameters(
            k_factor=plan["reranked"] / 10, base_index_params=faiss.SearchParametersIVF(nprobe=plan["nprobe"])
        )
    same = np.mean(
        [
            len(set(raw.search(q, 10, params=parameters)[1][0]) & {h.chunk_id for h in index.search(t).hits})
            / 10
            for q, t in zip(queries[:100], texts[:100], strict=True)
        ]
    )
    out: dict[str, list[float]] = {"faiss": [], "search": [], "rank": [], "encode": []}
    for _ in range(rounds):
        out["faiss"].append(median_ms(lambda q: raw.search(q, 10, params=parameters), queries))
        out["search"].append(median_ms(index.search, texts))
        out["rank"].append(median_ms(lambda t: index.rank([t]), texts))
        out["encode"].append(median_ms(lambda t: embedder.encode_query([t]), texts))
    found = {name: statistics.median(values) for name, values in out.items()}
    return {
        "plan": plan, "same_hits": round(float(same), 4), **{f"{n}_ms": round(v, 4) for n, v in found.items()},
        "search / faiss": round((found["search"] - found["encode"]) / found["faiss"], 3),
        "rank / faiss": round((found["rank"] - found["encode"]) / found["faiss"], 3),
    }  # fmt: skip


def main() -> None:
    """Build what is missing, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rebuild", action="store_true")
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first:
        first(args.rows)
        return
    directory = FOLDER / str(args.rows)
    if args.rebuild or not (directory / "embedkit.json").exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        documents = (
            Document(f"d{n}", f"document {n}", lang="en", metadata={"year": 1990 + n % 35, "part": n % 1000})
            for n in range(args.rows)
        )
        start, cpu = time.perf_counter(), time.process_time()
        report = Index.build(directory, documents, Lookup(args.rows), overwrite=True)
        print(
            f"build: {time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} CPU-s, {report.engine}"
        )
    size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
    print(f"files: {size / 1e6:,.0f} MB")
    firsts = []
    for _ in range(args.rounds):
        done = subprocess.run(
            [sys.executable, __file__, "--first", "--rows", str(args.rows)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        firsts.append(json.loads(done.stdout))
    for name in firsts[0]:
        print(f"first process: {name} {statistics.median(f[name] for f in firsts):.1f}")
    for name, value in latency(args.rows, args.rounds, args.queries).items():
        print(f"latency: {name} {value}")


if __name__ == "__main__":
    main()
