"""Time the start of a process: `embedkit search --json` on 10,000 chunks, and `embedkit --help`.

    python benchmarks/start_up.py [--runs 15] [--chunks 10000] [--embedder bundled]

Each is paired, A B A B ..., with a bare interpreter that only imports what a search cannot do without
(numpy, faiss, tokenizers, openvino), or click. The figure is the ratio of the medians of wall time; user and
system CPU time stand beside it, because wall time suffers on a busy machine. The index is built once into a
temporary folder; the first search, which fills the caches (weights hash, compiled graph), is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "tide",
    "moon",
    "bread",
    "salt",
    "river",
    "engine",
    "letter",
    "window",
    "garden",
    "copper",
    "signal",
    "winter",
    "harbour",
    "mirror",
    "basket",
]


def make_index(folder: Path, chunks: int, embedder: str) -> None:
    """Index that many short documents."""
    import random

    from embedkit_indexes import Document, Index

    rng = random.Random(0)
    documents = (
        Document(f"d{i}", " ".join(rng.choices(WORDS, k=rng.randint(4, 30))) + f" {i}", lang="en")
        for i in range(chunks)
    )
    Index.build(folder, documents, embedder)


def run(command: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a whole process."""
    before = os.times()
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - start
    after = os.times()
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return wall, cpu


def compare(name: str, command: list[str], base: list[str], runs: int) -> None:
    """Print the ratio of the medians of two commands run in turn."""
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    run(command)
    run(base)
    for _ in range(runs):
        times.append((run(command), run(base)))
    ours_wall, ours_cpu, base_wall, base_cpu = (
        statistics.median(t[side][kind] for t in times) for side in (0, 1) for kind in (0, 1)
    )
    print(
        f"{name}: {ours_wall * 1000:.0f} ms against {base_wall * 1000:.0f} ms, ratio {ours_wall / base_wall:.2f} "
        f"(CPU {ours_cpu * 1000:.0f} against {base_cpu * 1000:.0f} ms, ratio {ours_cpu / base_cpu:.2f}; "
        f"{runs} pairs, wall ratio pair by pair {min(t[0][0] / t[1][0] for t in times):.2f} to "
        f"{max(t[0][0] / t[1][0] for t in times):.2f})"
    )


def main() -> None:
    """Build the index and time both commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--embedder", default="bundled", help="a folder of the bundled format, say")
    args = parser.parse_args()
    embedkit = str(Path(sys.executable).parent / "embedkit")
    with tempfile.TemporaryDirectory() as temporary:
        index = Path(temporary) / "index"
        make_index(index, args.chunks, args.embedder)
        compare(
            f"embedkit search --json, {args.chunks:,} chunks",
            [embedkit, "search", str(index), "the moon and the tide", "--json"],
            [sys.executable, "-c", "import numpy, faiss, tokenizers, openvino"],
            args.runs,
        )
        compare("embedkit --help", [embedkit, "--help"], [sys.executable, "-c", "import click"], args.runs)


if __name__ == "__main__":
    main()
