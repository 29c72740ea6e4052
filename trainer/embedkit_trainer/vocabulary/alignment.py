"""Which English tokens a new token stands for: word alignment by IBM Model 1 over parallel texts.

Brown et al., "The Mathematics of Statistical Machine Translation" (1993): the k-th foreign token of a pair is a
translation of one English token, each equally likely beforehand; expectation maximisation finds the probabilities
t(foreign | English) that explain all pairs best. The start vector of a foreign token is then the mean of the English
vectors that it was aligned with, so that a model which reads only English can make sense of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Counts of pairs of tokens lie in a table of this many places; two pairs may share a place.
_PLACES = 1 << 26
_PAIRS_AT_ONCE = 4_000_000


class Alignment:
    """Counts of how often a foreign and an English token stand for one another, after `iterations` rounds.

    `foreign[i]` and `english[i]` are the token ids of a pair of texts, without special tokens. English id -1 need not
    be given: every text holds one more, empty word, for what has no counterpart.
    """

    def __init__(
        self, foreign: Sequence[NDArray[np.int32]], english: Sequence[NDArray[np.int32]], english_tokens: int
    ) -> None:
        if len(foreign) != len(english):
            raise ValueError(f"{len(foreign)} foreign and {len(english)} English texts: they come in pairs")
        self._foreign, self._english = foreign, english
        self._tokens = english_tokens + 1
        self._order = np.lexsort(([len(e) for e in english], [len(f) for f in foreign]))
        self._counts: Tensor | None = None

    def fit(self, iterations: int = 5) -> None:
        """Run so many rounds of expectation maximisation."""
        for _ in range(iterations):
            counts = torch.zeros(_PLACES)
            for f, e in self._batches():
                places = _places(f, e)
                counts.index_add_(0, places.flatten(), self._posterior(f, e, places).flatten())
            totals = torch.zeros(self._tokens)
            for f, e in self._batches():
                totals.index_add_(0, e.flatten(), self._posterior(f, e, _places(f, e)).sum(dim=1).flatten())
            self._counts, self._totals = counts, totals

    def vectors(self, table: Tensor, foreign_tokens: int, power: float = 1.5) -> tuple[Tensor, Tensor]:
        """Return for each foreign token the mean vector of its English counterparts, and how often it stood for one.

        `table` [English tokens, dim]; the result is [foreign_tokens, dim] and [foreign_tokens], zeros where a token
        never occurred. `power` above 1 sharpens: it gives likely counterparts more than their share.
        """
        sums, weights = torch.zeros(foreign_tokens, table.shape[1]), torch.zeros(foreign_tokens)
        table = torch.cat([table, torch.zeros(1, table.shape[1])])
        for f, e in self._batches():
            share = self._posterior(f, e, _places(f, e)) ** power
            share = share / share.sum(dim=2, keepdim=True).clamp_min(1e-9)
            share[:, :, -1] = 0.0  # the empty word means nothing
            sums.index_add_(0, f.flatten(), (share @ table[e]).flatten(0, 1))
            weights.index_add_(0, f.flatten(), share.sum(dim=2).flatten())
        return sums / weights.clamp_min(1e-9)[:, None], weights

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give ids [texts, length] of pairs of equal length on either side, the empty word last."""
        lengths = [(len(self._foreign[i]), len(self._english[i])) for i in self._order]
        start = 0
        while start < len(lengths):
            end = start
            m, n = lengths[start]
            most = max(1, _PAIRS_AT_ONCE // max(1, m * (n + 1)))
            while end < len(lengths) and lengths[end] == (m, n) and end - start < most:
                end += 1
            rows = self._order[start:end]
            if m:
                f = torch.from_numpy(np.stack([self._foreign[i] for i in rows])).long()
                e = torch.from_numpy(np.stack([self._english[i] for i in rows])).long()
                yield f, torch.cat([e, torch.full((len(rows), 1), self._tokens - 1)], dim=1)
            start = end

    def _posterior(self, f: Tensor, e: Tensor, places: Tensor) -> Tensor:
        """Return how likely each English token [texts, foreign, English] is the one a foreign token stands for."""
        if self._counts is None:
            return torch.full(places.shape, 1.0 / e.shape[1])
        likely = self._counts[places] / self._totals[e].clamp_min(1e-9)[:, None, :]
        return likely / likely.sum(dim=2, keepdim=True).clamp_min(1e-9)


def _places(f: Tensor, e: Tensor) -> Tensor:
    """Return where the count of each pair of tokens lies, [texts, foreign, English]."""
    mixed = f[:, :, None] * 0x9E3779B1 + e[:, None, :] * 0x85EBCA77
    return (mixed ^ (mixed >> 15)) % _PLACES
