"""Fuse rankings of different kinds: by rank, because their scores do not compare."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from embedkit.errors import InputError

T = TypeVar("T", bound=Hashable)
RRF_CONSTANT = 60  # Cormack, Clarke and Büttcher, SIGIR 2009


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[T]],
    weights: Sequence[float] | None = None,
    constant: float = RRF_CONSTANT,
    k: int | None = None,
) -> list[tuple[T, float]]:
    """Return the best k items of several rankings, best first, with their fused scores.

    An item's score is the sum of weight / (constant + rank) over the rankings that hold it, its rank counted from 1;
    where a ranking repeats an item, its first place counts. A ranking without the item adds nothing and takes nothing
    away: an item that stands in one ranking alone is still fused. Equal scores keep the order in which the items
    first appear, the first ranking before the second.

    So a fused score says how high an item stands in the rankings, not how near it is to the query: the first place of
    every ranking with weights 1 is len(rankings) / 61, whatever was found. It compares within one query only.

    `weights`: one a ranking (None: 1 each), not negative; what a ranking of weight 0 holds alone scores 0 and is left
    out. A smaller `constant` gives more to the first places. `k`: None for all. Raises InputError for
    wrong weights, a negative constant or k below 1.
    """
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise InputError(f"{len(weights)} weights for {len(rankings)} rankings: give one for each")
    # Written so that NaN fails too.
    if not all(0 <= w < float("inf") for w in weights):
        raise InputError(f"the weights are {list(weights)}: give finite numbers from 0 on")
    if not 0 <= constant < float("inf"):
        raise InputError(
            f"the constant of reciprocal rank fusion is {constant}: give a finite number from 0 on"
        )
    if k is not None and k < 1:
        raise InputError(f"k is {k}: ask for at least one result")
    scores: dict[T, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if weight > 0:
            for rank, item in enumerate(dict.fromkeys(ranking), 1):
                scores[item] = scores.get(item, 0.0) + weight / (constant + rank)
    # A stable sort: equals stay in the order of the dictionary, which is that of their first appearance.
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]
