"""Compare the bundled model, or a folder of its format, with all-MiniLM-L6-v2: size, speed, start, memory; arms in turn.

    python benchmarks/bundle.py [FOLDER] [--model FULL] [--passages 300] [--rounds 5] [--runs 7]

Passages are those of benchmarks/encode.py (EMBEDKIT_DATA, else examples/corpus), English and code. The start is a fresh
process that opens the folder and encodes one query, its caches filled. With --model, the folder that was exported, the cosine
to its full weights is told for 200 texts of examples/corpus, by language.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from encode import passages
from minilm import baseline

from embedkit.embedders.openvino import _MODELS, DEFAULT_MODEL, OpenVINOEmbedder

CORPUS = Path(__file__).parents[1] / "examples" / "corpus" / "corpus.jsonl"
START = """
import sys, time, os
import numpy, tokenizers
from embedkit.embedders.openvino import OpenVINOEmbedder, _openvino
_openvino()
begin, busy = time.perf_counter(), time.process_time()
OpenVINOEmbedder.open(sys.argv[1]).encode_query(["the moon and the tide"])
wall, cpu = time.perf_counter() - begin, time.process_time() - busy
rss = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
print(wall, cpu, rss / 1024)
"""


def speed(arms: dict[str, OpenVINOEmbedder], texts: list[str], rounds: int) -> None:
    """Print the seconds of both arms and the ratios of their medians."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for embedder in arms.values():
        embedder.encode_document(texts[:32])
    for _ in range(rounds):
        for name, embedder in arms.items():
            begin, busy = time.perf_counter(), time.process_time()
            embedder.encode_document(texts)
            times[name].append((time.perf_counter() - begin, time.process_time() - busy))
    for kind, at in (("wall", 0), ("CPU", 1)):
        old, new = (statistics.median(t[at] for t in times[name]) for name in arms)
        print(f"encode {len(texts)} passages, {kind}: {new:.2f} against {old:.2f} s, ratio {new / old:.3f}")
    for name, embedder in arms.items():
        print(f"  {name}: {statistics.mean(embedder.count_tokens(texts)):.0f} tokens a passage")


def start(arms: dict[str, OpenVINOEmbedder], runs: int) -> None:
    """Print how long fresh processes take to their first query vector, imports left out."""
    found: dict[str, list[list[float]]] = {name: [] for name in arms}
    for turn in range(runs + 1):
        for name, embedder in arms.items():
            command = [sys.executable, "-c", START, str(embedder._folder)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if turn:
                found[name].append([float(x) for x in out.split()])
    for name, rows in found.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"first query, {name}: {wall * 1000:.0f} ms, CPU {cpu * 1000:.0f} ms, {memory:.0f} MiB of its own"
        )


def fidelity(embedder: OpenVINOEmbedder, model: str, count: int = 200) -> None:
    """Print the cosine to the full weights in sentence-transformers, by language."""
    from sentence_transformers import SentenceTransformer

    texts: dict[str, list[str]] = defaultdict(list)
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row.get("lang", "und")].append(row["text"][:400])
    chosen = [(lang, t) for at in range(count) for lang, own in texts.items() for t in own[at : at + 1]][
        :count
    ]
    rows = [t for _, t in chosen]
    full = SentenceTransformer(model, device="cpu").encode(rows, normalize_embeddings=True)
    for name, candidate in (
        ("f32", OpenVINOEmbedder(embedder._folder, precision="f32")),
        ("usual", embedder),
    ):
        cosine = (candidate.encode_document(rows) * full).sum(axis=1)
        print(
            f"cosine to the full weights, {name} arithmetic: mean {cosine.mean():.5f}, least {cosine.min():.5f}"
        )
        means = {
            lang: np.mean([c for c, (own, _) in zip(cosine, chosen, strict=True) if own == lang])
            for lang in texts
        }
        print("  " + ", ".join(f"{lang} {mean:.4f}" for lang, mean in means.items()))


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(_MODELS / DEFAULT_MODEL))
    parser.add_argument("--model", help="the folder that was exported")
    parser.add_argument("--passages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    arms = {
        "all-MiniLM-L6-v2": OpenVINOEmbedder(baseline()),
        "folder": OpenVINOEmbedder(args.folder),
    }
    for name, embedder in arms.items():
        size = sum(f.stat().st_size for f in embedder._folder.iterdir())
        print(f"{name}: {size:,} bytes ({size / 2**20:.2f} MiB)")
    start(arms, args.runs)
    speed(arms, passages(args.passages, 0), args.rounds)
    if args.model:
        fidelity(arms["folder"], args.model)


if __name__ == "__main__":
    main()
