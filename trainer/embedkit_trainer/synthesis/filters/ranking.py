"""What an embedder says of a row: is its positive nearer to the query than its hard negatives are?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from embedkit.errors import InputError
from embedkit_trainer.data.rows import Row
from embedkit_trainer.synthesis.filters.duplicates import keep_negatives
from embedkit_trainer.synthesis.filters.example import Changed, Dropped, Example, Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedkit.embedder import Embedder


_Key = tuple[bool, str | None, str]  # is it a query, its instruction, its text


class Scorer(Protocol):
    """Whatever says how near documents are to a query: an embedder, a cross-encoder."""

    def of(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return for each row the scores of its positive and then of its negatives."""
        ...


class Cosines:
    """Score each row's positive and negatives against its query by an embedder, under the row's own instruction.

    An embedder that was not trained on instructions gets the bare query. The texts of the last batch are remembered,
    so that two filters in a row embed them once.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors: dict[_Key, NDArray[np.float32]] = {}

    def of(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return for each row the cosines of its positive and then of its negatives."""
        queries: list[_Key] = [(True, self._instruction(row), row.query) for row in rows]
        documents: list[list[_Key]] = [
            [(False, None, text) for text in (row.positive, *row.negatives)] for row in rows
        ]
        wanted = dict.fromkeys([*queries, *(key for keys in documents for key in keys)])
        self._vectors = {key: self._vectors[key] for key in wanted if key in self._vectors}
        self._embed([key for key in wanted if key not in self._vectors])
        return [
            np.stack([self._vectors[key] for key in keys]) @ self._vectors[query]
            for query, keys in zip(queries, documents, strict=True)
        ]

    def _instruction(self, row: Row) -> str | None:
        return row.instruction if self._embedder.info.instruction_trained else None

    def _embed(self, keys: Sequence[_Key]) -> None:
        if not keys:
            return
        rendered = [
            self._embedder.render_query(text, instruction=instruction)
            if is_query
            else self._embedder.info.template.render_document(text)
            for is_query, instruction, text in keys
        ]
        for key, vector in zip(keys, self._embedder.encode_rendered(rendered), strict=True):
            self._vectors[key] = vector


class ConsistencyFilter:
    """Drop rows in which a hard negative is as near to the query as the positive, or nearer.

    With `relabel` such a negative and the positive change places, as Gecko (arXiv 2403.20327) lets a model choose the
    positive anew; rows with a graded `score`, which belongs to the old pair, are dropped even so.

    The judge must know more than the rows teach: a small embedder takes many a sound trap for the better answer.
    """

    name: ClassVar[str] = "consistency"
    parallel: ClassVar[bool] = False

    def __init__(self, scorer: Scorer, *, relabel: bool = False) -> None:
        self._scorer, self._relabel = scorer, relabel

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        scores = self._scorer.of([example.row for example in batch])
        return [self._judge(*pair) for pair in zip(batch, scores, strict=True)]

    def _judge(self, example: Example, scores: NDArray[np.float32]) -> Outcome:
        if len(scores) == 1 or scores[0] > scores[1:].max():
            return example
        best = int(scores[1:].argmax())
        detail = f"positive {scores[0]:.3f}, negatives[{best}] {scores[best + 1]:.3f}"
        if not self._relabel or example.row.score is not None or scores[0] == scores[best + 1]:
            return Dropped(example, "inconsistent", detail)
        return Changed(example, example.with_row(swapped(example.row, best)), "relabelled", detail)


class NegativeFilter:
    """Take negatives out of their rows where they score above `max_ratio` of the positive; the row stays.

    NV-Retriever's rule (arXiv 2407.15831, 0.95): such a text is most often an answer that nobody labelled. A positive
    that scores 0 or less is itself the limit.
    """

    name: ClassVar[str] = "negatives"
    parallel: ClassVar[bool] = False

    def __init__(self, scorer: Scorer, max_ratio: float = 0.95) -> None:
        if not 0 < max_ratio <= 1:
            raise InputError(f"the negatives' largest ratio is {max_ratio}: give more than 0 and at most 1")
        self._scorer, self._ratio = scorer, max_ratio

    def check(self, batch: Sequence[Example]) -> list[Outcome]:
        """Return one outcome for each example."""
        scores = self._scorer.of([example.row for example in batch])
        return [self._judge(*pair) for pair in zip(batch, scores, strict=True)]

    def _judge(self, example: Example, scores: NDArray[np.float32]) -> Outcome:
        positive = float(scores[0])
        limit = self._ratio * positive if positive > 0 else positive
        kept = np.flatnonzero(scores[1:] <= limit).tolist()
        if len(kept) == len(example.row.negatives):
            return example
        shown = ", ".join(f"{s:.3f}" for s in scores[1:])
        after = example.with_row(keep_negatives(example.row, kept))
        return Changed(
            example, after, "near-positive-negative", f"positive {positive:.3f}, negatives {shown}"
        )


def swapped(row: Row, best: int) -> Row:
    """Return the row with its positive and a negative in each other's place, their ids and scores with them."""
    negatives = list(row.negatives)
    negatives[best], positive = row.positive, row.negatives[best]
    ids = list(row.negative_ids or (None,) * len(negatives))
    ids[best], identity = row.positive_id, ids[best]
    scores = None if row.teacher_scores is None else list(row.teacher_scores)
    if scores is not None:
        scores[0], scores[best + 1] = scores[best + 1], scores[0]
    return replace(
        row,
        positive=positive,
        negatives=tuple(negatives),
        negative_ids=tuple(ids) if any(i is not None for i in ids) else (),
        positive_id=identity,
        teacher_scores=None if scores is None else tuple(scores),
    )
