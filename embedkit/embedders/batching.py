"""Batches under a token budget: texts of like length together, no batch above the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedkit.errors import EmbedderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Ids = Sequence[int]


def round_up(length: int, multiple: int) -> int:
    """Return the least multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def plan_batches(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Split the rows into batches, longest first, so that rows x padded length <= `budget`.

    The padded length is the batch's longest, rounded up to `multiple`; a row longer than the budget goes
    alone. Every row occurs once.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        width = max(round_up(lengths[order[start]], multiple), 1)
        size = max(budget // width, 1)
        batches.append(order[start : start + size])
        start += size
    return batches


def share_batches(lengths: Sequence[int], budget: int, multiple: int, threads: int) -> list[list[int]]:
    """Split as `plan_batches` does, few batches so that none of the threads that take them has much less to do."""
    batches = plan_batches(lengths, budget, multiple)
    parts = min(round_up(len(batches), threads), len(lengths))
    if len(batches) >= 4 * threads or parts <= 1:
        return batches
    even = sum(round_up(length, multiple) for length in lengths) / parts
    while even < budget:
        batches = plan_batches(lengths, int(even), multiple)
        if len(batches) <= parts:
            return batches
        even *= 1.05
    return plan_batches(lengths, budget, multiple)


@dataclass
class BudgetedForward:
    """Run batches of token ids, halving the token budget each time the device is out of memory.

    `forward` maps sequences to float32 `[n, dim]`; `is_out_of_memory` tells its error from others;
    `release` frees what the failed try held. The budget stays lowered for later calls.
    """

    forward: Callable[[Sequence[Ids]], NDArray[np.float32]]
    budget: int
    is_out_of_memory: Callable[[BaseException], bool]
    release: Callable[[], Any] = lambda: None

    def __call__(self, batch: Sequence[Ids]) -> NDArray[np.float32]:
        """Return one vector per sequence. Raises EmbedderError where a single sequence does not fit."""
        width = max(len(ids) for ids in batch)
        if len(batch) == 1 or len(batch) * width <= self.budget:
            vectors = self._try(batch, width)
            if vectors is not None:
                return vectors
        return self._halves(batch)

    def _try(self, batch: Sequence[Ids], width: int) -> NDArray[np.float32] | None:
        try:
            return self.forward(batch)
        except Exception as e:
            if not self.is_out_of_memory(e):
                raise
            if len(batch) == 1:
                raise EmbedderError(
                    f"out of memory on one text of {width} tokens: lower max_length, or choose a lighter dtype"
                ) from e
        # Outside the except block: the traceback, and the tensors it holds, are gone when memory is freed.
        self.release()
        self.budget = max(len(batch) * width // 2, 1)
        return None

    def _halves(self, batch: Sequence[Ids]) -> NDArray[np.float32]:
        import numpy as np

        middle = len(batch) // 2
        return np.concatenate([self(batch[:middle]), self(batch[middle:])])
