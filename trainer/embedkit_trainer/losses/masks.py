"""Masks: documents and queries of the batch that are no true negatives, by identity and by text, never by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit_trainer.data.batches import Batch

_Keys = NDArray[np.int64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Masks:
    """Hold what each row leaves out of its negatives: True = leave out.

    `query_document` `[B, N]`: document j for query i; never i's own positive. `query_query` `[B, B]`: query k for
    query i; always i itself. `positives` int64 `[B]`. `rate_by_source`: which share of its candidates (all documents
    of the batch but the row's own positive) `query_document` leaves out, on average over a source's rows.
    """

    query_document: Tensor
    query_query: Tensor
    positives: Tensor
    rate_by_source: dict[int, float]

    @property
    def document_document(self) -> Tensor:
        """`[B, N]`: document j for the positive of row i; what is no negative of the query is none of it; always itself."""
        return self.query_document.scatter(1, self.positives[:, None], True)

    @property
    def document_query(self) -> Tensor:
        """`[B, B]`: query k for the positive of row i, left out where that positive is left out for query k."""
        return self.query_document[:, self.positives].T


def false_negative_masks(batch: Batch, *, identity: bool, text: bool) -> Masks:
    """Find the false negatives of a batch; both flags off: nothing is left out but each query and positive itself.

    A document is one of row i's false negatives where it has the id (`identity`) or the text (`text`) of a known
    positive of query i: its own, or, for all but i's explicit negatives, one of another row that renders the very
    same query. The same query under another instruction renders otherwise: its positives stay negatives here, which
    teaches the model to follow the instruction. Two queries are no negatives of each other where they are the same
    or share a positive.
    """
    positives = batch.offsets[:-1]
    rows = np.arange(len(positives))
    known = np.zeros((len(positives), len(batch.text_keys)), dtype=np.bool_)
    queries = np.eye(len(positives), dtype=np.bool_)
    known[rows, positives] = True
    if text:
        _share_keys(known, queries, positives, batch.text_keys)
    if identity:
        _share_keys(known, queries, positives, batch.id_keys, none=0)
    if identity or text:
        _share_positives_of_equal_queries(known, queries, batch)
    known[rows, positives] = False
    return Masks(
        torch.from_numpy(known),
        torch.from_numpy(queries),
        torch.from_numpy(positives.copy()),
        _rate_by_source(known, batch.sources),
    )


def _share_keys(known: _Mask, queries: _Mask, positives: _Keys, keys: _Keys, none: int | None = None) -> None:
    """Mark documents whose key is that of a row's positive, and queries whose positives have one key."""
    row_of = np.full(len(keys), -1)
    row_of[positives] = np.arange(len(positives))
    # Only documents that share a key are touched: comparing all B x N keys takes a second at 4096 x 16384.
    for group in _sharing(keys):
        rows = row_of[group][row_of[group] >= 0]
        if keys[group[0]] != none:
            known[np.ix_(rows, group)] = True
            queries[np.ix_(rows, rows)] = True


def _sharing(keys: _Keys) -> list[NDArray[np.intp]]:
    """Return the places of each key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] - 1))
    ends = np.append(starts[1:], len(keys))
    return [order[s:e] for s, e in zip(starts, ends, strict=True) if e - s > 1]


def _share_positives_of_equal_queries(known: _Mask, queries: _Mask, batch: Batch) -> None:
    """Let rows of one rendered query know each other's positives, except where a row names the document a negative."""
    for group in _sharing(batch.query_keys):
        shared = known[group].any(0)
        for row in group:
            own = slice(batch.offsets[row], batch.offsets[row + 1])
            before = known[row, own].copy()
            known[row] |= shared
            known[row, own] = before
        queries[np.ix_(group, group)] = True


def _rate_by_source(left_out: _Mask, sources: _Keys) -> dict[int, float]:
    candidates = max(left_out.shape[1] - 1, 1)
    rates = np.count_nonzero(left_out, axis=1) / candidates
    return {int(s): float(rates[sources == s].mean()) for s in np.unique(sources)}
