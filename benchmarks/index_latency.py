"""Measure a large index as its users meet it: build, files, first answer, memory, latency against FAISS alone.

    python benchmarks/index_latency.py [--rows 1000000] [--rounds 5] [--queries 500] [--rebuild]

The vectors are those of benchmarks/vectors.py, handed out by an embedder that looks them up, so that nothing but the
index is timed. The index is built once, through `Index.build`, under .bench/latency/ROWS, and kept.

- first: a fresh process imports everything and then, timed, opens the index and answers its first query, with the
  files in the page cache (the median of the processes); and what its resident memory grew by, and after 1,000 queries.
- latency: one query at a time, one thread, all in turns; medians of all searches, and their ratios. `faiss` is FAISS's own
  search over the files that the index opened, with the same parameters and refinement. `search` is `Index.search`, `rank`
  leaves out the hits; finding a query's vector, `encode`, is timed apart and taken off. `given` is `Index.search` with
  the vector at hand: what the engine and all around it take; `given_texts` reads the texts of the hits too.
- whole: from a query's words to the texts of its hits, the words encoded by the bundled embedder, over a `script` of
  nothing but the same encoding and the same search by FAISS. (The vector that is searched for is the lookup's own.)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("EMBEDKIT_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from vectors import TRUTH_QUERIES, prepare

from embedkit import Embedder, EmbedderInfo, Task, get_embedder
from embedkit_indexes import Document, Index, IndexReader
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


class Given(Lookup):
    """Have the query's vector at hand; encode the words all the same where an embedder is given for that."""

    def __init__(self, rows: int, texts: Sequence[str], vectors: Sequence[NDArray[np.float32]]) -> None:
        super().__init__(rows)
        self._given = dict(zip(texts, vectors, strict=True))
        self._words: Embedder | None = None

    def encoding(self, embedder: Embedder) -> Given:
        """Encode the words of each query by `embedder`, under its own task."""
        # What decides a query alone is not in the fingerprint.
        own = embedder.info
        self.info = replace(
            self.info, default_task=own.default_task, instruction_trained=own.instruction_trained
        )
        self._words = embedder
        return self

    def encode_query(
        self, texts: Sequence[str], task: str | Task | None = None, instruction: str | None = None
    ) -> NDArray[np.float32]:
        """See `Embedder.encode_query`."""
        if self._words is not None:
            self._words.encode_query(texts, task, instruction)
        return self._given[texts[0]]


def raw_search(engine: Any) -> Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any]]]:
    """Return FAISS's own search for ten over what the engine opened, with the parameters that it takes itself."""
    if not hasattr(engine, "_refine"):
        scan = engine._scan.index
        return lambda query: scan.search(query, 10)
    _, parameters = engine._prepare(10, None, None)
    refine = engine._refine
    return lambda query: refine.search(query, 10, params=parameters)


def in_turns(sides: Mapping[str, Callable[[int], Any]], count: int, rounds: int) -> dict[str, float]:
    """Return each side's median milliseconds over the queries' numbers; at a turn, each takes another query.

    So none finds in the caches what the one before it has just read.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    apart = count // len(sides)
    for turn in range(rounds * count):
        for place, (name, side) in enumerate(sides.items()):
            number = (turn + place * apart) % count
            start = time.perf_counter()
            side(number)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def latency(rows: int, rounds: int, count: int) -> dict[str, Any]:
    """Search one query at a time by the index and by FAISS alone, in turns."""
    import faiss

    embedder = Lookup(rows)
    directory = FOLDER / str(rows)
    snapshot = Snapshot.open(directory)
    (segment,) = snapshot.segments
    texts = [f"query {n}" for n in range(count)]
    words = [f"how do I cancel plan number {n} before the end of the month?" for n in range(count)]
    vectors = [embedder.encode_query([t]) for t in texts]
    # All of one snapshot: they share its engine and its files.
    index = IndexReader(directory, snapshot, embedder)
    given = IndexReader(directory, snapshot, Given(rows, texts, vectors))
    real = Given(rows, words, vectors).encoding(get_embedder("bundled"))
    whole = IndexReader(directory, snapshot, real)
    for reader, asked in ((index, texts), (given, texts), (whole, words)):
        for text in asked[:100]:
            _ = [h.text for h in reader.search(text).hits]
    faiss.omp_set_num_threads(1)
    raw = raw_search(segment.engine)
    same = [
        len(set(raw(v)[1][0]) & {h.chunk_id for h in index.search(t).hits}) / 10
        for v, t in zip(vectors[:100], texts[:100], strict=True)
    ]
    found = in_turns(
        {
            "faiss": lambda n: raw(vectors[n]),
            "search": lambda n: index.search(texts[n]),
            "rank": lambda n: index.rank([texts[n]]),
            "encode": lambda n: embedder.encode_query([texts[n]]),
            "given": lambda n: given.search(texts[n]),
            "given_texts": lambda n: [h.text for h in given.search(texts[n]).hits],
            "script": lambda n: raw(real.encode_query([words[n]])),
            "whole": lambda n: [h.text for h in whole.search(words[n]).hits],
        },
        count,
        rounds,
    )
    return {
        "plan": segment.engine.plan(10), "same_hits": round(statistics.mean(same), 4),
        **{f"{n}_ms": round(v, 4) for n, v in found.items()},
        "search / faiss": round((found["search"] - found["encode"]) / found["faiss"], 3),
        "rank / faiss": round((found["rank"] - found["encode"]) / found["faiss"], 3),
        "given / faiss": round(found["given"] / found["faiss"], 3),
        "given_texts / faiss": round(found["given_texts"] / found["faiss"], 3),
        "whole / script": round(found["whole"] / found["script"], 3),
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
