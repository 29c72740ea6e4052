"""BM25 over the segments of an index, independent of any embedder.

The formula is Lucene's: a row scores the sum, over the query's terms, of

    idf(term) * count / (count + k1 * (1 - b + b * length / mean length)),    idf = ln(1 + (n - df + 0.5) / (df + 0.5))

where `n` (rows), `df` (rows with the term) and the mean length are those of all segments together, deleted rows
included until they are compacted away, as in Lucene. So a row scores the same however the rows are spread.

A term in most rows costs most and tells least. Terms are therefore taken from the rarest on, and as soon as the terms
that are left could not bring a row that has none of the earlier ones among the best k, only the rows that still can
win are looked up in them (MaxScore: Turtle and Flood, Information Processing & Management 31(6), 1995). The result is
that of scoring every row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedkit.errors import InputError
from embedkit_indexes.lexical_build import build_lexical, merge_lexical
from embedkit_indexes.lexical_file import LexicalIndex
from embedkit_indexes.lexical_tokens import term_hash, tokenize
from embedkit_indexes.rows import RowSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Bm25", "LexicalIndex", "build_lexical", "merge_lexical", "search_lexical"]

_FEW = 1 / 16  # up to this share of the rows, or of a term's postings, rows are looked up one by one
_OFTEN = 8  # the bar is found anew before a term whose postings are at least 1/8 of the rows seen
_BLOCK = 1 << 14  # postings at once: what is made of them stays in the cache
_SLACK = 1e-5  # what float32 sums may be off, relative


@dataclass(frozen=True)
class Bm25:
    """Set BM25's two parameters: `k1` how fast repetition saturates, `b` how much length counts (0 to 1)."""

    k1: float = 0.9
    b: float = 0.4

    def __post_init__(self) -> None:
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise InputError(f"BM25 needs k1 >= 0 and b between 0 and 1, not k1={self.k1}, b={self.b}")


@dataclass(frozen=True)
class _Term:
    """One term of a query: its idf times its count in the query, and its postings in each segment."""

    weight: float
    df: int
    spans: tuple[tuple[int, int], ...]


def search_lexical(
    segments: Sequence[LexicalIndex],
    query: str,
    k: int,
    allowed: Sequence[RowSet | None] | None = None,
    bm25: Bm25 | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the best k rows that hold a term of the query: scores float32, segment and row numbers int64 [<= k].

    Best first; equal scores in the order of segments and rows. `allowed` holds the rows of each segment that may be
    returned (None: all). Scores are greater than 0 and compare within one query only. Raises InputError for k below 1
    and CorruptIndexError where postings point out of their segment.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one result")
    terms = _terms(segments, query)
    found = _Best(k)
    mean_length = sum(s.total_length for s in segments) / max(1, sum(s.size for s in segments))
    for i, segment in enumerate(segments):
        rows = None if allowed is None else allowed[i]
        present = [(t.weight, *t.spans[i]) for t in terms if t.spans[i][1]]
        if present:
            scorer = _Scorer(segment, bm25 or Bm25(), mean_length, rows)
            try:
                found.add(i, *scorer.best(present, k, found.bar))
            except IndexError as e:
                raise segment.corrupt() from e
    return found.scores, found.segments, found.rows


def _terms(segments: Sequence[LexicalIndex], query: str) -> list[_Term]:
    """Look up the query's terms, the rarest first."""
    n = sum(s.size for s in segments)
    counted = Counter(tokenize(query))
    hashed = [term_hash(term) for term in counted]
    terms = []
    for count, *spans in zip(counted.values(), *(s.postings(hashed) for s in segments), strict=True):
        df = sum(end - begin for begin, end in spans)
        if df:
            weight = count * math.log1p((max(0, n - df) + 0.5) / (df + 0.5))
            terms.append(_Term(weight, df, tuple(spans)))
    # A fixed order of terms adds each row's parts in that order: equal rows get equal scores to the last bit.
    return sorted(terms, key=lambda t: (-t.weight, t.df))


class _Best:
    """Keep the best k rows of the segments seen so far."""

    def __init__(self, k: int) -> None:
        import numpy as np

        self._k = k
        self.scores = np.empty(0, np.float32)
        self.segments = np.empty(0, np.int64)
        self.rows = np.empty(0, np.int64)

    @property
    def bar(self) -> float:
        """What a row must reach to get in; 0 while fewer than k are in."""
        return float(self.scores[-1]) if len(self.scores) == self._k else 0.0

    def add(self, segment: int, rows: NDArray[np.intp], scores: NDArray[np.float32]) -> None:
        """Take in rows, ascending, of a segment behind those seen before."""
        import numpy as np

        all_scores = np.concatenate((self.scores, scores))
        order = np.argsort(-all_scores, kind="stable")[: self._k]
        self.scores = all_scores[order]
        self.segments = np.concatenate((self.segments, np.full(len(rows), segment)))[order]
        self.rows = np.concatenate((self.rows, rows.astype(np.int64)))[order]


class _Scorer:
    """Score the rows of one segment, terms in the order given."""

    def __init__(self, index: LexicalIndex, bm25: Bm25, mean_length: float, allowed: RowSet | None) -> None:
        import numpy as np

        self._index = index
        self._allowed = allowed
        self._short = np.float32(bm25.k1 * (1 - bm25.b))
        self._slope = np.float32(bm25.k1 * bm25.b / mean_length)

    def best(
        self, terms: Sequence[tuple[float, int, int]], k: int, bar: float
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Return the best k rows, ascending, and their scores, float32; rows below `bar` may be left out.

        `terms`: weight, begin and end of the postings. Rows that share the k-th best score are all returned.
        """
        import numpy as np

        scores = np.zeros(self._index.size, np.float32)  # pages that no row touches cost nothing
        touched: list[NDArray[np.intp]] = []
        number = 0
        weights = [weight for weight, *_ in terms]
        if self._allowed is not None and self._allowed.count <= _FEW * self._index.size:
            touched, position = [self._allowed.numbers.astype(np.intp, copy=False)], 0
        else:
            for position, (weight, begin, end) in enumerate(terms):
                left = sum(weights[position:]) * (1 + _SLACK)  # what a row can still get, and more
                if number < _OFTEN * (end - begin) and left < max(bar, sum(weights[:position])):
                    seen = scores.take(np.concatenate(touched)) if touched else scores[:0]
                    if left < max(bar, _kth_best(seen, k)):
                        break
                touched.append(self._scan(scores, weight, begin, end))
                number += len(touched[-1])
            else:
                position = len(terms)
        rows = np.concatenate([np.empty(0, np.intp), *touched])
        if len(touched) > 1:
            rows.sort()
        for later in range(position, len(terms)):
            seen = scores.take(rows)
            left = sum(weights[later:]) * (1 + _SLACK)
            rows = rows[seen + left >= max(bar, _kth_best(seen, k))]
            weight, begin, end = terms[later]
            if len(rows) <= _FEW * (end - begin):
                self._look_up(scores, rows, weight, begin, end)
            else:
                self._scan(scores, weight, begin, end)
        seen = scores.take(rows)
        rows = rows[(seen > 0) & (seen >= _kth_best(seen, k))]
        return rows, scores[rows]

    def _scan(self, scores: NDArray[np.float32], weight: float, begin: int, end: int) -> NDArray[np.intp]:
        """Add a term to all allowed rows that have it; returns those that had no score yet."""
        import numpy as np

        first = []
        for start in range(begin, end, _BLOCK):
            block = slice(start, min(start + _BLOCK, end))
            # NumPy gathers by intp; by uint32 it converts in small pieces, at several times the cost.
            rows, counts = self._index.rows[block].astype(np.intp), self._index.counts[block]
            if self._allowed is not None:
                kept = self._allowed.mask.take(rows)
                rows, counts = rows[kept], counts[kept]
            before = scores.take(rows)
            scores[rows] = before + self._parts(rows, counts, weight)
            first.append(rows[before == 0])
        return np.concatenate(first)

    def _look_up(
        self, scores: NDArray[np.float32], rows: NDArray[np.intp], weight: float, begin: int, end: int
    ) -> None:
        """Add a term to those of `rows`, ascending, that have it."""
        import numpy as np

        having = self._index.rows[begin:end]
        places = np.minimum(np.searchsorted(having, rows.astype(np.uint32)), len(having) - 1)
        hit = having[places] == rows
        rows = rows[hit]
        scores[rows] += self._parts(rows, self._index.counts[begin:end][places[hit]], weight)

    def _parts(self, rows: NDArray[np.intp], counts: NDArray[np.uint8], weight: float) -> NDArray[np.float32]:
        """Return what a term of this weight adds to the rows that have it `counts` times."""
        import numpy as np

        often = counts.astype(np.float32)
        parts = self._index.lengths.take(rows).astype(np.float32)
        parts *= self._slope
        parts += self._short
        parts += often
        np.divide(often, parts, out=parts)
        parts *= np.float32(weight)
        return parts


def _kth_best(scores: NDArray[np.float32], k: int) -> float:
    """Return the k-th largest score, 0 where there are fewer."""
    import numpy as np

    return float(np.partition(scores, len(scores) - k)[len(scores) - k]) if len(scores) >= k else 0.0
