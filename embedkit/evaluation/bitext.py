"""Bitext mining: is a sentence's nearest neighbour in the other language its translation?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from embedkit.evaluation.protocol import GroupScore, KindReport, ProtocolEncoder, group_rows, mean_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.evaluation.records import Pair

_ROWS = 1024  # of the score matrix held at a time


def evaluate_bitext(encoder: ProtocolEncoder, pairs: Sequence[Pair]) -> KindReport:
    """Measure accuracy and F1 of the nearest neighbour, from the first text to the second and back.

    Each language pair is searched among its own texts alone; the overall figures are the mean over language pairs.
    A text that stands in several pairs is one candidate. F1 is the mean over the sentences asked of their
    translation's F1 as a class (MTEB's "weighted"): it is below the accuracy where one text is everybody's neighbour.
    Backwards, the second text is the query.
    """
    scores: list[GroupScore] = []
    for name, rows in group_rows([p.group for p in pairs]).items():
        group = [pairs[i] for i in rows]
        first, second = [p.first for p in group], [p.second for p in group]
        forward = _direction(encoder, first, second)
        backward = _direction(encoder, second, first)
        scores.append(
            GroupScore(name, len(group), {**_named(forward, "forward"), **_named(backward, "backward")})
        )
    means = {name: mean_of(s.measures[name] for s in scores) for name in scores[0].measures}
    return KindReport(GroupScore("overall", len(pairs), means), tuple(scores))


def _direction(
    encoder: ProtocolEncoder, queries: Sequence[str], documents: Sequence[str]
) -> dict[str, float]:
    import numpy as np

    place = {text: i for i, text in enumerate(dict.fromkeys(documents))}
    gold = np.array([place[text] for text in documents])
    found = nearest(encoder.queries(queries), encoder.documents(list(place)))
    return {"f1": weighted_f1(gold, found), "accuracy": float(np.mean(gold == found))}


def nearest(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the index of each query's best document, the first of equals; `[n, d]` and `[m, d]` to `[n]`."""
    import numpy as np

    parts = [
        np.argmax(queries[start : start + _ROWS] @ documents.T, axis=1)
        for start in range(0, len(queries), _ROWS)
    ]
    return np.concatenate(parts).astype(np.int64)


def weighted_f1(gold: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Return the mean over all rows of the F1 of the row's gold class: 2 hits / (times it is gold + times found)."""
    import numpy as np

    classes = int(max(gold.max(), found.max())) + 1
    hits = np.bincount(gold[gold == found], minlength=classes)
    asked, answered = np.bincount(gold, minlength=classes), np.bincount(found, minlength=classes)
    f1 = 2 * hits / np.maximum(asked + answered, 1)
    return float(np.mean(f1[gold]))


def _named(measures: Mapping[str, float], direction: str) -> dict[str, float]:
    return {f"{name} {direction}": value for name, value in measures.items()}
