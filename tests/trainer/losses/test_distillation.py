"""Distillation: each loss equals its formula, missing teacher scores say nothing, widths must agree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp, isnan, log

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from embedkit.errors import InputError
from embedkit_trainer.losses.distillation import distil_cosine, distil_kl, distil_mse, margin_mse
from tests.trainer.made_batches import cosine, vectors

NAN = float("nan")
OFFSETS = torch.tensor([0, 3, 4, 7, 9])
B, N = 4, 9
TEACHER = torch.tensor([9.0, 1.0, NAN, 5.0, 2.0, 4.0, 3.0, NAN, 1.0])


def _rows() -> list[range]:
    return [range(a, b) for a, b in pairwise(OFFSETS.tolist())]


def _softmax(values: list[float]) -> list[float]:
    return [exp(v) / sum(exp(w) for w in values) for v in values]


def test_distil_cosine_and_mse_equal_their_formulas() -> None:
    """The mean cosine distance, and the mean squared distance with lengths, not divided by the width."""
    v, t = vectors(5, 6), vectors(5, 6, seed=1).detach()
    expected = np.mean([1 - cosine(v[i], t[i]) for i in range(5)])
    assert distil_cosine(v, t).item() == pytest.approx(expected, rel=1e-10)
    expected = np.mean([sum(float((v[i, k] - t[i, k]).detach()) ** 2 for k in range(6)) for i in range(5)])
    assert distil_mse(v, t).item() == pytest.approx(expected, rel=1e-10)


def test_for_unit_vectors_mse_is_twice_the_cosine_distance() -> None:
    """|v - t|^2 = 2 - 2 cos where both have length 1."""
    v = torch.nn.functional.normalize(vectors(5, 6), dim=1)
    t = torch.nn.functional.normalize(vectors(5, 6, seed=1), dim=1)
    assert distil_mse(v, t).item() == pytest.approx(2 * distil_cosine(v, t).item())


@pytest.mark.parametrize(("temperature", "warmth"), [(1.0, 1.0), (0.1, 2.0)])
def test_distil_kl_equals_its_formula(temperature: float, warmth: float) -> None:
    """Each row compares softmaxes over the documents that have a teacher score; rows with fewer than two are left out."""
    q, d = vectors(B, 6), vectors(N, 6, seed=1)
    divergences = []
    for i, own in enumerate(_rows()):
        scored = [j for j in own if not isnan(float(TEACHER[j]))]
        if len(scored) < 2:
            continue
        teacher = _softmax([float(TEACHER[j]) / warmth for j in scored])
        student = _softmax([cosine(q[i], d[j]) / temperature for j in scored])
        divergences.append(sum(t * (log(t) - log(s)) for t, s in zip(teacher, student, strict=True)))
    assert len(divergences) == 2
    loss = distil_kl(q, d, TEACHER, OFFSETS, temperature=temperature, teacher_temperature=warmth)
    assert loss.item() == pytest.approx(np.mean(divergences), rel=1e-10)


@pytest.mark.parametrize(("temperature", "warmth"), [(1.0, 1.0), (0.1, 2.0)])
def test_margin_mse_equals_its_formula(temperature: float, warmth: float) -> None:
    """Each scored negative beside a scored positive counts once; the last row's positive has no score."""
    q, d = vectors(B, 6), vectors(N, 6, seed=1)
    squares = []
    for i, own in enumerate(_rows()):
        for j in own[1:]:
            margin = float(TEACHER[own[0]] - TEACHER[j]) / warmth
            if not isnan(margin):
                ours = (cosine(q[i], d[own[0]]) - cosine(q[i], d[j])) / temperature
                squares.append((ours - margin) ** 2)
    assert len(squares) == 3
    loss = margin_mse(q, d, TEACHER, OFFSETS, temperature=temperature, teacher_temperature=warmth)
    assert loss.item() == pytest.approx(np.mean(squares), rel=1e-10)


def test_margin_mse_equals_sentence_transformers() -> None:
    """Its MarginMSELoss over cosines gives the same number for one negative a row."""
    st_losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    util = pytest.importorskip("sentence_transformers.util")
    q, p, n = vectors(4, 6), vectors(4, 6, seed=1), vectors(4, 6, seed=2)
    teacher = torch.tensor([[3.0, 1.0], [0.5, 0.2], [1.0, 2.0], [4.0, 0.0]], dtype=torch.float64)
    theirs = st_losses.MarginMSELoss(None, similarity_fct=util.pairwise_cos_sim)
    expected = theirs.compute_loss_from_embeddings([q, p, n], teacher[:, 0] - teacher[:, 1])
    documents = torch.stack([p, n], 1).flatten(0, 1)
    loss = margin_mse(q, documents, teacher.flatten(), torch.arange(5) * 2)
    assert loss.item() == pytest.approx(expected.item())


_PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distil_kl": lambda q, d: distil_kl(q, d, TEACHER, OFFSETS, temperature=0.2),
    "margin_mse": lambda q, d: margin_mse(q, d, TEACHER, OFFSETS),
}


@pytest.mark.parametrize("name", list(_PAIRED))
def test_gradients_are_those_of_the_formula(name: str) -> None:
    """Finite differences agree, though some teacher scores are NaN."""
    assert gradcheck(_PAIRED[name], (vectors(B, 5), vectors(N, 5, seed=1)))
    v, t = vectors(3, 5), vectors(3, 5, seed=1).detach()
    assert gradcheck(distil_cosine, (v, t))
    assert gradcheck(distil_mse, (v, t))


def test_a_teacher_that_the_student_equals_teaches_nothing() -> None:
    """The student's own logits as teacher scores: both score losses are 0, and the vectors' losses too."""
    q, d = vectors(B, 6), vectors(N, 6, seed=1)
    owner = [i for i, own in enumerate(_rows()) for _ in own]
    teacher = torch.tensor([cosine(q[i], d[j]) / 0.1 for j, i in enumerate(owner)], dtype=torch.float64)
    assert distil_kl(q, d, teacher, OFFSETS, temperature=0.1).item() == pytest.approx(0, abs=1e-12)
    assert margin_mse(q, d, teacher, OFFSETS, temperature=0.1).item() == pytest.approx(0, abs=1e-12)
    assert distil_cosine(q, q.detach()).item() == pytest.approx(0, abs=1e-12)
    assert distil_mse(q, q.detach()).item() == 0


@pytest.mark.parametrize("name", list(_PAIRED))
def test_no_teacher_score_at_all_is_zero(name: str) -> None:
    """Without a score the loss is 0 and its gradient 0, never NaN."""
    q, d = vectors(B, 6), vectors(N, 6, seed=1)
    nothing = torch.full((N,), NAN)
    loss = {"distil_kl": distil_kl, "margin_mse": margin_mse}[name](q, d, nothing, OFFSETS)
    gradients = torch.autograd.grad(loss, (q, d))
    assert loss.item() == 0
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("loss", [distil_cosine, distil_mse])
def test_another_width_is_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A teacher of 8 dimensions cannot teach a student of 6: both shapes are named."""
    with pytest.raises(InputError, match=r"\[5, 6\], the teacher's \[5, 8\]"):
        loss(vectors(5, 6), vectors(5, 8))


def test_autocast_does_not_reach_the_loss() -> None:
    """Under bfloat16 autocast the losses are the float32 ones to the bit."""
    q, d = vectors(B, 64, dtype=torch.float32), vectors(N, 64, seed=1, dtype=torch.float32)
    plain = [loss(q, d) for loss in _PAIRED.values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, loss(q, d)) for a, loss in zip(plain, _PAIRED.values(), strict=True))
