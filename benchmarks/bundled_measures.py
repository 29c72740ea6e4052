"""Pure parts of `bundled.py`: rankings, nDCG, reciprocal rank fusion, the words of BM25, smaller vectors."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ranking = list[int]
RRF_K = 60  # Cormack, Clarke and Büttcher, SIGIR 2009
BM25_K1, BM25_B = 0.9, 0.4
PREFIX = 6  # a word's first characters stand for it: a stemmer for every language
# Thai; Hangul, kana and Han: scripts that are written without spaces, or whose particles stick to the words.
_UNSPACED = (
    "\u0e00-\u0e7f\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)


def ranked(scores: NDArray[np.floating[Any]], depth: int) -> list[Ranking]:
    """Return the columns of each row of `[queries, documents]`, best first, at most `depth`.

    Equal scores keep the order of the columns. A document at minus infinity is no part of the ranking.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    there = np.take_along_axis(scores, order, axis=1) > -np.inf
    return [row[keep].tolist() for row, keep in zip(order, there, strict=True)]


def ndcg(ranking: Sequence[int], grades: Mapping[int, int], k: int = 10) -> float:
    """Return nDCG@k as trec_eval computes it: the gain is the grade, the discount log2(rank + 1)."""
    ideal = _dcg(sorted((g for g in grades.values() if g > 0), reverse=True)[:k])
    return _dcg([max(0, grades.get(d, 0)) for d in ranking[:k]]) / ideal if ideal else 0.0


def accuracy(ranking: Sequence[int], grades: Mapping[int, int]) -> float:
    """Return 1.0 where the first document is relevant."""
    return float(bool(ranking) and grades.get(ranking[0], 0) > 0)


def fuse(dense: Sequence[int], lexical: Sequence[int], dense_weight: float, k: int = RRF_K) -> Ranking:
    """Fuse two rankings by reciprocal rank: w / (k + rank) summed, `1 - dense_weight` for the lexical one.

    A document that is missing from a ranking gets nothing from it; equal sums are ordered by document.
    """
    sums: dict[int, float] = {}
    for weight, ranking in ((dense_weight, dense), (1 - dense_weight, lexical)):
        for rank, document in enumerate(ranking, 1):
            sums[document] = sums.get(document, 0.0) + weight / (k + rank)
    return sorted(sums, key=lambda d: (-sums[d], d))


def choose_weight(fused: Mapping[float, Sequence[float]], lexical: Sequence[float], share: float) -> float:
    """Return the dense weight with the best mean among those that keep `share` of BM25 alone on every set.

    `fused` holds, by weight, a figure a set; `lexical` those of BM25 alone. Where no weight keeps it, the one whose
    worst set keeps most is taken. Equals go to the smaller weight, which is nearer to BM25.
    """
    worst = {w: min(_ratio(a, b) for a, b in zip(f, lexical, strict=True)) for w, f in fused.items()}
    safe = [w for w, ratio in worst.items() if ratio >= share]
    if safe:
        return max(sorted(safe), key=lambda w: sum(fused[w]))
    return max(sorted(fused), key=lambda w: worst[w])


def tokens(text: str) -> list[str]:
    """Return the terms of BM25: lower-cased words cut to six characters, bigrams of scripts without spaces.

    Combining marks belong to the word, else Hindi falls apart. A run of one character is a term of its own.
    """
    terms: list[str] = []
    for match in _pattern().finditer(text.lower()):
        run = match.group()
        if match.lastgroup == "unspaced":
            terms += [run[i : i + 2] for i in range(len(run) - 1)] or [run]
        else:
            terms.append(run[:PREFIX])
    return terms


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> NDArray[np.float32]:
    """Return BM25 (bm25s, Lucene's variant) as `[queries, documents]`; minus infinity without a common term."""
    import bm25s

    retriever = bm25s.BM25(k1=BM25_K1, b=BM25_B, method="lucene")
    retriever.index([tokens(d) for d in documents], show_progress=False)
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for row, query in zip(scores, queries, strict=True):
        terms = tokens(query)
        if terms:
            row[:] = retriever.get_scores(terms)
    scores[scores <= 0] = -np.inf
    return scores


def int8_rounded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round each row to 255 steps, symmetric about zero, its largest magnitude at 127; returns what int8 stands for."""
    scale = np.abs(vectors).max(axis=1, keepdims=True) / np.float32(127)
    steps = np.divide(vectors, scale, out=np.zeros_like(vectors), where=scale > 0)
    rounded: NDArray[np.float32] = np.rint(steps).astype(np.int8).astype(np.float32) * scale
    return rounded


def shortened(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return the first `dim` dimensions at unit length; rows of zeros stay."""
    head = vectors[:, :dim]
    norm = np.linalg.norm(head, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(head, norm, out=np.zeros_like(head), where=norm > 0)
    return unit


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def _ratio(value: float, bar: float) -> float:
    return value / bar if bar else math.inf


@cache
def _pattern() -> re.Pattern[str]:
    # Python's \w leaves out the marks that carry the vowels of Indian scripts.
    marks = "".join(chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c)).startswith("M"))
    return re.compile(f"(?P<unspaced>[{_UNSPACED}]+)|(?:(?![{_UNSPACED}])[\\w{marks}])+")
