"""Losses: pure functions of raw vectors, one formula and one source each.

Vectors come unnormalised; cos(a, b) is taken here, in float32 whatever autocast says (float64 stays float64). A zero
vector has cosine 0 to everything and no gradient. Every result is a scalar, the mean over what the formula sums.
Documents are row-major: row i owns a run of them that begins with its positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedkit.errors import InputError

_LARGEST_BLOCK = 2**28
"""Similarities held at once (1 GiB of float32): beyond, blocks of rows are computed, and once more for the gradient."""

PairLoss = Callable[[Tensor, Tensor], Tensor]
_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_full_precision(loss: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run `loss` outside autocast, its bfloat16 and float16 tensors widened: at T = 0.01 rounding drowns the signal."""

    def widen(value: object) -> object:
        narrow = isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4
        return value.float() if narrow and isinstance(value, Tensor) else value

    @wraps(loss)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*(widen(a) for a in args), **{k: widen(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return run


def directions(vectors: Tensor) -> Tensor:
    """Return `vectors` at unit length; a zero vector stays zero and gets no gradient."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.masked_fill(lengths < 1e-12, torch.inf)


def row_blocks(rows: int, width: int) -> list[slice]:
    """Cut `rows` rows of `width` similarities into blocks that hold at most `_LARGEST_BLOCK` of them (one row at least)."""
    step = max(1, _LARGEST_BLOCK // max(width, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _mean_over_rows(row_losses: Callable[[slice], Tensor], rows: int, width: int) -> Tensor:
    """Average `row_losses(block)` over all rows; where one block does not do, each is recomputed for its gradient."""
    blocks = row_blocks(rows, width)
    if len(blocks) == 1:
        return row_losses(blocks[0]).mean()
    return torch.cat([checkpoint(row_losses, block, use_reentrant=False) for block in blocks]).mean()


def _of(mask: Tensor | None, block: slice) -> Tensor | None:
    return None if mask is None else mask[block]


def owners(offsets: Tensor) -> Tensor:
    """Return int64 `[N]`: the row that owns each document, from `offsets` `[B + 1]`."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff())


def ragged(values: Tensor, offsets: Tensor, fill: float) -> Tensor:
    """Return `values` `[N]` as `[B, longest row]`, each row followed by `fill`."""
    owner = owners(offsets)
    place = torch.arange(len(values), device=values.device) - offsets[owner]
    table = values.new_full((len(offsets) - 1, int(offsets.diff().max())), fill)
    return table.index_put((owner, place), values)


def own_similarities(queries: Tensor, documents: Tensor, offsets: Tensor) -> Tensor:
    """Return `[N]`: the cosine of each document with the query of the row that owns it."""
    return (directions(queries)[owners(offsets)] * directions(documents)).sum(1)


@in_full_precision
def info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.02,
    *,
    in_batch: bool = True,
) -> Tensor:
    """Return InfoNCE over all documents of the batch, hard negatives included.

    L = -1/B sum_i log( exp(cos(q_i, p_i)/T) / sum_j exp(cos(q_i, d_j)/T) )   (arXiv 2401.00368, section 3.2)

    `queries` `[B, dim]`, `documents` `[N, dim]`; `positives` int64 `[B]` says which document is p_i. `mask` bool
    `[B, N]` leaves d_j out of row i's sum where True (p_i itself never is): a row with nothing left costs 0.
    `in_batch=False` sums over the row's own documents alone (they must be row-major).
    """
    left_out = None if mask is None else mask.scatter(1, positives[:, None], False)
    if not in_batch:
        offsets = torch.cat([positives, positives.new_tensor([len(documents)])])
        values = own_similarities(queries, documents, offsets) / temperature
        if left_out is not None:
            own = left_out[owners(offsets), torch.arange(len(documents), device=left_out.device)]
            values = values.masked_fill(own, -torch.inf)
        logits = ragged(values, offsets, -torch.inf)
        return F.cross_entropy(logits, torch.zeros_like(positives))
    q, d = directions(queries), directions(documents)

    def row_losses(block: slice) -> Tensor:
        logits = q[block] @ d.T / temperature
        if left_out is not None:
            logits = logits.masked_fill(left_out[block], -torch.inf)
        return F.cross_entropy(logits, positives[block], reduction="none")

    return _mean_over_rows(row_losses, len(q), len(d))


@in_full_precision
def gte_contrastive(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: float = 0.01,
    *,
    query_document: Tensor | None = None,
    query_query: Tensor | None = None,
    document_query: Tensor | None = None,
    document_document: Tensor | None = None,
) -> Tensor:
    """Return GTE's improved contrastive loss: four kinds of similarity in one denominator.

    L = -1/B sum_i log( exp(cos(q_i, p_i)/T) / Z_i )   (arXiv 2308.03281, improved contrastive loss)
    Z_i = sum_j exp(cos(q_i, d_j)/T) + sum_{k != i} exp(cos(q_i, q_k)/T)
        + sum_k exp(cos(p_i, q_k)/T) + sum_{d_j != p_i} exp(cos(p_i, d_j)/T)

    k runs over the rows, d_j over all documents, hard negatives included. As in the paper, the pair (q_i, p_i) is
    counted in the first and in the third sum, so that log 2 is the lowest value. The masks are bool, `[B, N]` for
    `query_document` and `document_document` and `[B, B]` for the two others; True leaves a term of row i out, except
    the pair itself. q_i against itself and p_i against itself are always left out.
    """
    q, d = directions(queries), directions(documents)
    p = d[positives]
    rows = torch.arange(len(q), device=q.device)

    def terms(logits: Tensor, mask: Tensor | None, own: Tensor, keep: bool) -> Tensor:
        left_out = torch.zeros_like(logits, dtype=torch.bool) if mask is None else mask.clone()
        return logits.masked_fill(left_out.scatter_(1, own[:, None], not keep), -torch.inf)

    def row_losses(block: slice) -> Tensor:
        kinds = [
            terms(q[block] @ d.T / temperature, _of(query_document, block), positives[block], True),
            terms(q[block] @ q.T / temperature, _of(query_query, block), rows[block], False),
            terms(p[block] @ q.T / temperature, _of(document_query, block), rows[block], True),
            terms(p[block] @ d.T / temperature, _of(document_document, block), positives[block], False),
        ]
        return F.cross_entropy(torch.cat(kinds, 1), positives[block], reduction="none")

    return _mean_over_rows(row_losses, len(q), 2 * (len(q) + len(d)))


def simcse(first: Tensor, second: Tensor, mask: Tensor | None = None, temperature: float = 0.05) -> Tensor:
    """Return unsupervised SimCSE: each text's second embedding is its positive, all others are its negatives.

    L = -1/B sum_i log( exp(cos(a_i, b_i)/T) / sum_j exp(cos(a_i, b_j)/T) )   (arXiv 2104.08821, equation 4)

    `first` and `second` `[B, dim]` are the same texts under two dropout masks (with dropout off nothing is learnt but
    to spread); `mask` bool `[B, B]`.
    """
    rows = torch.arange(len(first), device=first.device)
    return info_nce(first, second, rows, mask, temperature)


@in_full_precision
def cosent(queries: Tensor, documents: Tensor, scores: Tensor, temperature: float = 0.05) -> Tensor:
    """Return CoSENT: every two pairs of texts whose scores differ should have cosines that differ the same way.

    L = log( 1 + sum over score_i > score_j of exp((cos_j - cos_i)/T) )   (Su 2022, "CoSENT", kexue.fm/archives/8847)

    `queries` and `documents` `[B, dim]` are paired, `scores` `[B]`: only their order counts. The sum over j is a
    running one in the order of the scores, so that no `[B, B]` matrix is built. All scores equal: the loss is 0.
    """
    ranked, order = torch.sort(scores)
    cosines = (directions(queries) * directions(documents)).sum(1)[order] / temperature
    below = torch.searchsorted(ranked, ranked)  # how many scores are strictly lower
    running = torch.logcumsumexp(cosines, 0)
    some = below > 0
    terms = running[below[some] - 1] - cosines[some]
    return torch.logsumexp(torch.cat([cosines.new_zeros(1), terms]), 0)


@in_full_precision
def cosine_regression(queries: Tensor, documents: Tensor, scores: Tensor, scale: float = 1.0) -> Tensor:
    """Return the squared difference of cosine and graded score.

    L = 1/B sum_i (cos(q_i, d_i) - score_i/scale)^2   (arXiv 1908.10084, section 3, regression objective)

    `queries` and `documents` `[B, dim]` are paired; `scale` brings `scores` `[B]` into -1..1 (5 for STS's 0..5).
    """
    cosines = (directions(queries) * directions(documents)).sum(1)
    return (cosines - scores.to(cosines) / scale).square().mean()


def matryoshka(loss: PairLoss, widths: Sequence[int], weights: Sequence[float] = ()) -> PairLoss:
    """Return the loss that sums `loss` over prefixes of the vectors.

    L = sum_m c_m * L(q[:m], d[:m])   (arXiv 2205.13147, equation 1); `weights` are the c_m, 1 where none is given.
    InputError: widths that are not positive, that exceed the vectors, or that the weights do not match in number.
    """
    chosen = tuple(weights) or (1.0,) * len(widths)
    if not widths or min(widths) < 1 or len(chosen) != len(widths):
        raise InputError(
            f"matryoshka: widths {tuple(widths)} with weights {tuple(weights)}; "
            "give one or more positive widths, and as many weights or none"
        )

    def total(queries: Tensor, documents: Tensor) -> Tensor:
        if max(widths) > queries.shape[1]:
            raise InputError(
                f"matryoshka: width {max(widths)} exceeds the vectors' {queries.shape[1]}; give smaller widths"
            )
        parts = (c * loss(queries[:, :m], documents[:, :m]) for m, c in zip(widths, chosen, strict=True))
        return torch.stack(list(parts)).sum()

    return total
