"""Objective: from the vectors of the global batch to one loss, as the config says.

Plain, GradCache and multi-process steps all call the same one, so that they cannot differ in what they optimise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.errors import InputError
from embedkit_trainer.config.records import (
    CONTRASTIVE,
    TEACHER_SCORES,
    TEACHER_VECTORS,
    LossConfig,
    TeacherConfig,
)
from embedkit_trainer.data.batches import Batch
from embedkit_trainer.losses.candidates import Candidates, candidates_of
from embedkit_trainer.losses.distillation import distil_cosine, distil_kl, distil_mse, margin_mse
from embedkit_trainer.losses.pairs import (
    PairLoss,
    cosent,
    cosine_regression,
    directions,
    gte_contrastive,
    info_nce,
    matryoshka,
    simcse,
)

_OF_VECTORS = {"distil_cosine": distil_cosine, "distil_mse": distil_mse}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold the scalar `loss` with its graph, and what it tells: `logs`.

    Always there: `loss`, `loss_<name>` of each part, `positive_similarity` (mean cosine of query and positive),
    `negatives_per_query` (mean number of candidates that a positive competes with; 0 without a contrastive part).
    With one: `in_batch_accuracy` (share of queries nearer to their positive than to every candidate document),
    `masked_rate_<source index>`, and `masked_by_similarity` where that is on.
    """

    loss: Tensor
    logs: dict[str, float]


class Objective(Protocol):
    """Turn `[B, dim]` query and `[N, dim]` document vectors of a batch into its loss."""

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Outcome:
        """Return the loss; InputError where the batch lacks what the loss needs."""
        ...


def build_objective(
    loss: LossConfig, teacher: TeacherConfig | None = None, distilled: Sequence[bool] | None = None
) -> Objective:
    """Return the objective of a stage; InputError where its numbers or parts do not fit together.

    The loss is the named one, over the full width and beside it over each of `matryoshka`'s prefixes; plus, where it
    is no contrastive loss itself, `contrastive_weight` times InfoNCE over the same widths. `distilled` says of each
    source whether the teacher's vectors are its targets (None: of all); a batch of sources where they are not goes by
    InfoNCE alone, in full.
    """
    if loss.temperature <= 0 or loss.teacher_temperature <= 0:
        raise InputError(
            f"temperatures must be above 0, got {loss.temperature} and {loss.teacher_temperature} (teacher)"
        )
    if loss.name in CONTRASTIVE and loss.contrastive_weight:
        raise InputError(
            f"contrastive_weight = {loss.contrastive_weight} adds InfoNCE to a loss that is not contrastive; "
            f"leave it out with {loss.name!r}"
        )
    if loss.name in ("gte", "simcse") and not loss.in_batch:
        raise InputError(
            f"the loss {loss.name!r} lives on in-batch negatives; choose info_nce with in_batch = false"
        )
    if loss.name in _OF_VECTORS and teacher is None:
        raise InputError(f"the loss {loss.name!r} needs a teacher; name its embedder under teacher")
    return _Objective(loss, teacher, np.array(distilled if distilled is not None else [], bool))


@dataclass(frozen=True)
class _Objective:
    config: LossConfig
    teacher: TeacherConfig | None
    distilled: NDArray[np.bool_]

    def __call__(self, queries: Tensor, documents: Tensor, batch: Batch) -> Outcome:
        config, teacher = self.config, self.teacher
        if len(queries) != len(batch.offsets) - 1 or len(documents) != batch.offsets[-1]:
            raise InputError(
                f"{len(queries)} query and {len(documents)} document vectors for a batch of "
                f"{len(batch.offsets) - 1} and {batch.offsets[-1]}; pass the vectors of the whole global batch"
            )
        positives = torch.as_tensor(batch.offsets[:-1], device=queries.device)
        parts: dict[str, tuple[float, PairLoss]] = {}
        logs: dict[str, float] = {}
        undistilled = self._undistilled(batch)
        if (
            config.name not in CONTRASTIVE
            and not undistilled
            and not _contrastive_alone(config, teacher, batch)
        ):
            parts[config.name] = 1.0, _supervised(config, teacher, queries, batch)
        if config.name in CONTRASTIVE or config.contrastive_weight:
            _need_negatives(config, batch)
            candidates = candidates_of(config, queries, documents, batch)
            logs |= candidates.logs
            if config.name in CONTRASTIVE:
                parts[config.name] = 1.0, _contrastive(config, config.name, positives, candidates)
            else:
                parts["info_nce"] = (
                    1.0 if undistilled else config.contrastive_weight,
                    _contrastive(config, "info_nce", positives, candidates),
                )
        losses = {
            n: weight * _over_widths(config, p, queries.shape[1])(queries, documents)
            for n, (weight, p) in parts.items()
        }
        loss = torch.stack(list(losses.values())).sum()
        with torch.no_grad():
            pairs = (directions(queries.float()) * directions(documents[positives].float())).sum(1)
        logs |= {f"loss_{name}": float(part.detach()) for name, part in losses.items()}
        logs |= {"loss": float(loss.detach()), "positive_similarity": float(pairs.mean())}
        return Outcome(loss, {"negatives_per_query": 0.0} | logs)

    def _undistilled(self, batch: Batch) -> bool:
        """Tell whether the batch is of sources whose texts have no teacher's vectors to follow."""
        if self.config.name not in TEACHER_VECTORS or len(self.distilled) == 0:
            return False
        return not self.distilled[batch.sources].any()


def _contrastive_alone(config: LossConfig, teacher: TeacherConfig | None, batch: Batch) -> bool:
    """Tell whether a batch of a source without teacher scores goes by InfoNCE alone (E5's NLI beside its scored sets)."""
    return (
        config.name in TEACHER_SCORES
        and config.contrastive_weight > 0
        and teacher is None
        and (batch.teacher_scores is None or not np.isfinite(batch.teacher_scores).any())
    )


def _over_widths(config: LossConfig, part: PairLoss, full: int) -> PairLoss:
    """Return `part` over the configured prefixes and, with weight 1 unless it is one of them, the full width."""
    if not config.matryoshka:
        return part
    widths = config.matryoshka
    weights = config.matryoshka_weights or (1.0,) * len(widths)
    if full not in widths:
        widths, weights = (*widths, full), (*weights, 1.0)
    return matryoshka(part, widths, weights)


def _contrastive(config: LossConfig, name: str, positives: Tensor, candidates: Candidates) -> PairLoss:
    t, masks = config.temperature, candidates.masks
    if name == "gte":
        return lambda q, d: gte_contrastive(q, d, positives, t, **masks)
    mask = masks["query_document"]
    if name == "simcse":
        return lambda q, d: simcse(q, d[positives], mask, t)
    return lambda q, d: info_nce(q, d, positives, mask, t, in_batch=config.in_batch)


def _supervised(config: LossConfig, teacher: TeacherConfig | None, like: Tensor, batch: Batch) -> PairLoss:
    """Return the loss that scores or a teacher supervise, its targets on the device of `like`."""
    positives = torch.as_tensor(batch.offsets[:-1], device=like.device)
    if config.name in _OF_VECTORS:
        target = "own" if teacher is None else teacher.target
        return _of_vectors(_OF_VECTORS[config.name], target == "own", like, positives, batch)
    t = config.temperature
    if config.name in TEACHER_SCORES:
        scores = _to(_teacher_scores(config, teacher, batch), like)
        offsets = torch.as_tensor(batch.offsets, device=like.device)
        loss = distil_kl if config.name == "distil_kl" else margin_mse
        warmth = config.teacher_temperature
        return lambda q, d: loss(q, d, scores, offsets, temperature=t, teacher_temperature=warmth)
    scores = _to(_graded_scores(config, batch), like)
    if config.name == "cosent":
        return lambda q, d: cosent(q, d[positives], scores, t)
    return lambda q, d: cosine_regression(q, d[positives], scores, config.score_scale)


def _of_vectors(loss: PairLoss, own: bool, like: Tensor, positives: Tensor, batch: Batch) -> PairLoss:
    """Return the loss of queries plus that of documents against the teacher's vectors, cut to the prefix at hand.

    `own`: each text against its own vector. Otherwise queries and positives against the positives' vectors.
    """
    of_documents = _vectors("documents", batch.teacher_documents, like, batch)
    if own:
        of_queries = _vectors("queries", batch.teacher_queries, like, batch)
        return lambda q, d: loss(q, of_queries[:, : q.shape[1]]) + loss(d, of_documents[:, : d.shape[1]])
    target = of_documents[positives]
    return lambda q, d: loss(q, target[:, : q.shape[1]]) + loss(d[positives], target[:, : d.shape[1]])


def _vectors(what: str, vectors: NDArray[np.float32] | None, like: Tensor, batch: Batch) -> Tensor:
    if vectors is None:
        raise InputError(
            f"step {batch.step} carries no teacher vectors of its {what}; embed the sources with the teacher first"
        )
    if vectors.shape[1] != like.shape[1]:
        raise InputError(
            f"the teacher's vectors have {vectors.shape[1]} dimensions, the model's {like.shape[1]}; "
            "choose a teacher of the same width, or distil its scores (distil_kl, margin_mse)"
        )
    return _to(vectors, like)


def _teacher_scores(config: LossConfig, teacher: TeacherConfig | None, batch: Batch) -> NDArray[np.float32]:
    """Return the teacher's score of each document `[N]`: the cosine of its vectors, without a teacher the rows' own.

    InputError where no row has enough of them: two, for `margin_mse` the positive's among them.
    """
    if teacher is not None and batch.teacher_queries is not None and batch.teacher_documents is not None:
        queries = np.repeat(batch.teacher_queries, np.diff(batch.offsets), axis=0)
        lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(batch.teacher_documents, axis=1)
        cosines: NDArray[np.float32] = (queries * batch.teacher_documents).sum(1) / np.maximum(lengths, 1e-12)
        return cosines
    if batch.teacher_scores is not None:
        known = np.isfinite(batch.teacher_scores)
        enough = np.add.reduceat(known, batch.offsets[:-1], dtype=np.int64) > 1
        if config.name == "margin_mse":
            enough &= known[batch.offsets[:-1]]
        if enough.any():
            return batch.teacher_scores
    raise InputError(
        f"the loss {config.name!r} needs teacher scores, and no row of step {batch.step} (the first is {_where(batch)}) "
        "has one for its positive and one for a negative; add teacher_scores and negatives to the rows, or name a teacher"
    )


def _graded_scores(config: LossConfig, batch: Batch) -> NDArray[np.float32]:
    if batch.scores is None or not np.isfinite(batch.scores).all():
        row = 0 if batch.scores is None else int(np.flatnonzero(~np.isfinite(batch.scores))[0])
        raise InputError(
            f"the loss {config.name!r} needs a score in every row, and {_where(batch, row)} has none; "
            "add `score` to the rows, or choose info_nce"
        )
    largest = float(np.abs(batch.scores).max())
    if config.name == "cosine_regression" and largest > config.score_scale:
        raise InputError(
            f"cosine_regression compares scores with cosines, and step {batch.step} has a score of {largest:g} "
            f"where score_scale is {config.score_scale:g}; give the largest score there can be, or choose cosent, which "
            "reads their order alone"
        )
    return batch.scores


def _need_negatives(config: LossConfig, batch: Batch) -> None:
    if not config.in_batch and batch.offsets[-1] == len(batch.offsets) - 1:
        raise InputError(
            f"in_batch = false leaves the rows their own negatives alone, and no row of step {batch.step} (the first "
            f"is {_where(batch)}) has any; add negatives to the rows, or set in_batch = true"
        )


def _where(batch: Batch, row: int = 0) -> str:
    source, place = batch.rows[row]
    return f"row {place} of source {source}"


def _to(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.as_tensor(values, device=like.device)
