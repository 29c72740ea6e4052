"""What the task switch found, for each task and for tasks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.evaluation.task_switch import metrics
from embedkit.evaluation.task_switch.data import HELD_OUT_TASKS, TASKS
from embedkit.evaluation.task_switch.metrics import Bootstrap, Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.evaluation.task_switch.ranking import Ranks

TRAINED_TASKS = tuple(task for task in TASKS if task not in HELD_OUT_TASKS)
# The conditions, as they are called in tables and JSON: whose instruction the query carries.
CONDITIONS = ("right", "held-out", "other language", "none", "nonsense", "wrong")
Matrix = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """The measures of one task, or the mean over several tasks, each task alike.

    `queries` counts pairs of a seed and a task; `chance` is the switch accuracy of a blind guess. p-MRR is that of
    the pairs from the row's tasks to the other trained ones (of all tasks together: to every other), times 100.
    """

    name: str
    queries: int
    chance: float
    ndcg: Mapping[str, Estimate]
    right_minus_none: Estimate
    right_minus_wrong: Estimate
    switch_right: Estimate
    switch_held_out: Estimate
    robustness: Estimate
    p_mrr_right: Estimate
    p_mrr_held_out: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "task": self.name,
            "queries": self.queries,
            "nDCG@10": {name: e.to_dict() for name, e in self.ndcg.items()},
            "right - none": self.right_minus_none.to_dict(),
            "right - wrong": self.right_minus_wrong.to_dict(),
            "switch accuracy": {
                "chance": self.chance,
                "right": self.switch_right.to_dict(),
                "held-out": self.switch_held_out.to_dict(),
            },
            "Robustness@10": self.robustness.to_dict(),
            "p-MRR": {"right": self.p_mrr_right.to_dict(), "held-out": self.p_mrr_held_out.to_dict()},
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The whole finding.

    `default_task` is the one that the embedder serves best without an instruction. `confusion` maps a condition to
    counts by asked task and the task of the member found first; `p_mrr` maps a -> b to p-MRR times 100; `asked` maps
    an asked task to the nDCG@10 of every task's positive under its instruction. The checksums are those of the
    document vectors before the first query and after the last.
    """

    facts: Mapping[str, Any]
    tasks: tuple[Row, ...]
    trained: Row
    overall: Row
    default_task: str
    confusion: Mapping[str, Mapping[str, Mapping[str, int]]]
    p_mrr: Matrix
    asked: Matrix
    checksum_before: str
    checksum_after: str

    @property
    def unchanged(self) -> bool:
        """Whether the document vectors are still the same, bit for bit."""
        return self.checksum_before == self.checksum_after

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **self.facts,
            "trained tasks": self.trained.to_dict(),
            "all tasks": self.overall.to_dict(),
            "tasks": [row.to_dict() for row in self.tasks],
            "held-out tasks": list(HELD_OUT_TASKS),
            "default task": self.default_task,
            "confusion": self.confusion,
            "p-MRR by pair": self.p_mrr,
            "nDCG@10 by asked task": self.asked,
            "index": {
                "unchanged": self.unchanged,
                "sha256 before": self.checksum_before,
                "sha256 after": self.checksum_after,
            },
        }


def make_report(
    ranks: Ranks,
    facts: Mapping[str, Any],
    checksums: tuple[str, str],
    seed: int,
    resamples: int = metrics.RESAMPLES,
) -> Report:
    """Measure everything; `seed` draws the resamples, which all measures share."""

    first = {"right": metrics.first_member(ranks.right), "held-out": metrics.first_member(ranks.held_out)}
    pairs = {"right": metrics.p_mrr(ranks.right) * 100, "held-out": metrics.p_mrr(ranks.held_out) * 100}
    measured = _Measured(ranks, first, pairs, metrics.resample(len(ranks.right), seed, resamples))
    everything = range(len(TASKS))
    trained = [t for t in everything if TASKS[t] in TRAINED_TASKS]
    present = [t for t in everything if (ranks.bare[:, t] > 0).any()]
    rows = tuple(measured.row(TASKS[t], [t], trained) for t in present)
    bare = {row.name: row.ndcg["none"].value or 0.0 for row in rows}
    return Report(
        facts,
        rows,
        measured.row("trained tasks", trained, trained),
        measured.row("all tasks", list(everything), list(everything)),
        max(bare, key=bare.__getitem__),
        {name: _table(metrics.confusion(found)) for name, found in first.items()},
        _table(_means(pairs["right"])),
        _table(_means(metrics.ndcg(ranks.right))),
        *checksums,
    )


class _Measured:
    """The bootstrapped measures, task by task."""

    def __init__(
        self,
        ranks: Ranks,
        first: Mapping[str, NDArray[np.int64]],
        pairs: Mapping[str, NDArray[np.float64]],
        draws: NDArray[np.float64],
    ) -> None:
        def own(cells: NDArray[np.int64]) -> NDArray[np.int64]:
            return cells.diagonal(axis1=1, axis2=2)

        values = {
            "right": metrics.ndcg(own(ranks.right)),
            "held-out": metrics.ndcg(own(ranks.held_out)),
            "other language": metrics.ndcg(own(ranks.other_language)),
            "none": metrics.ndcg(ranks.bare),
            "nonsense": metrics.ndcg(ranks.nonsense),
            "wrong": metrics.mean_of_wrong(ranks.right),
        }
        self._present = ranks.bare > 0
        self._ndcg = {name: Bootstrap(values[name], draws) for name in CONDITIONS}
        self._minus = {name: Bootstrap(values["right"] - values[name], draws) for name in ("none", "wrong")}
        self._switch = {name: Bootstrap(metrics.switched(found), draws) for name, found in first.items()}
        self._robustness = Bootstrap(metrics.robustness(ranks.wordings), draws)
        self._pairs = {name: Bootstrap(p.reshape(len(p), -1), draws) for name, p in pairs.items()}

    def row(self, name: str, tasks: Sequence[int], others: Sequence[int]) -> Row:
        """Return the means over `tasks`; p-MRR is of the pairs from one of them to one of `others`."""
        columns = list(tasks)
        pairs = [a * len(TASKS) + b for a in tasks for b in others if a != b]
        return Row(
            name,
            int(self._present[:, columns].sum()),
            self._chance(columns),
            {condition: b.of(columns) for condition, b in self._ndcg.items()},
            self._minus["none"].of(columns),
            self._minus["wrong"].of(columns),
            self._switch["right"].of(columns),
            self._switch["held-out"].of(columns),
            self._robustness.of(columns),
            self._pairs["right"].of(pairs),
            self._pairs["held-out"].of(pairs),
        )

    def _chance(self, columns: Sequence[int]) -> float:
        guess = 1 / self._present.sum(axis=1)
        means = [float(guess[self._present[:, t]].mean()) for t in columns if self._present[:, t].any()]
        return sum(means) / len(means)


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    known = ~np.isnan(values)
    return metrics.divided(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def _table(matrix: NDArray[Any]) -> dict[str, dict[str, Any]]:
    """Return a matrix of tasks as a mapping of mappings, without its NaNs."""
    return {
        row: {column: value for column, value in zip(TASKS, values, strict=True) if value == value}  # noqa: PLR0124
        for row, values in zip(TASKS, matrix.tolist(), strict=True)
    }
