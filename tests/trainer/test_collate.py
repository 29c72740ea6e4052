"""Collate: rows padded or packed without loss, and chunks that hold every row once within the budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedkit_trainer.collate import Ids, pack, pad, plan_chunks

ROWS: list[Ids] = [np.array([5, 6, 7], np.int32), [9], np.array([3, 4], np.int32)]


def test_padded_rows() -> None:
    """Rows of arrays and lists are filled with 0 on the right; mask, lengths and positions say what is real."""
    inputs = pad(ROWS)
    assert inputs.ids.tolist() == [[5, 6, 7], [9, 0, 0], [3, 4, 0]]
    assert inputs.ids.dtype == torch.int64
    assert inputs.lengths.tolist() == [3, 1, 2]
    assert inputs.mask().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert inputs.positions().tolist() == [[0, 1, 2]] * 3
    assert (inputs.longest, inputs.offsets, inputs.full) == (3, None, False)


def test_rows_of_one_length_need_no_mask() -> None:
    """Rows that are equally long are full, so that the model may leave the mask away."""
    assert pad([[1, 2], [3, 4]]).full
    assert pad([[1]]).full


def test_packed_rows() -> None:
    """Rows lie end to end; offsets are int32, as the kernel wants them, and positions start anew with every row."""
    inputs = pack(ROWS)
    assert inputs.ids.tolist() == [[5, 6, 7, 9, 3, 4]]
    assert inputs.offsets is not None
    assert inputs.offsets.tolist() == [0, 3, 4, 6]
    assert inputs.offsets.dtype == torch.int32
    assert inputs.positions().tolist() == [[0, 1, 2, 0, 0, 1]]
    assert (inputs.lengths.tolist(), inputs.longest, inputs.full) == ([3, 1, 2], 3, True)


def test_a_token_zero_is_a_token() -> None:
    """An id 0 inside a row is a token like any other: lengths decide what is padding."""
    inputs = pad([[0, 0, 1], [2]])
    assert inputs.mask().tolist() == [[1, 1, 1], [1, 0, 0]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100), st.booleans())
def test_chunks_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, packed: bool) -> None:
    """Every row is in one chunk; a chunk keeps to the budget or is one long row; no two neighbours would have fit."""
    array = np.array(lengths, np.int64)

    def cost(chunk: list[int]) -> int:
        found = array[chunk]
        return int(found.sum() if packed else len(found) * found.max())

    chunks = [c.tolist() for c in plan_chunks(array, budget, packed=packed)]
    assert sorted(i for c in chunks for i in c) == list(range(len(lengths)))
    assert all(cost(c) <= budget or len(c) == 1 for c in chunks)
    ordered = [lengths[i] for c in chunks for i in c]
    assert ordered == sorted(lengths, reverse=True)
    assert all(cost([*a, b[0]]) > budget for a, b in pairwise(chunks))


@pytest.mark.parametrize("packed", [False, True])
def test_without_a_budget_there_is_one_chunk(packed: bool) -> None:
    """None means the whole batch at once, the longest row first."""
    (chunk,) = plan_chunks(np.array([2, 9, 4]), None, packed=packed)
    assert chunk.tolist() == [1, 2, 0]


def test_sorting_saves_padding() -> None:
    """On lengths like a batch's (short queries, long documents), sorted chunks compute few places in vain."""
    lengths = np.random.default_rng(0).lognormal(3, 0.8, 500).astype(np.int64) + 1
    places = sum(len(c) * lengths[c].max() for c in plan_chunks(lengths, 2048))
    unsorted = sum(len(c) * c.max() for c in np.array_split(lengths, len(plan_chunks(lengths, 2048))))
    assert places < 1.25 * lengths.sum()
    assert unsorted > 2 * lengths.sum()
