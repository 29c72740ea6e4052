"""Lay vectors of real texts out for the page's map: CPU seconds, and how many neighbours stay neighbours.

    OMP_NUM_THREADS=1 EMBEDKIT_DATA=… python benchmarks/map.py --count 5000 20000

Arms are what the server does (`project`), and the t-SNE of openTSNE and of scikit-learn, each with its own settings and one thread. Trustworthiness (Venna & Kaski 2001, 1 at
best, cosine, 10 neighbours) is that of 2,000 points among themselves. Texts are those of $EMBEDKIT_DATA/eval/*/{corpus,queries}.jsonl,
embedded once into .bench/map.npy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

KEPT = Path(__file__).resolve().parents[1] / ".bench" / "map.npy"
MOST = 20_000


def _vectors() -> np.ndarray:
    if KEPT.exists():
        return np.load(KEPT)
    files = sorted(Path(os.environ.get("EMBEDKIT_DATA", ""), "eval").glob("*/[cq]*.jsonl"))
    rows = [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]
    texts = sorted({text[:400] for text in rows})
    if len(texts) < MOST:
        sys.exit(
            f"{len(texts)} texts are too few: set EMBEDKIT_DATA to a folder that holds eval/*/corpus.jsonl"
        )
    from embedkit import get_embedder

    vectors = get_embedder("bundled").encode_document(random.Random(0).sample(texts, MOST))
    KEPT.parent.mkdir(exist_ok=True)
    np.save(KEPT, vectors)
    return vectors


def _open_tsne(vectors: np.ndarray) -> np.ndarray:
    from openTSNE import TSNE

    return np.asarray(TSNE(metric="cosine", random_state=0, n_jobs=1).fit(vectors))


def _scikit_learn(vectors: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    return TSNE(metric="cosine", init="pca", random_state=0).fit_transform(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, nargs="+", default=[5000, MOST])
    args = parser.parse_args()
    from sklearn.manifold import trustworthiness

    from embedkit_cli.server.projection import project

    arms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "project": project, "openTSNE": _open_tsne, "scikit-learn": _scikit_learn,
    }  # fmt: skip
    vectors = _vectors()
    sample = np.random.default_rng(0)
    for count in args.count:
        some = vectors[:count]
        checked = np.sort(sample.choice(count, 2000, replace=False))
        for name, lay_out in arms.items():
            began, spent = time.perf_counter(), time.process_time()
            points = lay_out(some)
            cpu, wall = time.process_time() - spent, time.perf_counter() - began
            kept = trustworthiness(some[checked], points[checked], n_neighbors=10, metric="cosine")
            print(
                f"{count:6,} chunks  {name:13}  CPU {cpu:6.1f} s  wall {wall:6.1f} s  trustworthiness {kept:.4f}"
            )


if __name__ == "__main__":
    main()
