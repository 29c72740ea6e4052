"""The search engines by themselves, and their way over a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from embedkit.errors import CorruptIndexError
from embedkit_indexes import faiss_engine

Vectors = NDArray[np.float32]


def _vectors(count: int, dim: int = 32, seed: int = 0) -> Vectors:
    out = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("queries", [1, 3, 50])
def test_the_exact_engine_is_a_sorted_product(count: int, queries: int) -> None:
    """Scores and rows are those of NumPy; where k exceeds the rows, the rest is -1."""
    vectors, asked = _vectors(count), _vectors(queries, seed=1)
    scores, rows = faiss_engine.ExactEngine(vectors).search(asked, 10)
    product = asked @ vectors.T
    kept = min(10, count)
    np.testing.assert_allclose(scores[:, :kept], -np.sort(-product, axis=1)[:, :kept], atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(product, rows[:, :kept], axis=1), scores[:, :kept], atol=1e-5
    )
    assert (rows[:, kept:] == -1).all()


def test_a_subset_is_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of a filtered subset are found across block bounds, in order."""
    monkeypatch.setattr(faiss_engine, "_BLOCK", 17)
    vectors, asked = _vectors(500), _vectors(4, seed=1)
    rows = np.flatnonzero(np.arange(500) % 3 == 0)
    scores, found = faiss_engine.ExactEngine(vectors).search(asked, 12, rows)
    product = asked @ vectors[rows].T
    order = np.argsort(-product, axis=1)[:, :12]
    assert (found == rows[order]).all()
    np.testing.assert_allclose(scores, np.take_along_axis(product, order, axis=1), atol=1e-5)


def test_an_index_trained_on_a_gpu_is_written_from_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where FAISS sees a GPU, the index goes there to train and add, and what is written is its CPU clone."""
    calls: list[str] = []

    def to_gpu(resources: Any, device: int, index: Any) -> Any:
        assert (resources, device) == ("resources", 0)
        calls.append(f"to gpu, {index.ntotal}")
        return index

    def to_cpu(index: Any) -> Any:
        calls.append(f"to cpu, {index.ntotal}")
        return faiss.clone_index(index)

    def write(index: Any, path: str) -> None:
        calls.append("write")
        faiss.write_index(index, path)

    stand_in = SimpleNamespace(
        index_factory=faiss.index_factory,
        METRIC_INNER_PRODUCT=faiss.METRIC_INNER_PRODUCT,
        StandardGpuResources=lambda: "resources",
        get_num_gpus=lambda: 1,
        index_cpu_to_gpu=to_gpu,
        index_gpu_to_cpu=to_cpu,
        write_index=write,
    )
    monkeypatch.setattr(faiss_engine, "_ready", [stand_in])
    monkeypatch.setattr(faiss_engine, "_resources", [])
    vectors = _vectors(3000)
    description = faiss_engine.build(tmp_path, vectors, exact_limit=100)
    assert calls == ["to gpu, 0", "to cpu, 3000", "write"]
    monkeypatch.undo()
    _, rows = faiss_engine.open_engine(tmp_path, vectors, description).search(vectors[:5], 1)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_broken_engine_file_is_named(tmp_path: Path) -> None:
    """Junk in faiss.index gives one CorruptIndexError with its path, an unknown engine another."""
    (tmp_path / "faiss.index").write_bytes(b"junk" * 100)
    with pytest.raises(CorruptIndexError, match=r"faiss\.index"):
        faiss_engine.open_engine(
            tmp_path, _vectors(10), {"type": "ivf-sq8", "nprobe": 1, "cells": 1, "rerank": 1}
        )
    with pytest.raises(CorruptIndexError, match="update embedkit"):
        faiss_engine.open_engine(tmp_path, _vectors(10), {"type": "warp"})


def test_only_one_file_imports_faiss() -> None:
    """`faiss_engine.py` is the only file of the packages that imports faiss (doctor asks a process of its own)."""
    root = Path(__file__).resolve().parents[2]
    files = [p for folder in ("embedkit", "indexes", "trainer", "cli") for p in (root / folder).rglob("*.py")]
    importing = [p.name for p in files if any(
        line.strip().startswith(("import faiss", "from faiss")) for line in p.read_text(encoding="utf-8").splitlines()
    )]  # fmt: skip
    assert importing == ["faiss_engine.py"]
    assert "faiss" in sys.modules


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds(tmp_path: Path) -> None:
    """A batch large enough for the GPU gives the CPU's rows; an index trained there is read back on the CPU."""
    if not hasattr(faiss, "get_num_gpus") or not faiss.get_num_gpus():
        pytest.skip("FAISS sees no GPU")
    vectors, asked = _vectors(50_000, 64), _vectors(1000, 64, seed=1)
    _, rows = faiss_engine.ExactEngine(vectors).search(asked, 10)
    truth = np.argsort(-(asked @ vectors.T), axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, truth, strict=True)]) > 0.999
    description = faiss_engine.build(tmp_path, vectors, exact_limit=100)
    _, found = faiss_engine.open_engine(tmp_path, vectors, description).search(vectors[:100], 1)
    assert found[:, 0].tolist() == list(range(100))
