"""Batches: every row once, under the budget, and smaller when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedkit.embedders.batching import BudgetedForward, plan_batches, round_up, share_batches
from embedkit.errors import EmbedderError

lengths_of = st.lists(st.integers(1, 600), max_size=80)


@given(lengths_of, st.integers(1, 4000), st.sampled_from([1, 8, 16]))
def test_plan_holds_every_row_once_under_the_budget(lengths: list[int], budget: int, multiple: int) -> None:
    """No row is lost or doubled, and only a lone row may exceed the budget."""
    batches = plan_batches(lengths, budget, multiple)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        width = round_up(max(lengths[i] for i in batch), multiple)
        assert len(batch) == 1 or len(batch) * width <= budget


@given(lengths_of, st.integers(600, 4000))
def test_plan_fills_batches(lengths: list[int], budget: int) -> None:
    """A batch ends only where one row more would break the budget, so padding and overhead stay small."""
    batches = plan_batches(lengths, budget)
    for batch, _ in pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@given(lengths_of, st.integers(1, 4000), st.integers(1, 4))
def test_shared_plan_holds_every_row_once_under_the_budget(
    lengths: list[int], budget: int, threads: int
) -> None:
    """A plan for several threads loses no row and keeps the budget."""
    batches = share_batches(lengths, budget, 16, threads)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * round_up(max(lengths[i] for i in batch), 16) <= budget


def test_shared_plan_gives_two_threads_alike_much() -> None:
    """Eight passages that fill one batch and a bit are halved, not cut into seven and one."""
    lengths = [150, 140, 120, 110, 100, 95, 90, 80]
    work = [sum(round_up(lengths[i], 16) for i in batch) for batch in share_batches(lengths, 1024, 16, 2)]
    assert len(work) == 2 and max(work) < 1.3 * min(work)


class _Memory:
    """A device that holds `room` padded tokens and records the batches it ran."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.ran: list[int] = []
        self.released = 0

    def forward(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if len(batch) * max(len(r) for r in batch) > self.room:
            raise MemoryError("full")
        self.ran.append(len(batch))
        return np.array([[sum(r), len(r)] for r in batch], dtype=np.float32)

    def release(self) -> None:
        self.released += 1

    def runner(self, budget: int) -> BudgetedForward:
        return BudgetedForward(self.forward, budget, lambda e: isinstance(e, MemoryError), self.release)


def test_out_of_memory_halves_the_budget_and_goes_on() -> None:
    """With room for a quarter of the batch, all vectors come in order and the budget stays lowered."""
    memory = _Memory(room=50)
    run = memory.runner(budget=200)
    batch = [[i] * 10 for i in range(20)]
    assert (run(batch) == [[10 * i, 10] for i in range(20)]).all()
    assert (run.budget, memory.ran, memory.released) == (50, [5, 5, 5, 5], 2)
    run(batch[:5])
    assert memory.ran == [5, 5, 5, 5, 5], "a batch that fits is not split"
    run(batch[:10])
    assert memory.released == 2, "the lowered budget is remembered: nothing fails a second time"


def test_one_text_too_large_is_told_to_the_user() -> None:
    """A single sequence that does not fit raises EmbedderError with its length."""
    with pytest.raises(EmbedderError, match="one text of 60 tokens"):
        _Memory(room=50).runner(budget=1000)([[1] * 60])


def test_other_errors_pass_unchanged() -> None:
    """An error that is no lack of memory is not swallowed by halving."""

    def broken(batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        BudgetedForward(broken, 100, lambda e: isinstance(e, MemoryError))([[1], [2]])
