"""Reranking with a cross-encoder: embedkit against sentence_transformers.CrossEncoder, the same seeded weights.

    python benchmarks/reranking.py [--threads 1] [--rounds 7] [--depth 50] [--queries 4] [--device cuda]

A BERT of the size of ms-marco-MiniLM-L6-v2 (22 million weights, drawn at random from a seed) with the real tokenizer of
all-MiniLM-L6-v2 scores `depth` passages of examples/corpus a query, once as they are and once four joined to one. Both
sides take turns (A B A B …); the ratio is of the medians, and the scores of both must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from minilm import original

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpus"
Score = Callable[[str, list[str]], Any]


def save_model(folder: Path) -> None:
    """Save the seeded cross-encoder with the tokenizer of all-MiniLM-L6-v2."""
    import torch
    import transformers

    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        num_labels=1, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).eval().save_pretrained(str(folder))
    for path in original().glob("*"):
        if path.name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(path, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 512}))


def both(folder: Path, threads: int, device: str) -> dict[str, Score]:
    """Open the two sides."""
    import torch
    from sentence_transformers import CrossEncoder

    from embedkit import get_reranker

    torch.set_num_threads(threads)
    theirs = CrossEncoder(str(folder), device=device, activation_fn=torch.nn.Identity())
    ours = get_reranker(str(folder), device=device, dtype="float32")
    return {
        "sentence-transformers": lambda query, texts: theirs.predict([(query, t) for t in texts]),
        "embedkit": ours.score,
    }


def measure(sides: dict[str, Score], queries: Sequence[str], texts: list[str], rounds: int) -> None:
    """Print the medians and their ratio."""
    import numpy as np

    first, second = (np.array([side(q, texts) for q in queries]) for side in sides.values())
    apart = float(np.abs(first - second).max())
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            for query in queries:
                side(query, texts)
            times[name].append((time.perf_counter() - begun) / len(queries))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    words = statistics.mean(len(t.split()) for t in texts)
    print(f"{len(texts)} passages of {words:.0f} words a query; largest difference of a score {apart:.1e}")
    for name, seconds in times.items():
        print(
            f"  {name:22} {medians[name] * 1000:8.1f} ms  ({min(seconds) * 1000:.1f} … {max(seconds) * 1000:.1f})"
        )
    print(f"  ratio of medians       {medians['sentence-transformers'] / medians['embedkit']:8.2f} x")


def main() -> None:
    """Run both lengths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("threads", 1), ("rounds", 7), ("depth", 50), ("queries", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args()
    os.environ["EMBEDKIT_THREADS"] = str(told.threads)
    rows = [json.loads(line) for line in (CORPUS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows if row.get("lang", "en") == "en"] or [row["text"] for row in rows]
    queries = [
        json.loads(line)["text"]
        for line in (CORPUS / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    joined = [" ".join(texts[i : i + 4]) for i in range(len(texts))]
    with tempfile.TemporaryDirectory(prefix="embedkit-reranking-") as folder:
        save_model(Path(folder))
        sides = both(Path(folder), told.threads, told.device)
        for passages in (texts, joined):
            measure(sides, queries[: told.queries], passages[: told.depth], told.rounds)


if __name__ == "__main__":
    main()
