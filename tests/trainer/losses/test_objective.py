"""Objective: the configured loss with its masks, its parts and figures, and clear errors where data is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedkit.errors import InputError
from embedkit_trainer.config.records import LossConfig, LossName, TeacherConfig
from embedkit_trainer.data.batches import Batch
from embedkit_trainer.losses.candidates import candidates_of
from embedkit_trainer.losses.distillation import distil_cosine, distil_kl, distil_mse, margin_mse
from embedkit_trainer.losses.masks import false_negative_masks
from embedkit_trainer.losses.objective import build_objective
from embedkit_trainer.losses.pairs import cosent, cosine_regression, gte_contrastive, info_nce, simcse
from tests.trainer.made_batches import cosine, make_batch, vectors

COUNTS = [3, 1, 2, 4]
OFFSETS = torch.tensor([0, 3, 4, 6, 10])
POSITIVES = OFFSETS[:-1]
B, N, DIM = 4, 10, 6
OWN, POSITIVE = TeacherConfig("teacher"), TeacherConfig("teacher", target="positive")


def _full_batch(**fields: Any) -> Batch:
    """Return a batch that carries everything: false negatives, scores, teacher scores and teacher vectors."""
    draw = np.random.default_rng(5)
    values: dict[str, Any] = {
        "text_keys": np.array([1, 2, 3, 1, 5, 6, 7, 5, 9, 10]),
        "query_keys": np.array([1, 2, 3, 2]),
        "sources": np.array([0, 0, 2, 2]),
        "scores": np.array([0.5, -1.0, 1.0, 0.25], dtype=np.float32),
        "teacher_scores": draw.normal(size=N).astype(np.float32),
        "teacher_queries": draw.normal(size=(B, DIM)).astype(np.float32),
        "teacher_documents": draw.normal(size=(N, DIM)).astype(np.float32),
    }
    return make_batch(COUNTS, **(values | fields))


def _expected(name: LossName, q: Tensor, d: Tensor, batch: Batch) -> Tensor:
    """Return the loss at temperature 0.1 and teacher temperature 2, called by hand."""
    masks = false_negative_masks(batch, identity=True, text=True)
    scores, teacher = torch.tensor(batch.scores), torch.tensor(batch.teacher_scores)
    of_queries, of_documents = torch.tensor(batch.teacher_queries), torch.tensor(batch.teacher_documents)
    warm = {"temperature": 0.1, "teacher_temperature": 2.0}
    kinds = ("query_document", "query_query", "document_query", "document_document")
    of_vectors = distil_cosine if name == "distil_cosine" else distil_mse
    calls: dict[str, Callable[[], Tensor]] = {
        "info_nce": lambda: info_nce(q, d, POSITIVES, masks.query_document, 0.1),
        "gte": lambda: gte_contrastive(q, d, POSITIVES, 0.1, **{k: getattr(masks, k) for k in kinds}),
        "simcse": lambda: simcse(q, d[POSITIVES], masks.query_document[:, POSITIVES], 0.1),
        "cosent": lambda: cosent(q, d[POSITIVES], scores, 0.1),
        "cosine_regression": lambda: cosine_regression(q, d[POSITIVES], scores),
        "distil_kl": lambda: distil_kl(q, d, teacher, OFFSETS, **warm),
        "margin_mse": lambda: margin_mse(q, d, teacher, OFFSETS, **warm),
    }
    width = q.shape[1]
    return calls.get(
        name, lambda: of_vectors(q, of_queries[:, :width]) + of_vectors(d, of_documents[:, :width])
    )()


def _teacher(name: LossName) -> TeacherConfig | None:
    """Name a teacher for the losses of vectors; the losses of scores take the rows' own without one."""
    return OWN if name in ("distil_cosine", "distil_mse") else None


NAMES: list[LossName] = [
    "info_nce", "gte", "simcse", "cosent", "cosine_regression", "distil_cosine", "distil_mse", "distil_kl",
    "margin_mse",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefixes", [False, True])
def test_every_loss_is_reached_with_its_masks_and_targets(name: LossName, prefixes: bool) -> None:
    """The objective equals the loss called by hand; with prefixes, their weighted sum plus the full width."""
    q, d, batch = vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch()
    config = LossConfig(
        name,
        temperature=0.1,
        teacher_temperature=2.0,
        matryoshka=(2, 4) if prefixes else (),
        matryoshka_weights=(0.5, 2.0) if prefixes else (),
    )
    outcome = build_objective(config, _teacher(name))(q, d, batch)
    expected = _expected(name, q, d, batch)
    if prefixes:
        expected = expected + 0.5 * _expected(name, q[:, :2], d[:, :2], batch)
        expected = expected + 2.0 * _expected(name, q[:, :4], d[:, :4], batch)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert outcome.logs["loss"] == pytest.approx(expected.item())
    assert outcome.logs[f"loss_{name}"] == pytest.approx(expected.item())
    for one, other in zip(
        torch.autograd.grad(outcome.loss, (q, d)), torch.autograd.grad(expected, (q, d)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_listed_full_width_is_not_counted_twice() -> None:
    """A prefix as wide as the vectors brings its own weight and no second term."""
    q, d, batch = vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch()
    config = LossConfig(temperature=0.1, matryoshka=(DIM,), matryoshka_weights=(3.0,))
    expected = 3 * _expected("info_nce", q, d, batch)
    assert build_objective(config)(q, d, batch).loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["distil_cosine", "distil_kl", "margin_mse", "cosent"])
def test_contrastive_weight_adds_info_nce(name: LossName) -> None:
    """The sum of the supervised loss and the weighted InfoNCE, each reported by name."""
    q, d, batch = vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch()
    config = LossConfig(name, temperature=0.1, teacher_temperature=2.0, contrastive_weight=0.25)
    outcome = build_objective(config, _teacher(name))(q, d, batch)
    supervised, contrastive = _expected(name, q, d, batch), _expected("info_nce", q, d, batch)
    assert outcome.loss.item() == pytest.approx((supervised + 0.25 * contrastive).item())
    assert outcome.logs["loss_info_nce"] == pytest.approx(0.25 * contrastive.item())
    assert outcome.logs[f"loss_{name}"] == pytest.approx(supervised.item())
    assert outcome.logs["negatives_per_query"] > 0


@pytest.mark.parametrize("name", ["distil_cosine", "distil_mse"])
def test_target_positive_draws_query_and_positive_to_the_teacher_of_the_positive(name: LossName) -> None:
    """Negatives get no gradient, and the teacher's vectors of the queries are not needed."""
    q, d, batch = vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch(teacher_queries=None)
    outcome = build_objective(LossConfig(name), POSITIVE)(q, d, batch)
    loss = distil_cosine if name == "distil_cosine" else distil_mse
    target = torch.tensor(batch.teacher_documents)[POSITIVES]
    assert outcome.loss.item() == pytest.approx((loss(q, target) + loss(d[POSITIVES], target)).item())
    (of_d,) = torch.autograd.grad(outcome.loss, d)
    negatives = [j for j in range(N) if j not in POSITIVES.tolist()]
    assert (of_d[negatives] == 0).all()
    assert (of_d[POSITIVES].abs().sum(1) > 0).all()


def test_figures_of_a_step() -> None:
    """Mean positive cosine, negatives, accuracy and masked rates are those counted by hand."""
    q, d, batch = vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch()
    logs = build_objective(LossConfig(temperature=0.1))(q, d, batch).logs
    masks = false_negative_masks(batch, identity=True, text=True)
    left, right = masks.query_document.sum().item(), 0
    for i, own in enumerate(POSITIVES.tolist()):
        rivals = [j for j in range(N) if j != own and not masks.query_document[i, j]]
        right += all(cosine(q[i], d[own]) > cosine(q[i], d[j]) for j in rivals)
    pairs = [cosine(q[i], d[j]) for i, j in enumerate(POSITIVES.tolist())]
    assert left > 0
    assert logs["positive_similarity"] == pytest.approx(np.mean(pairs), rel=1e-5)
    assert logs["negatives_per_query"] == pytest.approx((B * (N - 1) - left) / B)
    assert logs["in_batch_accuracy"] == pytest.approx(right / B)
    assert {k for k in logs if k.startswith("masked_rate")} == {"masked_rate_0", "masked_rate_2"}
    assert logs["masked_rate_0"] == pytest.approx(masks.rate_by_source[0])


def test_negatives_are_counted_for_each_loss() -> None:
    """In the batch N - 1; own documents alone fewer; SimCSE B - 1; GTE all four kinds; without contrast 0."""
    q, d = vectors(B, DIM), vectors(N, DIM, seed=1)
    batch = make_batch(COUNTS, scores=np.array([0.5, 1.0, 0.0, 0.2], dtype=np.float32))

    def count(config: LossConfig) -> float:
        return build_objective(config)(q, d, batch).logs["negatives_per_query"]

    assert count(LossConfig()) == N - 1
    assert count(LossConfig(in_batch=False)) == (N - B) / B
    assert count(LossConfig("simcse")) == B - 1
    assert count(LossConfig("gte")) == 2 * (N - 1) + 2 * (B - 1)
    assert count(LossConfig("cosent")) == 0


def test_own_negatives_alone() -> None:
    """in_batch = false: other rows' documents get no say, and a row's copy of its positive is left out."""
    q, d, batch = (
        vectors(B, DIM),
        vectors(N, DIM, seed=1),
        _full_batch(text_keys=np.array([1, 1, *range(3, 11)])),
    )
    mask = false_negative_masks(batch, identity=True, text=True).query_document
    outcome = build_objective(LossConfig(temperature=0.1, in_batch=False))(q, d, batch)
    expected = info_nce(q, d, POSITIVES, mask, 0.1, in_batch=False)
    assert outcome.loss.item() == pytest.approx(expected.item())
    assert outcome.logs["negatives_per_query"] == pytest.approx((N - B - 1) / B)


@pytest.mark.parametrize("name", ["info_nce", "gte", "simcse"])
def test_mask_similarity_leaves_out_what_is_too_near(name: LossName) -> None:
    """A candidate of any kind whose cosine exceeds the factor times the positive's is no negative."""
    q, d, batch = vectors(B, DIM, seed=3), vectors(N, DIM, seed=4), make_batch(COUNTS)
    with torch.no_grad():
        d[POSITIVES] += q  # positives are near, so that some candidates lie above the limit and some below
    config = LossConfig(name, temperature=0.1, mask_similarity=0.3)
    outcome = build_objective(config)(q, d, batch)
    limit = [0.3 * cosine(q[i], d[j]) for i, j in enumerate(POSITIVES.tolist())]

    def near(left: Tensor, right: Tensor) -> Tensor:
        return torch.tensor([[cosine(a, b) > limit[i] for b in right] for i, a in enumerate(left)])

    p = d[POSITIVES]
    masks = {
        "query_document": near(q, d),
        "query_query": near(q, q),
        "document_query": near(p, q),
        "document_document": near(p, d),
    }
    assert masks["query_document"].sum() > B
    assert not masks["query_document"].all()
    expected = {
        "info_nce": lambda: info_nce(q, d, POSITIVES, masks["query_document"], 0.1),
        "gte": lambda: gte_contrastive(q, d, POSITIVES, 0.1, **masks),
        "simcse": lambda: simcse(q, p, masks["query_document"][:, POSITIVES], 0.1),
    }[name]()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert 0 < outcome.logs["masked_by_similarity"] < 1


@pytest.mark.parametrize("name", ["distil_kl", "margin_mse"])
def test_a_teacher_gives_the_scores(name: LossName) -> None:
    """Where a teacher is named, its scores are the cosines of its vectors, of any width and length, not the rows' own."""
    q, d = vectors(B, DIM), vectors(N, DIM, seed=1)
    of_queries, of_documents = (vectors(n, 9, seed=7 + n).detach().numpy() * 3 for n in (B, N))
    owner = np.repeat(np.arange(B), COUNTS)
    scores = [cosine(torch.tensor(of_queries[i]), torch.tensor(of_documents[j])) for j, i in enumerate(owner)]
    batch = _full_batch(teacher_queries=of_queries, teacher_documents=of_documents)
    loss = distil_kl if name == "distil_kl" else margin_mse
    expected = loss(q, d, torch.tensor(scores), OFFSETS, temperature=0.1, teacher_temperature=0.5)
    config = LossConfig(name, temperature=0.1, teacher_temperature=0.5)
    assert build_objective(config, OWN)(q, d, batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert build_objective(config)(q, d, batch).loss.item() != pytest.approx(expected.item(), rel=1e-2)


def test_mask_similarity_where_a_positive_is_far() -> None:
    """Below a cosine of 0 the positive's own is the limit: a factor above 1 would leave out what is farther still."""
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    d = torch.tensor([[-0.5, 0.8], [-0.55, 0.8], [0.3, 1.0]])
    batch = make_batch([2, 1])
    kept = candidates_of(LossConfig(mask_similarity=1.2), q, d, batch).masks["query_document"]
    assert cosine(q[0], d[1]) < cosine(q[0], d[0]) < 0 < cosine(q[0], d[2])
    assert kept[0].tolist() == [True, False, True]


def test_score_scale_brings_scores_to_cosines() -> None:
    """STS's 0..5 are regressed as 0..1, and a score above the scale is refused."""
    q, d = vectors(B, DIM), vectors(N, DIM, seed=1)
    scores = np.array([5.0, 0.0, 2.5, 4.0], dtype=np.float32)
    config = LossConfig("cosine_regression", score_scale=5.0)
    loss = build_objective(config)(q, d, make_batch(COUNTS, scores=scores)).loss
    assert loss.item() == pytest.approx(cosine_regression(q, d[POSITIVES], torch.tensor(scores / 5)).item())
    with pytest.raises(InputError, match=r"a score of 5\.5 where score_scale is 5"):
        build_objective(config)(q, d, make_batch(COUNTS, scores=scores * 1.1))


def test_vectors_in_blocks_give_the_same_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarity masks and figures do not depend on how many rows are compared at once."""
    q, d, batch = vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch()
    objective = build_objective(LossConfig("gte", temperature=0.1, mask_similarity=0.5))
    whole = objective(q, d, batch)
    monkeypatch.setattr("embedkit_trainer.losses.pairs._LARGEST_BLOCK", 12)
    parts = objective(q, d, batch)
    assert parts.logs == pytest.approx(whole.logs)


def test_collapsed_vectors_are_not_called_accurate() -> None:
    """Where all vectors are equal no positive is nearer than a candidate: accuracy 0, not 1."""
    same = vectors(1, 300, dtype=torch.float32).expand(N, -1)
    logs = build_objective(LossConfig())(same[:B] * 0.37, same * 2.3, make_batch(COUNTS)).logs
    assert logs["in_batch_accuracy"] == 0


def test_one_pair_alone_is_no_error() -> None:
    """A last batch of one row without negatives costs 0."""
    q, d = vectors(1, DIM), vectors(1, DIM, seed=1)
    outcome = build_objective(LossConfig())(q, d, make_batch([1]))
    assert outcome.loss.item() == 0
    assert outcome.logs["negatives_per_query"] == 0


_REFUSED: list[tuple[LossConfig, dict[str, Any], str]] = [
    (LossConfig("cosent"), {"scores": None}, "row 0 of source 0 has none"),
    (LossConfig("cosine_regression"), {"scores": np.array([1, np.nan, 1, 1], dtype=np.float32)}, "row 1 of"),
    (LossConfig("cosine_regression"), {"scores": np.array([0, 5, 1, 1], dtype=np.float32)}, "a score of 5"),
    (LossConfig("distil_kl"), {"teacher_scores": None}, "'distil_kl' needs teacher scores"),
    (
        LossConfig("margin_mse"),
        {"teacher_scores": np.full(N, np.nan, dtype=np.float32)},
        "needs teacher scores",
    ),
    (
        LossConfig("margin_mse"),
        {"teacher_scores": np.array([np.nan, 1, 1, 1, np.nan, 1, np.nan, 1, 1, 1], dtype=np.float32)},
        "one for its positive and one for a negative",
    ),
    (LossConfig("distil_cosine"), {"teacher_queries": None}, "no teacher vectors of its queries"),
    (LossConfig("distil_mse"), {"teacher_documents": None}, "no teacher vectors of its documents"),
    (
        LossConfig("distil_mse", matryoshka=(2,)),
        {"teacher_documents": np.ones((N, 9), dtype=np.float32)},
        "9 dimensions, the model's 6",
    ),
]


@pytest.mark.parametrize(("config", "fields", "message"), _REFUSED, ids=lambda v: getattr(v, "name", None))
def test_missing_data_is_named(config: LossConfig, fields: dict[str, Any], message: str) -> None:
    """A batch without what its loss needs says what is missing, where, and what to do."""
    objective = build_objective(config, _teacher(config.name))
    with pytest.raises(InputError, match=message):
        objective(vectors(B, DIM), vectors(N, DIM, seed=1), _full_batch(**fields))


def test_own_negatives_that_do_not_exist_are_named() -> None:
    """in_batch = false over rows without negatives would learn nothing: it is refused."""
    objective = build_objective(LossConfig(in_batch=False))
    with pytest.raises(InputError, match="no row of step 7"):
        objective(vectors(2, DIM), vectors(2, DIM), make_batch([1, 1]))


def test_vectors_of_another_batch_are_refused() -> None:
    """A slice of the batch's vectors would shift every positive."""
    with pytest.raises(InputError, match="3 query and 10 document vectors for a batch of 4 and 10"):
        build_objective(LossConfig())(vectors(3, DIM), vectors(N, DIM), make_batch(COUNTS))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LossConfig(temperature=0.0), "above 0"),
        (LossConfig("gte", contrastive_weight=0.5), "leave it out with 'gte'"),
        (LossConfig("gte", in_batch=False), "in-batch negatives"),
        (LossConfig("distil_mse"), "needs a teacher"),
    ],
)
def test_parts_that_do_not_fit_are_refused(config: LossConfig, message: str) -> None:
    """What the config can show to be wrong is told before the first batch."""
    with pytest.raises(InputError, match=message):
        build_objective(config)


@pytest.mark.parametrize("scores", [None, np.full(N, np.nan, dtype=np.float32)], ids=["none", "nan"])
def test_a_source_without_teacher_scores_goes_by_the_contrastive_part(scores: Any) -> None:
    """Where InfoNCE stands beside the teacher's scores, a batch without scores is InfoNCE alone, weight and all."""
    q, d = vectors(B, DIM, seed=1), vectors(N, DIM, seed=2)
    batch = _full_batch(teacher_scores=scores)
    both = build_objective(LossConfig("distil_kl", temperature=0.1, contrastive_weight=0.2))(q, d, batch)
    alone = build_objective(LossConfig("info_nce", temperature=0.1))(q, d, batch)
    assert torch.allclose(both.loss, 0.2 * alone.loss)
    assert "loss_distil_kl" not in both.logs


def test_sources_without_a_teacher_go_by_infonce_alone() -> None:
    """A batch of a source that is not distilled gets the whole of InfoNCE; one that is gets its share beside."""
    config = LossConfig("distil_cosine", contrastive_weight=0.25, temperature=0.1)
    q, d = vectors(B, DIM, seed=1), vectors(N, DIM, seed=2)
    objective = build_objective(config, OWN, [True, True, False])
    for sources, parts in (([2, 2, 2, 2], {"info_nce"}), ([0, 0, 0, 0], {"info_nce", "distil_cosine"})):
        batch = _full_batch(sources=np.array(sources))
        logs = objective(q, d, batch).logs
        assert {k.removeprefix("loss_") for k in logs if k.startswith("loss_")} == parts
        mask = false_negative_masks(batch, identity=True, text=True).query_document
        alone = float(info_nce(q, d, POSITIVES, mask, 0.1))
        assert logs["loss_info_nce"] == pytest.approx(alone * (0.25 if 0 in sources else 1.0), rel=1e-5)
