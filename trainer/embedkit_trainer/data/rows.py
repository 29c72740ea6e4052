"""Training rows: what one example holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one training example.

    `positive_id` is an identity and may be a class: rows that share it never serve each other as negatives.
    `teacher_scores` belong to the positive first, then to each negative. `score` is a graded similarity of
    query and positive (STS). `line` says where the row stands in its file, from 1 (0: nowhere).
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    source: str = ""
    positive_id: str | None = None
    negative_ids: tuple[str | None, ...] = ()
    teacher_scores: tuple[float, ...] | None = None
    score: float | None = None
    line: int = 0
