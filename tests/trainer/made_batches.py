"""Small seeded batches and vectors for the tests of losses, masks and objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit_trainer.data.batches import Batch


def make_batch(counts: Sequence[int], **fields: Any) -> Batch:
    """Return a batch whose row i owns `counts[i]` documents, every text and query different; `fields` override."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows, documents = len(counts), int(offsets[-1])
    values: dict[str, Any] = {
        "step": 7,
        "queries": [np.array([1, 2], dtype=np.int32)] * rows,
        "documents": [np.array([1, 3], dtype=np.int32)] * documents,
        "offsets": offsets,
        "query_keys": np.arange(1, rows + 1),
        "text_keys": np.arange(1, documents + 1),
        "id_keys": np.zeros(documents, dtype=np.int64),
        "scores": None,
        "teacher_scores": None,
        "teacher_queries": None,
        "teacher_documents": None,
        "rows": [(0, i) for i in range(rows)],
        "sources": np.zeros(rows, dtype=np.int64),
    }
    return Batch(**(values | fields))


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal random vectors of lengths far from 1, as leaves that take a gradient."""
    drawn = np.random.default_rng(seed).normal(size=shape) * 3
    return torch.tensor(drawn, dtype=dtype, requires_grad=True)


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors, the slow way."""
    left, right = a.detach().double().numpy(), b.detach().double().numpy()
    return float(left @ right / np.sqrt((left @ left) * (right @ right)))


def random_mask(rows: int, columns: int, seed: int = 0, share: float = 0.3) -> Tensor:
    """Return a bool matrix with about `share` of True."""
    drawn: NDArray[np.bool_] = np.random.default_rng(seed).random((rows, columns)) < share
    return torch.from_numpy(drawn)
