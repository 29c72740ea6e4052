"""Duplicates: the same texts again, and rows whose own texts are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

from embedkit_trainer.data.rows import Row
from embedkit_trainer.synthesis.filters.example import Changed, Dropped, Example, Outcome


class DuplicateFilter:
    """Drop rows that were there before, by exact match of all texts as in E5-mistral (arXiv 2401.00368).

    A row whose positive is its query teaches nothing and goes too; a negative that is the row's positive or was named
    before is taken out of its row. Keeps 16 bytes of every row.
    """

    name: ClassVar[str] = "duplicates"
    parallel: ClassVar[bool] = False

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        return [self._check(example) for example in batch]

    def _check(self, example: Example) -> Outcome:
        row = example.row
        digest = hashlib.blake2b(
            "\0".join((row.instruction or "", row.query, row.positive, *row.negatives)).encode(),
            digest_size=16,
        ).digest()
        if digest in self._seen:
            return Dropped(example, "exact-duplicate", "the same texts stood in an earlier row")
        self._seen.add(digest)
        if row.query.strip() == row.positive.strip():
            return Dropped(example, "positive-is-query", "query and positive are the same text")
        kept = _distinct(row)
        if len(kept) == len(row.negatives):
            return example
        gone = [row.negatives[i] for i in range(len(row.negatives)) if i not in kept]
        detail = f"the positive or an earlier negative again: {gone[0][:80]!r}"
        return Changed(example, example.with_row(keep_negatives(row, kept)), "repeated-negative", detail)


def _distinct(row: Row) -> list[int]:
    if not row.negatives:
        return []
    seen = {row.positive.strip()}
    kept = []
    for place, text in enumerate(row.negatives):
        if (stripped := text.strip()) not in seen:
            seen.add(stripped)
            kept.append(place)
    return kept


def keep_negatives(row: Row, places: Sequence[int]) -> Row:
    """Return the row with these of its negatives alone, their ids and scores with them."""
    from dataclasses import replace

    scores = row.teacher_scores
    return replace(
        row,
        negatives=tuple(row.negatives[i] for i in places),
        negative_ids=tuple(row.negative_ids[i] for i in places) if row.negative_ids else (),
        teacher_scores=None if scores is None else (scores[0], *(scores[i + 1] for i in places)),
    )
