"""Write clustered unit vectors that search like text embeddings, queries for them, and the exact answers.

    python benchmarks/vectors.py [--rows 1000000] [--dim 384] [--queries 10000] [--folder .bench/peers]

Writes base.npy (float32 [rows, dim]), queries.npy (float32 [queries, dim]) and, for the first 1,000 queries, the exact
top 100 by inner product among the first 10,000, 100,000, 200,000 ... and all rows: truth-ROWS.npy (int64 [1000, 100]).
What is there is kept; a block of vectors depends on the seed and its number alone, so that a base of fewer rows is a
prefix of a larger one.

The mixture: 400 topics, 20,000 cluster centres around them, of log-normal sizes (the largest tenth holds about half of
the rows). All noise has a decaying spectrum (standard deviation of direction i as i^-0.5, in a random rotation), as
principal components of text embeddings have, and clusters differ in their spread. A share of a row's deviation lies in
24 directions of its topic. A query is a document of the same mixture that the base does not hold, perturbed. The
spread is set so that IVF4096,Flat needs to probe about 16 cells for recall@10 0.95 at a million rows.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent / ".bench" / "peers"
BLOCK = 10_000
TRUTH_QUERIES, TRUTH_DEPTH = 1000, 100
PREFIXES = (10_000, 100_000, 200_000, 1_000_000)


@dataclass(frozen=True)
class Mixture:
    """What the vectors are drawn from; see the module's first lines."""

    dim: int = 384
    seed: int = 5
    topics: int = 400
    clusters: int = 20_000
    directions: int = 24
    spread: float = 0.75
    perturbation: float = 0.25


class Vectors:
    """Draw blocks of unit vectors of one mixture, each block by its number."""

    def __init__(self, mixture: Mixture | None = None) -> None:
        self.mixture = m = mixture or Mixture()
        rng = np.random.default_rng([m.seed, 0])
        spectrum = np.arange(1, m.dim + 1, dtype=np.float32) ** -0.5
        spectrum /= np.linalg.norm(spectrum)
        rotation = np.linalg.qr(rng.standard_normal((m.dim, m.dim)))[0].astype(np.float32)
        # A row of noise times this has length about 1.
        self._shape = spectrum[:, None] * rotation
        topics = rng.standard_normal((m.topics, m.dim), dtype=np.float32) @ self._shape
        self._topic = rng.integers(0, m.topics, m.clusters)
        own = rng.standard_normal((m.clusters, m.dim), dtype=np.float32) @ self._shape
        self._centres = topics[self._topic] + own
        self._centres /= np.linalg.norm(self._centres, axis=1, keepdims=True)
        sizes = np.exp(1.3 * rng.standard_normal(m.clusters))
        self._cumulated = np.cumsum(sizes / sizes.sum())
        self._spreads = (m.spread * np.exp(0.25 * rng.standard_normal(m.clusters))).astype(np.float32)
        local = rng.standard_normal((m.topics, m.directions, m.dim), dtype=np.float32) @ self._shape
        self._local = local / np.float32(m.directions**0.5)

    def documents(self, number: int, rows: int = BLOCK) -> NDArray[np.float32]:
        """Return block `number` of the base, float32 [rows, dim], unit length."""
        return self._draw(np.random.default_rng([self.mixture.seed, 1, number]), rows)

    def queries(self, number: int, rows: int = BLOCK) -> NDArray[np.float32]:
        """Return block `number` of the queries, float32 [rows, dim], unit length."""
        rng = np.random.default_rng([self.mixture.seed, 2, number])
        documents = self._draw(rng, rows)
        noise = rng.standard_normal(documents.shape, dtype=np.float32) @ self._shape
        return _unit(documents + np.float32(self.mixture.perturbation) * noise)

    def _draw(self, rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
        cluster = np.minimum(np.searchsorted(self._cumulated, rng.random(rows)), self.mixture.clusters - 1)
        noise = rng.standard_normal((rows, self.mixture.dim), dtype=np.float32) @ self._shape
        weights = rng.standard_normal((rows, 1, self.mixture.directions), dtype=np.float32)
        topic = self._topic[cluster]
        # Topic by topic: gathering a matrix of directions for every row would take 370 MB a block.
        for t in np.unique(topic):
            mine = topic == t
            noise[mine] += weights[mine, 0] @ self._local[t]
        noise *= self._spreads[cluster, None] * np.float32(0.5**0.5)
        noise += self._centres[cluster]
        return _unit(noise)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def exact(base: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the numbers of the k rows nearest each query by inner product, best first, int64 [queries, k]."""
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    best = np.full((len(queries), k), -1, dtype=np.int64)
    block = 20_000
    for start in range(0, len(base), block):
        products = queries @ base[start : start + block].T
        top = min(k, products.shape[1])
        found = np.argpartition(-products, top - 1, axis=1)[:, :top]
        s = np.concatenate([scores, np.take_along_axis(products, found, axis=1)], axis=1)
        r = np.concatenate([best, found + start], axis=1)
        order = np.argsort(-s, axis=1, kind="stable")[:, :k]
        scores, best = np.take_along_axis(s, order, axis=1), np.take_along_axis(r, order, axis=1)
    return best


def _array(path: Path, rows: int, dim: int, draw: Any) -> NDArray[np.float32]:
    """Return the array at `path` as a memory map, written block by block if it is missing or too short."""
    if path.exists():
        there = np.load(path, mmap_mode="r")
        if len(there) >= rows and there.shape[1] == dim:
            return there[:rows]
    beside = path.with_suffix(".part")
    out = np.lib.format.open_memmap(beside, "w+", np.float32, (rows, dim))
    for start in range(0, rows, BLOCK):
        # A short last block is the beginning of the full one.
        out[start : start + BLOCK] = draw(start // BLOCK)[: rows - start]
    out.flush()
    beside.replace(path)
    return np.load(path, mmap_mode="r")


def prepare(
    rows: int, folder: Path = FOLDER, dim: int = 384, queries: int = 10_000
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return (base, queries, truth) of `rows` rows, as memory maps, drawing and searching what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Vectors(Mixture(dim=dim))
    base = _array(folder / "base.npy", rows, dim, source.documents)
    asked = _array(folder / "queries.npy", queries, dim, source.queries)
    path = folder / f"truth-{rows}.npy"
    if not path.exists():
        beside = path.with_suffix(".part.npy")
        np.save(beside, exact(base, np.asarray(asked[:TRUTH_QUERIES]), min(TRUTH_DEPTH, rows)))
        beside.replace(path)
    return base, asked, np.load(path)


def main() -> None:
    """Write base, queries and truths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    # The largest first: a base that is too short is written anew.
    for rows in sorted({args.rows, *(p for p in PREFIXES if p < args.rows)}, reverse=True):
        base, queries, truth = prepare(rows, args.folder, args.dim, args.queries)
        print(
            f"{rows:,} rows: base {base.shape}, queries {queries.shape}, truth {truth.shape}", file=sys.stderr
        )


if __name__ == "__main__":
    main()
