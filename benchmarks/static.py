"""Time the static embedder against model2vec on one seeded model, and the reading of word-vector files.

    python benchmarks/static.py

Both encode the same texts with the same model, in turns, in this process; the best of five counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from embedkit import get_embedder
from embedkit.embedders.word_vectors import read_word_vectors

WORDS = [f"word{i}" for i in range(30_000)]
RNG = np.random.default_rng(0)


def main() -> None:
    """Print one line a figure."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["EMBEDKIT_CACHE"] = temporary
        encoding(folder)
        reading(folder)


def encoding(folder: Path) -> None:
    """Compare documents a second at three lengths."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {w: i + 1 for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = RNG.standard_normal((len(WORDS) + 1, 256)).astype(np.float32)
    StaticModel(table, tokenizer, normalize=True).save_pretrained(folder / "model")
    theirs, ours = StaticModel.from_pretrained(folder / "model"), get_embedder(str(folder / "model"))
    for length in (8, 100, 400):
        sizes = RNG.integers(length // 2, length * 3 // 2, 4000)
        texts = [" ".join(RNG.choice(WORDS, size)) for size in sizes]
        a, b = best(lambda: ours.encode_document(texts), lambda: theirs.encode(texts))  # noqa: B023
        print(f"{length} words: embedkit {len(texts) / a:,.0f}/s, model2vec {len(texts) / b:,.0f}/s")


def reading(folder: Path) -> None:
    """Time the first and the later openings of a GloVe file of 100,000 words."""
    table = RNG.standard_normal((100_000, 100)).astype(np.float32)
    path = folder / "glove.txt"
    with path.open("w") as file:
        for i, row in enumerate(table):
            file.write(f"word{i} " + " ".join(f"{x:.5f}" for x in row) + "\n")
    for name in ("first", "later"):
        start = time.perf_counter()
        read_word_vectors(path)
        print(
            f"{name} opening of {path.stat().st_size >> 20} MiB of text: {time.perf_counter() - start:.2f} s"
        )


def best(*functions: Callable[[], object]) -> list[float]:
    """Return the shortest of five times of each, run in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(5):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return [min(found) for found in times]


if __name__ == "__main__":
    main()
