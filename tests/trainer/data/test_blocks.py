"""Blocks of rows that stay together: one query under several instructions must meet its other answers."""

from __future__ import annotations

import pytest

from embedkit.errors import InputError
from embedkit_trainer.data.plan import BatchPlan


def test_a_block_is_never_cut() -> None:
    """Every batch holds whole blocks, in the file's order within, and a pass holds every row once."""
    plan = BatchPlan([24, 30], batch_size=12, seed=3, epochs=4.0, blocks=[3, 1])
    seen: list[int] = []
    for step in range(plan.steps):
        rows = [row for source, row in plan.rows(step) if source == 0]
        if rows:
            assert len(rows) == 12
            assert all(rows[i + 1] == rows[i] + 1 for i in range(11) if rows[i] % 3 != 2)
            assert all(rows[i] % 3 == 0 for i in range(0, 12, 3))
            seen += rows
    assert len(seen) >= 48
    assert sorted(seen[:24]) == list(range(24)) == sorted(seen[24:48])
    assert seen[:24] != seen[24:48]


@pytest.mark.parametrize(
    ("sizes", "blocks", "batch", "mode", "said"),
    [
        ([25], [3], 12, "one-source", "25 rows in blocks of 3, and batches hold 12"),
        ([24], [5], 12, "one-source", "multiples of the block"),
        ([24], [0], 12, "one-source", "give 1 or more"),
        ([24], [3], 12, "mixed", 'write "one-source"'),
    ],
)
def test_blocks_that_do_not_fit(
    sizes: list[int], blocks: list[int], batch: int, mode: str, said: str
) -> None:
    """What would cut a block is refused, with the numbers."""
    with pytest.raises(InputError, match=said):
        BatchPlan(sizes, batch_size=batch, seed=0, blocks=blocks, mode=mode)  # type: ignore[arg-type]
