"""A deterministic embedder whose query vectors turn with the instruction, and documents to index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit import Embedder, EmbedderInfo
from embedkit_indexes import Document


class HashEmbedder(Embedder):
    """The sum of a seeded random vector for each lower-case word: texts that share words are near."""

    def __init__(self, dim: int = 32, weights: str = "hash-1", scale: float = 1.0) -> None:
        self.info = EmbedderInfo(
            name=f"hash-{dim}",
            dim=dim,
            max_length=64,
            pooling="mean",
            weights=weights,
            instruction_trained=True,
        )
        self._scale = scale
        self.calls = 0

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.calls += 1
        return np.array([self._one(t) for t in texts])

    def _one(self, text: str) -> NDArray[np.float64]:
        words = text.lower().replace("instruct:", "").replace("query:", "").split()
        seeds = [int.from_bytes(hashlib.sha256(w.encode()).digest()[:4]) for w in words]
        rows = [np.random.default_rng(s).standard_normal(self.info.dim) for s in seeds]
        total: NDArray[np.float64] = self._scale * np.sum(rows, axis=0)
        return total


@pytest.fixture
def embedder() -> HashEmbedder:
    """A fresh deterministic embedder."""
    return HashEmbedder()


@pytest.fixture
def make_embedder() -> type[HashEmbedder]:
    """The class, for tests that need other ones."""
    return HashEmbedder


@pytest.fixture
def documents() -> list[Document]:
    """Two hundred documents of seeded words in three languages, with metadata."""
    rng = np.random.default_rng(3)
    words = [f"word{i}" for i in range(300)]
    out: list[Document] = []
    for i in range(200):
        text = " ".join(rng.choice(words, 12))
        meta: dict[str, Any] = {"year": 2000 + i % 20, "note": "naïve “quotes” 日本"}
        lang = ("en", "de", "zh")[0 if i % 10 else 1 + i % 20 // 10]
        out.append(Document(f"d{i}", text, title=f"Title {i}", lang=lang, source="memory", metadata=meta))
    return out
