"""Losses that follow a teacher: its vectors, or its scores of a row's own documents.

The conventions are those of `losses`: raw vectors in, a scalar out, float32 whatever autocast says. Where the teacher
gives scores, the student's logit is cos(q_i, d)/T and the teacher's is score/T_teacher, in `distil_kl` and
`margin_mse` alike; a NaN says that the teacher gave none, and `offsets` `[B + 1]` cut documents into rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embedkit.errors import InputError
from embedkit_trainer.losses.pairs import directions, in_full_precision, own_similarities, owners, ragged


def _check_widths(vectors: Tensor, teacher: Tensor) -> None:
    if vectors.shape != teacher.shape:
        raise InputError(
            f"the student's vectors are {list(vectors.shape)}, the teacher's {list(teacher.shape)}; "
            "choose a teacher of the student's width"
        )


@in_full_precision
def distil_cosine(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean cosine distance of `vectors` `[n, dim]` from `teacher` `[n, dim]`.

    L = 1/n sum_i (1 - cos(v_i, t_i))   (the directions' half of 2004.09813's and 2509.12539's regression: for unit
    vectors it is half their squared distance). InputError: the widths differ.
    """
    _check_widths(vectors, teacher)
    return 1 - (directions(vectors) * directions(teacher).to(vectors)).sum(1).mean()


@in_full_precision
def distil_mse(vectors: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of `vectors` `[n, dim]` from `teacher` `[n, dim]`, lengths included.

    L = 1/n sum_i |v_i - t_i|^2   (arXiv 2004.09813, section 2). It is no mean over the dim coordinates, as other
    tools take it: those give 1/dim of this. InputError: the widths differ.
    """
    _check_widths(vectors, teacher)
    return (vectors - teacher.to(vectors)).square().sum(1).mean()


@in_full_precision
def distil_kl(
    queries: Tensor,
    documents: Tensor,
    teacher_scores: Tensor,
    offsets: Tensor,
    *,
    temperature: float = 0.02,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Return the divergence of the student's ranking of a row's documents from the teacher's.

    L = 1/B' sum_i sum_j t_ij * (log t_ij - log s_ij), t_i = softmax_j(score_ij/T_teacher), s_i = softmax_j(cos(q_i,
    d_j)/T), over the own documents j of row i   (arXiv 2010.11386; 2212.03533, section 4.2)

    `queries` `[B, dim]`, `documents` `[N, dim]`, `teacher_scores` `[N]`. B' counts the rows with two scores or more:
    the others say nothing. No such row: the loss is 0.
    """
    student = own_similarities(queries, documents, offsets) / temperature
    teacher = teacher_scores.to(student) / teacher_temperature
    known = ~teacher.isnan()
    targets = ragged(teacher.masked_fill(~known, -torch.inf), offsets, -torch.inf)
    logits = ragged(student.masked_fill(~known, -torch.inf), offsets, -torch.inf)
    useful = targets.isfinite().sum(1) > 1
    if not useful.any():
        return 0.0 * student.sum()
    targets, logits = targets[useful], logits[useful]
    absent = targets.isinf()
    # Log-probabilities of absent documents are -inf on both sides: their difference must not become NaN.
    log_teacher = targets.log_softmax(1).masked_fill(absent, 0.0)
    log_student = logits.log_softmax(1).masked_fill(absent, 0.0)
    return (targets.softmax(1) * (log_teacher - log_student)).sum(1).mean()


@in_full_precision
def margin_mse(
    queries: Tensor,
    documents: Tensor,
    teacher_scores: Tensor,
    offsets: Tensor,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """Return the squared difference of the student's and the teacher's margins of the positive over each negative.

    L = 1/M sum over (i, n) of ((cos(q_i, p_i) - cos(q_i, n))/T - (score_ip - score_in)/T_teacher)^2
    (arXiv 2010.02666, with logits for its dot products)

    `queries` `[B, dim]`, `documents` `[N, dim]`, `teacher_scores` `[N]`. M counts the negatives that have a score
    beside a scored positive. No such negative: the loss is 0.
    """
    student = own_similarities(queries, documents, offsets) / temperature
    teacher = teacher_scores.to(student) / teacher_temperature
    positive = offsets[:-1][owners(offsets)]
    margins = teacher[positive] - teacher
    places = torch.arange(len(documents), device=documents.device)
    counted = ~margins.isnan() & (places != positive)
    if not counted.any():
        return 0.0 * student.sum()
    return ((student[positive] - student)[counted] - margins[counted]).square().mean()
