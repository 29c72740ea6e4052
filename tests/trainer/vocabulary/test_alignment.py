"""Word alignment: it finds the translations that explain a parallel text, and starts vectors from them."""

from __future__ import annotations

import numpy as np
import torch

from embedkit_trainer.vocabulary.alignment import Alignment


def _corpus(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return 400 pairs: foreign token 10 + w translates English token w, in another order, with one filler beside."""
    rng = np.random.default_rng(seed)
    english = [rng.choice(10, rng.integers(2, 6), replace=False).astype(np.int32) for _ in range(400)]
    foreign = [rng.permutation(np.append(e + 10, 25)).astype(np.int32) for e in english]
    return foreign, english


def test_it_finds_the_translations() -> None:
    """The start vector of each foreign token is close to the vector of the token it translates, and to no other."""
    foreign, english = _corpus()
    alignment = Alignment(foreign, english, 10)
    alignment.fit(6)
    table = torch.eye(10)
    vectors, weights = alignment.vectors(table, 30)
    assert vectors.shape == (30, 10)
    assert vectors[10:20].argmax(dim=1).tolist() == list(range(10))
    assert float(vectors[10:20].diagonal().min()) > 0.9
    assert float(weights[:10].sum()) == 0.0
    assert not vectors[:10].any(), "tokens that never occur have no vector"


def test_what_has_no_counterpart_says_little() -> None:
    """The filler that stands in every sentence goes to the empty word more than a real word does."""
    foreign, english = _corpus()
    alignment = Alignment(foreign, english, 10)
    alignment.fit(6)
    _, weights = alignment.vectors(torch.eye(10), 30)
    counts = np.bincount(np.concatenate(foreign), minlength=30)
    share = weights.numpy() / np.maximum(counts, 1)
    assert share[25] < share[10:20].min()


def test_pairs_must_be_pairs() -> None:
    """One side longer than the other is an error."""
    import pytest

    with pytest.raises(ValueError, match="they come in pairs"):
        Alignment([np.array([1], np.int32)], [], 10)
