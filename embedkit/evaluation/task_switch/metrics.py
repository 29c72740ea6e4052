"""What is measured, each quantity from ranks alone; NaN stands where a seed has no positive for a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CUTOFF = 10
RESAMPLES = 1_000
_PERCENTILES = (2.5, 97.5)


def ndcg(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return nDCG@10 of one relevant text at each rank, any shape: 1 / log2(1 + rank), 0 below rank 10, NaN for rank 0."""
    import numpy as np

    gain = np.where(ranks <= CUTOFF, 1 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0)
    return np.where(ranks > 0, gain, np.nan)


def p_mrr(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return FollowIR's p-MRR (arXiv 2403.15246) of each seed and ordered pair of tasks a -> b: `[seeds, a, b]`.

    Between a's instruction and b's the document whose relevance flips is a's positive: with its ranks R_og under
    a and R_new under b, R_new / R_og - 1 where R_og >= R_new, else 1 - R_og / R_new; -1..1, positive where it fell.
    `ranks` is `[seeds, asked task, member's task]`. NaN on the diagonal and where either task is absent.
    """
    import numpy as np

    original = np.diagonal(ranks, axis1=1, axis2=2).astype(np.float64)  # [seeds, a]
    original = np.where(original > 0, original, np.nan)[:, :, None]
    new = np.swapaxes(ranks, 1, 2).astype(np.float64)  # [seeds, a (member), b (asked)]
    new = np.where(new > 0, new, np.nan)
    new[:, range(new.shape[1]), range(new.shape[1])] = np.nan
    return np.where(original >= new, new / original - 1, 1 - original / new)


def first_member(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which member of the seed's own cell ranks first under each asked task: `[seeds, asked]`, -1 if not asked."""
    import numpy as np

    asked = ranks.max(axis=2) > 0
    found = np.where(ranks > 0, ranks, np.iinfo(np.int64).max).argmin(axis=2)
    return np.where(asked, found, -1)


def switched(found: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 where the member found first is the asked task's own, else 0: `[seeds, asked]`."""
    import numpy as np

    return np.where(found >= 0, (found == np.arange(found.shape[1])).astype(np.float64), np.nan)


def confusion(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the seeds by asked task and the task of the member found first: `[asked, found]`."""
    import numpy as np

    tasks = found.shape[1]
    counts = np.zeros((tasks, tasks), dtype=np.int64)
    seeds, asked = np.nonzero(found >= 0)
    np.add.at(counts, (asked, found[seeds, asked]), 1)
    return counts


def mean_of_wrong(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the nDCG@10 of each task's positive, the mean over the other tasks' instructions: `[seeds, task]`.

    `ranks` is `[seeds, asked task, member's task]`.
    """
    import numpy as np

    values = ndcg(ranks)
    values[:, range(values.shape[1]), range(values.shape[1])] = np.nan
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return divided(total, count)


def robustness(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the least nDCG@10 over the wordings (InstructIR's Robustness@10): `[seeds, task, wordings]` to `[seeds, task]`."""
    import numpy as np

    values = ndcg(ranks)
    least = np.where(np.isnan(values), np.inf, values).min(axis=2)
    return np.where(np.isinf(least), np.nan, least)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its bootstrap 95% interval; all None where no seed has the task."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def resample(seeds: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Return how often each resample draws each seed, `[resamples, seeds]`; every measure uses the same draws (paired)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)


class Bootstrap:
    """Estimate means of columns over seeds: the mean of each column, then the mean over the columns asked for.

    `values` is `[seeds, columns]`, `draws` `[resamples, seeds]`. Columns without any value are left out, and in a
    resample those that drew none.
    """

    def __init__(self, values: NDArray[np.float64], draws: NDArray[np.float64]) -> None:
        import numpy as np

        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        self.means = divided(filled.sum(axis=0), known.sum(axis=0))
        self._resampled = divided(draws @ filled, draws @ known.astype(np.float64))

    def of(self, columns: NDArray[np.int64] | list[int]) -> Estimate:
        """Return the mean over these columns, each alike, with its interval."""
        import numpy as np

        chosen = np.array([c for c in columns if not np.isnan(self.means[c])], dtype=np.int64)
        if not len(chosen):
            return Estimate(None, None, None)
        rows = self._resampled[:, chosen]
        known = ~np.isnan(rows)
        means = divided(np.where(known, rows, 0.0).sum(axis=1), known.sum(axis=1))
        low, high = np.nanpercentile(means, _PERCENTILES)
        return Estimate(float(self.means[chosen].mean()), float(low), float(high))


def divided(total: NDArray[np.float64], count: NDArray[Any]) -> NDArray[np.float64]:
    """Return `total / count`, NaN where nothing was counted."""
    import numpy as np

    quotient: NDArray[np.float64] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return quotient
