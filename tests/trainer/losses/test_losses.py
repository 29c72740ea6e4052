"""Losses: each equals its formula written as loops, has true gradients, and survives degenerate rows."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from embedkit.errors import InputError
from embedkit_trainer.losses import pairs as losses
from embedkit_trainer.losses.pairs import (
    cosent,
    cosine_regression,
    gte_contrastive,
    info_nce,
    matryoshka,
    simcse,
)
from tests.trainer.made_batches import cosine, random_mask, vectors

COUNTS = [3, 1, 2, 4, 1]
POSITIVES = torch.tensor([0, 3, 4, 6, 10])
OWNERS = [0, 0, 0, 1, 2, 2, 3, 3, 3, 3, 4]
B, N = len(COUNTS), len(OWNERS)


def _naive_info_nce(q: Tensor, d: Tensor, mask: Tensor | None, t: float, in_batch: bool = True) -> float:
    total = 0.0
    for i, positive in enumerate(POSITIVES.tolist()):
        terms = [
            exp(cosine(q[i], d[j]) / t)
            for j in range(N)
            if j == positive or not ((mask is not None and mask[i, j]) or (not in_batch and OWNERS[j] != i))
        ]
        total -= log(exp(cosine(q[i], d[positive]) / t) / sum(terms))
    return total / B


def _gte_masks(seed: int = 0) -> dict[str, Tensor]:
    return {
        "query_document": random_mask(B, N, seed),
        "query_query": random_mask(B, B, seed + 1),
        "document_query": random_mask(B, B, seed + 2),
        "document_document": random_mask(B, N, seed + 3),
    }


def _naive_gte(q: Tensor, d: Tensor, masks: dict[str, Tensor], t: float) -> float:
    def open_(kind: str, i: int, j: int) -> bool:
        return kind not in masks or not masks[kind][i, j]

    total = 0.0
    for i, own in enumerate(POSITIVES.tolist()):
        z = 2 * exp(cosine(q[i], d[own]) / t)
        for j in range(N):
            if j != own:
                z += exp(cosine(q[i], d[j]) / t) if open_("query_document", i, j) else 0
                z += exp(cosine(d[own], d[j]) / t) if open_("document_document", i, j) else 0
        for k in range(B):
            if k != i:
                z += exp(cosine(q[i], q[k]) / t) if open_("query_query", i, k) else 0
                z += exp(cosine(d[own], q[k]) / t) if open_("document_query", i, k) else 0
        total -= log(exp(cosine(q[i], d[own]) / t) / z)
    return total / B


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_info_nce_equals_its_formula(in_batch: bool, masked: bool, temperature: float) -> None:
    """Over ragged hard negatives, with and without a mask, in the batch and among a row's own documents."""
    q, d = vectors(B, 8), vectors(N, 8, seed=1)
    mask = random_mask(B, N) if masked else None
    loss = info_nce(q, d, POSITIVES, mask, temperature, in_batch=in_batch)
    assert loss.item() == pytest.approx(_naive_info_nce(q, d, mask, temperature, in_batch), rel=1e-10)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_gte_equals_its_formula(masked: bool, temperature: float) -> None:
    """All four kinds of similarity stand in one denominator, each with its own mask."""
    q, d = vectors(B, 8), vectors(N, 8, seed=1)
    masks = _gte_masks() if masked else {}
    loss = gte_contrastive(q, d, POSITIVES, temperature, **masks)
    assert loss.item() == pytest.approx(_naive_gte(q, d, masks, temperature), rel=1e-10)


def test_cosent_equals_its_formula() -> None:
    """Every pair with different scores counts once; ties count nothing."""
    q, d = vectors(9, 6), vectors(9, 6, seed=1)
    scores = torch.tensor([1.0, 0.5, 0.5, 0.0, 1.0, 0.2, 0.9, 0.0, 0.5])
    terms = [
        exp((cosine(q[j], d[j]) - cosine(q[i], d[i])) / 0.05)
        for i in range(9)
        for j in range(9)
        if scores[i] > scores[j]
    ]
    assert cosent(q, d, scores, 0.05).item() == pytest.approx(log(1 + sum(terms)), rel=1e-10)


def test_cosine_regression_equals_its_formula() -> None:
    """Scores of 0..5 divided by their scale are compared with cosines."""
    q, d = vectors(4, 6), vectors(4, 6, seed=1)
    scores = torch.tensor([0.0, 2.5, 5.0, 4.0])
    expected = np.mean([(cosine(q[i], d[i]) - float(scores[i]) / 5) ** 2 for i in range(4)])
    assert cosine_regression(q, d, scores, scale=5).item() == pytest.approx(expected, rel=1e-10)


def _losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    mask = random_mask(B, N)
    scores = torch.tensor([0.1, 0.9, 0.1, 0.5, 0.3])
    return {
        "info_nce": lambda q, d: info_nce(q, d, POSITIVES, mask, 0.2),
        "own": lambda q, d: info_nce(q, d, POSITIVES, mask, 0.2, in_batch=False),
        "gte": lambda q, d: gte_contrastive(q, d, POSITIVES, 0.2, **_gte_masks()),
        "simcse": lambda q, d: simcse(q, d[POSITIVES], random_mask(B, B), 0.2),
        "cosent": lambda q, d: cosent(q, d[POSITIVES], scores, 0.2),
        "regression": lambda q, d: cosine_regression(q, d[POSITIVES], scores),
        "matryoshka": matryoshka(lambda q, d: info_nce(q, d, POSITIVES, mask, 0.2), (2, 5), (0.5, 1.0)),
    }


@pytest.mark.parametrize("name", list(_losses()))
def test_gradients_are_those_of_the_formula(name: str) -> None:
    """Finite differences in float64 agree with the gradient of queries and documents."""
    assert gradcheck(_losses()[name], (vectors(B, 5), vectors(N, 5, seed=1)))


@pytest.mark.parametrize("name", [n for n in _losses() if n != "matryoshka"])
@settings(max_examples=20, deadline=None)
@given(scales=st.lists(st.floats(1e-3, 1e3), min_size=B + N, max_size=B + N), seed=st.integers(0, 99))
def test_lengths_of_vectors_do_not_matter(name: str, scales: list[float], seed: int) -> None:
    """Every vector times its own positive factor leaves the loss where it is: cosines are taken inside."""
    loss = _losses()[name]
    q, d = vectors(B, 5, seed=seed), vectors(N, 5, seed=seed + 100)
    factors = torch.tensor(scales, dtype=torch.float64)[:, None]
    assert loss(q * factors[:B], d * factors[B:]).item() == pytest.approx(
        loss(q, d).item(), rel=1e-9, abs=1e-12
    )


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(B)), seed=st.integers(0, 99))
def test_order_of_rows_does_not_matter(order: list[int], seed: int) -> None:
    """Rows in another order, documents and masks with them, give the same loss."""
    q, d = vectors(B, 5, seed=seed), vectors(N, 5, seed=seed + 100)
    moved = [j for i in order for j in range(N) if OWNERS[j] == i]
    positives = torch.tensor([moved.index(int(POSITIVES[i])) for i in order])
    mask = random_mask(B, N, seed)
    for in_batch in (True, False):
        before = info_nce(q, d, POSITIVES, mask, 0.1, in_batch=in_batch)
        after = info_nce(q[order], d[moved], positives, mask[order][:, moved], 0.1, in_batch=in_batch)
        assert after.item() == pytest.approx(before.item(), rel=1e-9)
    masks = _gte_masks(seed)
    shuffled = {
        k: m[order][:, moved if k.endswith("document") else order] for k, m in masks.items()
    }  # fmt: skip
    before = gte_contrastive(q, d, POSITIVES, 0.1, **masks)
    after = gte_contrastive(q[order], d[moved], positives, 0.1, **shuffled)
    assert after.item() == pytest.approx(before.item(), rel=1e-9)
    scores = torch.arange(B) // 2
    before, after = cosent(q, d[POSITIVES], scores), cosent(q[order], d[POSITIVES[order]], scores[order])
    assert after.item() == pytest.approx(before.item(), rel=1e-9)


def test_temperature_sharpens() -> None:
    """Of right rankings a low temperature makes a smaller loss, of wrong ones a larger."""
    q = torch.eye(3)
    right, wrong = q + 0.1, q.roll(1, 0) + 0.1
    rows = torch.arange(3)
    assert info_nce(q, right, rows, None, 0.02) < info_nce(q, right, rows, None, 1.0)
    assert info_nce(q, wrong, rows, None, 0.02) > info_nce(q, wrong, rows, None, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_without_negatives_costs_nothing(dtype: torch.dtype) -> None:
    """All negatives masked, even at temperature 0.01: loss 0 and gradient 0, not NaN."""
    q, d = vectors(B, 8, dtype=dtype), vectors(N, 8, seed=1, dtype=dtype)
    everything = torch.ones(B, N, dtype=torch.bool)
    for in_batch in (True, False):
        loss = info_nce(q, d, POSITIVES, everything, 0.01, in_batch=in_batch)
        gradients = torch.autograd.grad(loss, (q, d))
        assert loss.item() == 0
        assert all((g == 0).all() for g in gradients)


def test_lone_pair_costs_log_2_under_gte() -> None:
    """The pair stands twice in the paper's denominator: alone it costs log 2, without a gradient."""
    q, d = vectors(1, 8), vectors(1, 8, seed=1)
    loss = gte_contrastive(q, d, torch.tensor([0]))
    assert loss.item() == pytest.approx(log(2))
    gradients = torch.autograd.grad(loss, (q, d))
    assert all(g.abs().max() < 1e-12 for g in gradients)


def test_gte_without_the_extra_kinds_is_info_nce_with_the_pair_twice() -> None:
    """With queries, mirrored pairs and documents masked, what is left is InfoNCE's sum plus the pair once more."""
    q, d = vectors(B, 8), vectors(N, 8, seed=1)
    everything = torch.ones(B, B, dtype=torch.bool)
    loss = gte_contrastive(
        q, d, POSITIVES, 0.1, query_query=everything, document_query=everything,
        document_document=torch.ones(B, N, dtype=torch.bool),
    )  # fmt: skip
    p = (losses.directions(q) * losses.directions(d[POSITIVES])).sum(1) / 0.1
    logits = losses.directions(q) @ losses.directions(d).T / 0.1
    expected = (torch.logsumexp(torch.cat([logits, p[:, None]], 1), 1) - p).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


def test_equal_scores_teach_cosent_nothing() -> None:
    """Without two different scores the loss is 0 and so is its gradient."""
    q, d = vectors(4, 6), vectors(4, 6, seed=1)
    loss = cosent(q, d, torch.ones(4))
    gradients = torch.autograd.grad(loss, (q, d))
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("name", list(_losses()))
def test_zero_vectors_have_no_gradient_of_their_own(name: str) -> None:
    """An embedding of all zeros (a text without known tokens) makes neither NaN nor a huge gradient."""
    q, d = vectors(B, 5).detach(), vectors(N, 5, seed=1).detach()
    q[1], d[3] = 0, 0
    q.requires_grad_(), d.requires_grad_()
    loss = _losses()[name](q, d)
    of_q, of_d = torch.autograd.grad(loss, (q, d))
    assert loss.isfinite()
    assert (of_q[1] == 0).all()
    assert (of_d[3] == 0).all()
    assert of_q.isfinite().all()
    assert of_d.isfinite().all()


@pytest.mark.parametrize("name", list(_losses()))
def test_autocast_does_not_reach_the_loss(name: str) -> None:
    """Under bfloat16 autocast the loss is the float32 one to the bit, from bfloat16 vectors it is float32."""
    q, d = vectors(B, 64, dtype=torch.float32), vectors(N, 64, seed=1, dtype=torch.float32)
    plain = _losses()[name](q, d)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = _losses()[name](q, d)
        narrow = _losses()[name](q.bfloat16(), d.bfloat16())
    assert torch.equal(plain, under)
    assert narrow.dtype == torch.float32


@pytest.mark.parametrize("block", [1, 2 * N, 40])
def test_blocks_of_rows_give_the_same_loss_and_gradient(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in blocks of 1, 2 or 3 rows, loss and gradient are those of one matrix."""
    q, d = vectors(B, 8), vectors(N, 8, seed=1)
    for name in ("info_nce", "gte", "simcse"):
        whole = _losses()[name](q, d)
        expected = torch.autograd.grad(whole, (q, d))
        with monkeypatch.context() as patch:
            patch.setattr(losses, "_LARGEST_BLOCK", block)
            assert len(losses.row_blocks(B, N)) > 1
            parts = _losses()[name](q, d)
            gradients = torch.autograd.grad(parts, (q, d))
        assert parts.item() == pytest.approx(whole.item(), rel=1e-12)
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_matryoshka_sums_over_prefixes() -> None:
    """The wrapped loss is the weighted sum of the loss of each prefix; weights default to 1."""
    q, d = vectors(B, 8), vectors(N, 8, seed=1)

    def loss(q: Tensor, d: Tensor) -> Tensor:
        return info_nce(q, d, POSITIVES, None, 0.1)

    parts = [loss(q[:, :m], d[:, :m]).item() for m in (2, 4, 8)]
    assert matryoshka(loss, (2, 4, 8))(q, d).item() == pytest.approx(sum(parts))
    weighted = matryoshka(loss, (2, 4, 8), (1.0, 0.5, 2.0))(q, d)
    assert weighted.item() == pytest.approx(parts[0] + 0.5 * parts[1] + 2 * parts[2])


@pytest.mark.parametrize(
    ("widths", "weights", "message"),
    [
        ((), (), "one or more"),
        ((0, 4), (), "positive"),
        ((2, 4), (1.0,), "as many weights"),
        ((9,), (), "exceeds"),
    ],
)
def test_matryoshka_refuses_wrong_widths(
    widths: tuple[int, ...], weights: tuple[float, ...], message: str
) -> None:
    """No widths, a width of 0, too few weights and a width beyond the vectors are told apart."""
    with pytest.raises(InputError, match=message):
        matryoshka(cosine_regression_of_ones, widths, weights)(vectors(2, 8), vectors(2, 8))


def cosine_regression_of_ones(q: Tensor, d: Tensor) -> Tensor:
    """Regress on a score of 1 for each pair."""
    return cosine_regression(q, d, torch.ones(len(q)))


def test_info_nce_and_gte_equal_sentence_transformers() -> None:
    """Its MultipleNegativesRankingLoss gives the same numbers on the same vectors (one negative a row).

    In its document-document sum it leaves out a row's own hard negative, ours is told so by the mask.
    """
    st_losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    q, p, n = vectors(6, 8), vectors(6, 8, seed=1), vectors(6, 8, seed=2)
    documents = torch.stack([p, n], 1).flatten(0, 1)
    positives = torch.arange(6) * 2
    theirs = st_losses.MultipleNegativesRankingLoss(None, scale=50.0)
    ours = info_nce(q, documents, positives, None, 0.02)
    assert ours.item() == pytest.approx(theirs.compute_loss_from_embeddings([q, p, n], None).item())
    theirs = st_losses.MultipleNegativesRankingLoss(
        None, scale=50.0, directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    )
    own = torch.arange(12) // 2 == torch.arange(6)[:, None]
    ours = gte_contrastive(q, documents, positives, 0.02, document_document=own)
    assert ours.item() == pytest.approx(theirs.compute_loss_from_embeddings([q, p, n], None).item())


def test_cosent_equals_sentence_transformers() -> None:
    """Its CoSENTLoss with scale 20 is ours with temperature 0.05."""
    st_losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    q, d = vectors(6, 8), vectors(6, 8, seed=1)
    scores = torch.tensor([0.1, 0.4, 0.4, 1.0, 0.0, 0.7])
    theirs = st_losses.CoSENTLoss(None, scale=20.0).compute_loss_from_embeddings([q, d], scores)
    assert cosent(q, d, scores, 0.05).item() == pytest.approx(theirs.item())
