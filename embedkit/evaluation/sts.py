"""Semantic textual similarity: do cosines rank pairs of sentences as people do?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedkit.errors import InputError, MissingExtraError
from embedkit.evaluation.protocol import GroupScore, KindReport, ProtocolEncoder, group_rows, mean_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedkit.evaluation.records import Pair

_FEWEST = 3


def evaluate_sts(encoder: ProtocolEncoder, pairs: Sequence[Pair]) -> KindReport:
    """Measure Spearman's rank correlation of cosine and people's score, overall and by language pair.

    `spearman` of all pairs together ranks across languages; `mean` is the mean over the language pairs, which is
    what MTEB reports. The first sentence is the query. Raises InputError where all scores are alike, and
    MissingExtraError without scipy.
    """
    import numpy as np

    gold = np.array([p.score for p in pairs], dtype=np.float64)
    if len(pairs) < _FEWEST or not np.ptp(gold) > 0:
        raise InputError(
            f"a rank correlation needs at least {_FEWEST} pairs whose scores differ, got {len(pairs)} pairs"
            + (f", all scored {gold[0]:g}" if len(pairs) else "")
        )
    first = encoder.queries([p.first for p in pairs])
    second = encoder.documents([p.second for p in pairs])
    cosines = np.einsum("ij,ij->i", first, second)
    groups = tuple(
        GroupScore(name, len(rows), {"spearman": spearman(cosines[rows], gold[rows])})
        for name, rows in group_rows([p.group for p in pairs]).items()
    )
    overall = {
        "spearman": spearman(cosines, gold),
        "mean": mean_of(g.measures["spearman"] for g in groups),
    }
    return KindReport(GroupScore("overall", len(pairs), overall), groups)


def spearman(found: NDArray[np.floating], gold: NDArray[np.floating]) -> float | None:
    """Return Spearman's correlation of two `[n]` arrays; None below 3 values or where one of them is constant."""
    import numpy as np

    if len(gold) < _FEWEST or not (np.ptp(found) > 0 and np.ptp(gold) > 0):
        return None
    try:
        from scipy.stats import spearmanr
    except ImportError as e:
        raise MissingExtraError("evaluation", "eval") from e
    return float(spearmanr(found, gold).statistic)
